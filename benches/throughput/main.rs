//! `cargo bench -p siltstone-benches --bench throughput -- [OPTIONS]`: the same as `siltstone bench`, with
//! the pool under the target directory, where the image of data stays for the next time.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use siltstone_benches::performance::{self, Caller, Options};

/// Measures a pool against what the machine can do.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Given by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("This measures for minutes: run it by cargo bench, or with --bench.");
        return ExitCode::SUCCESS;
    }
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let caller = Caller { arguments: &["--bench"], directory, keeps_image: true };
    match performance::run(&arguments.options, &caller) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
