//! `siltstone bench`.

use std::path::PathBuf;

use siltstone_benches::performance::{self, Caller, Options};

use crate::errors::CliError;

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    let directory = PathBuf::from(".");
    let caller = Caller { arguments: &["bench"], directory, keeps_image: false };
    Ok(performance::run(options, &caller)?)
}
