//! `siltstone bench`.

use std::path::PathBuf;

use siltstone_benches::performance::{self, Caller, Options};

use crate::errors::CliError;

pub(crate) fn run(options: &Options) -> Result<(), CliError> {
    let caller = Caller { directory: PathBuf::from("."), keeps_image: false };
    Ok(performance::run(options, &caller)?)
}
