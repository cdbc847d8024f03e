//! `siltstone check`.

use siltstone_engine::{CheckOptions, CheckProgress};

use crate::{
    args::CheckArguments,
    errors::CliError,
    findings, on_pool,
    output::{print, to_json},
    plural::count,
    progress,
    size::human,
};

pub(crate) fn run(arguments: &CheckArguments) -> Result<(), CliError> {
    let pool = on_pool::open_at_rest(&arguments.pool, "check")?;
    let options = CheckOptions { list_limit: arguments.listing.limit() };
    let bar = progress::bytes(Some(0));
    let mut show = |progress: CheckProgress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
    };
    let report = pollster::block_on(pool.check_with(&options, &mut show));
    bar.finish_and_clear();
    let report = report?;
    if arguments.listing.json {
        print(&to_json(&report)?)?;
    } else {
        let mut text = findings::lines(&report.findings) + &findings::notes(&report.repairs);
        text += &format!(
            "checked {} in {}, {} and {}; {} in {}\n",
            count(report.blocks, "block"),
            count(report.frames, "frame"),
            count(report.units, "write unit"),
            count(report.segments, "segment"),
            count(report.entries, "map entry"),
            count(report.map_pages, "page")
        );
        let space = &report.space;
        text += &format!(
            "{} stored, {} garbage, {} overhead, {} metadata and {} reserved, pending, free or unusable are {}\n",
            human(space.stored_bytes),
            human(space.garbage_bytes),
            human(space.overhead_bytes),
            human(space.metadata_bytes),
            human(
                space.reserved_bytes
                    + space.pending_bytes
                    + space.free_bytes
                    + space.unusable_bytes
            ),
            human(space.total_bytes())
        );
        print(&text)?;
    }
    findings::verdict(&arguments.pool.path, "check", &report.findings)
}
