//! `siltstone check`.

use siltstone_engine::{CheckOptions, CheckProgress};

use crate::{
    args::CheckArguments,
    errors::CliError,
    findings, open,
    output::{print, print_json},
    progress,
};

pub(crate) fn run(arguments: &CheckArguments) -> Result<(), CliError> {
    let pool = open::open_read_only(&arguments.pool)?;
    let options = CheckOptions { list_limit: arguments.listing.limit() };
    let bar = progress::items("segments");
    let mut show = |progress: CheckProgress| {
        bar.set_length(progress.segments_total);
        bar.set_position(progress.segments);
    };
    let report = pollster::block_on(pool.check_with(&options, &mut show));
    bar.finish_and_clear();
    let report = report?;
    if arguments.listing.json {
        print_json(&report)?;
    } else {
        let mut text = findings::lines(&report.findings);
        for repair in &report.repairs {
            text += &format!("note: {repair}\n");
        }
        text += &format!(
            "checked {} blocks in {} frames, {} write units and {} segments; {} map entries in \
             {} pages\n",
            report.blocks,
            report.frames,
            report.units,
            report.segments,
            report.entries,
            report.map_pages
        );
        print(&text)?;
    }
    findings::verdict(&arguments.pool, "check", &report.findings)
}
