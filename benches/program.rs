//! The `siltstone` program, for benches that run it, and what a process takes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::error::BenchError;

/// Builds the program for release, and says where it is.
///
/// # Errors
/// [`BenchError::Child`] if that fails.
pub fn build() -> Result<PathBuf, BenchError> {
    let failed = |how: String| BenchError::Child { what: "build the program", how };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "--release", "-p", "siltstone-cli", "--message-format=json"];
    let output = Command::new(cargo)
        .args(build)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.ok_or_else(|| failed(output.status.to_string()))
}

/// The memory that a process has now.
///
/// # Errors
/// [`BenchError::File`] if there is no such process.
pub fn resident_bytes(process: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{process}/status");
    let failed = BenchError::file(Path::new(&path));
    let status = match fs::read_to_string(&path) {
        Ok(status) => status,
        Err(error) => return Err(failed(error)),
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| failed(io::Error::other("it has no VmRSS")))
}
