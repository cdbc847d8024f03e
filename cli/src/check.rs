//! `siltstone check`.

use crate::{
    args::ReportArguments,
    errors::CliError,
    open,
    output::{print, print_json},
    progress,
};

pub(crate) fn run(arguments: &ReportArguments) -> Result<(), CliError> {
    let pool = open::open_read_only(&arguments.pool)?;
    let bar = progress::items("segments");
    let report = pool.check(&mut |progress| {
        bar.set_length(progress.segments_total);
        bar.set_position(progress.segments);
    });
    bar.finish_and_clear();
    let report = report?;
    let problems = report.problems.len() as u64 + report.more_problems;
    if arguments.json {
        print_json(&report)?;
    } else {
        let mut text = String::new();
        for problem in &report.problems {
            text += &format!("{problem}\n");
        }
        if report.more_problems > 0 {
            text += &format!("and {} more\n", report.more_problems);
        }
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
    if report.is_sound() {
        return Ok(());
    }
    Err(CliError::CheckFailed { path: arguments.pool.clone(), problems })
}
