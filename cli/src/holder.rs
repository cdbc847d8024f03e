//! Which process has a pool that is in use, as far as the kernel says it.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::{major, minor};

/// Whoever has a pool.
#[derive(Debug)]
pub(crate) struct Holder(Option<Process>);

#[derive(Debug)]
struct Process {
    pid: u32,
    /// Empty if it is gone, or not ours to know.
    name: String,
}

impl Holder {
    /// Whoever has locked a file or block device.
    pub(crate) fn of(path: &Path) -> Self {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let pid = fs::metadata(path).ok().and_then(|found| {
            let file = (major(found.dev()), minor(found.dev()), found.ino());
            locks.lines().find_map(|line| locker(line, file))
        });
        Self(pid.map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Process { pid, name: name.trim_end().to_owned() }
        }))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(Process { pid, name }) if name.is_empty() => write!(f, "process {pid}"),
            Some(Process { pid, name }) => write!(f, "process {pid} ({name})"),
            None => f.write_str("another process"),
        }
    }
}

/// Who has the lock in a line of `/proc/locks`, if it is on this file: its device's numbers and its own.
/// One that is elsewhere (in another container, say) has no number here.
fn locker(line: &str, (major, minor, inode): (u32, u32, u64)) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, _advisory, _access) = (words.next()?, words.next()?, words.next()?);
    let (pid, place) = (words.next()?.parse().ok()?, words.next()?);
    let is_it = kind == "FLOCK" && place == format!("{major:02x}:{minor:02x}:{inode}");
    (is_it && pid > 0).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_somebodys_on_one_file() {
        let line = "6: FLOCK  ADVISORY  WRITE 8507 fe:00:10051951 0 EOF";
        assert_eq!(locker(line, (0xfe, 0, 10_051_951)), Some(8507));
        assert_eq!(locker(line, (0xfe, 1, 10_051_951)), None);
        assert_eq!(locker(line, (0xfe, 0, 1_005_195)), None);
        // One who waits for it, a lock of another kind, and one of another container.
        for other in [
            "6: -> FLOCK  ADVISORY  WRITE 8507 fe:00:7 0 EOF",
            "6: POSIX  ADVISORY  WRITE 8507 fe:00:7 0 EOF",
            "6: FLOCK  ADVISORY  WRITE 0 fe:00:7 0 EOF",
            "6: FLOCK  ADVISORY  WRITE -1 fe:00:7 0 EOF",
            "",
        ] {
            assert_eq!(locker(other, (0xfe, 0, 7)), None, "{other}");
        }
    }

    #[test]
    fn the_one_who_has_a_lock_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        let holder = Holder::of(file.path()).to_string();
        let own = format!("process {} (", std::process::id());
        assert!(holder.starts_with(&own) || holder == "another process", "{holder}");
        assert_eq!(Holder::of(Path::new("/nonexistent")).to_string(), "another process");
    }
}
