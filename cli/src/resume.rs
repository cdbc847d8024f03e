//! How far a copy has come that may be interrupted: by Ctrl-C, `kill -9` or a power cut.
//!
//! While a file is imported, what is durable of it is written down every second: in a small file below
//! `$XDG_STATE_HOME/siltstone` (or `~/.local/state/siltstone`) of whoever gave the command, named by the
//! volume's identity. It is believed only if everything still is what it was: the volume (by its identity,
//! so not another one of its name, nor the same one rolled back), and the file (by its number, size,
//! and times of change, of which the last cannot be set). Otherwise the copy begins anew, which is never
//! wrong, and costs little but reading, as what is stored already is found as duplicates.
//!
//! It is written after the pool's flush, never before, and replaced as a whole: what it promises is
//! there. An import that begins replaces what was known of another one before it writes anything, and one
//! that is complete leaves that behind, so that the same import, given again to be resumed, does not
//! begin anew over what was written to the volume since.
//!
//! Of an export of a snapshot the same is kept, if that is asked for. It is written to a file of its own,
//! which gets its name when it is complete, and is known again by its number and time of birth.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

/// What marks of imports and of exports are called.
const IMPORT: &str = "import";
const EXPORT: &str = "export";
/// Only their owner reads them.
const DIRECTORY_MODE: u32 = 0o700;

/// Which file a copy is made of or makes, and in which state it must be found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    /// An image to import, as it was. Times are seconds and nanoseconds.
    Image {
        inode: u64,
        size_bytes: u64,
        modified: (i64, i64),
        changed: (i64, i64),
        /// How it is read.
        reading: String,
    },
    /// A file that an export writes, which nobody else has a reason to.
    Target { inode: u64, created: SystemTime },
}

impl Source {
    /// An image that is read in this way; `None` if it is no file whose changes could be noticed.
    pub(crate) fn of(found: &Metadata, reading: String) -> Option<Self> {
        found.is_file().then(|| Self::Image {
            inode: found.ino(),
            size_bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            reading,
        })
    }

    /// A file to export to; `None` if one that takes its place could be taken for it.
    pub(crate) fn target(found: &Metadata) -> Option<Self> {
        let created = found.created().ok().filter(|_| found.is_file())?;
        Some(Self::Target { inode: found.ino(), created })
    }

    /// What a mark about it is called.
    fn kind(&self) -> &'static str {
        match self {
            Self::Image { .. } => IMPORT,
            Self::Target { .. } => EXPORT,
        }
    }
}

/// How much of a copy is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Extent {
    /// What is before this offset.
    UpTo(u64),
    /// All of it.
    Whole,
}

/// How far a copy of a source is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    source: Source,
    done: Extent,
}

/// What is known of an earlier copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Recalled {
    /// So much of it is there.
    Done(Extent),
    /// The file is another one, or has changed.
    Changed,
    /// Nothing.
    Nothing,
    /// Nothing can be: it would not be noticed if the source changed.
    Unknowable,
    /// Nothing can be: there is no place for it.
    NoPlace,
}

impl Recalled {
    /// Why a copy cannot go on, in the middle of a sentence.
    pub(crate) fn why_not(self) -> &'static str {
        match self {
            Self::Done(_) => "that was asked for",
            Self::Changed => "the image is another one than then, or has changed",
            Self::Nothing => "nothing is known of an earlier import",
            Self::Unknowable => "whether it has changed cannot be known",
            Self::NoPlace => NO_PLACE,
        }
    }
}

/// Why nothing is known to a user without a home.
pub(crate) const NO_PLACE: &str = "neither XDG_STATE_HOME nor HOME says where that is kept";

/// What is known of an import that is complete says that it is not, and cannot be removed.
#[derive(Debug, thiserror::Error)]
#[error(
    "the import is complete, and {path} still says that it is not and cannot be removed ({source}): remove \
     it, as 'siltstone import --resume' would replace what is written to the volume from now on"
)]
pub(crate) struct MarkStays {
    /// Where that is written.
    pub(crate) path: PathBuf,
    /// Why it stays.
    pub(crate) source: io::Error,
}

/// Where marks are kept.
#[derive(Debug)]
pub(crate) struct Marks(PathBuf);

impl Marks {
    /// Those of this user, if there is a place for them.
    pub(crate) fn of_user() -> Option<Self> {
        let path =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")));
        Some(Self(state?.join("siltstone")))
    }

    /// How far an earlier copy of `source` to a volume came.
    pub(crate) fn recall(&self, volume: &str, source: &Source) -> Recalled {
        match self.read(source.kind(), volume) {
            Some(mark) if mark.source == *source => Recalled::Done(mark.done),
            Some(_) => Recalled::Changed,
            None => Recalled::Nothing,
        }
    }

    /// Whether an import into a volume was begun and not completed.
    pub(crate) fn is_unfinished(&self, volume: &str) -> bool {
        self.read(IMPORT, volume).is_some_and(|mark| mark.done != Extent::Whole)
    }

    fn read(&self, kind: &str, volume: &str) -> Option<Mark> {
        let text = self.path(kind, volume).and_then(fs::read).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps how far a copy of `source` to a volume is when it begins. What was known of another one does
    /// not come back, not even by a power cut.
    pub(crate) fn begin(&self, volume: &str, source: &Source, done: Extent) -> io::Result<()> {
        self.keep(volume, source, done)?;
        File::open(&self.0)?.sync_all()
    }

    /// Keeps that all of a copy of `source` to a volume is there: after this, no part of it is taken for all
    /// that there is, not even by a power cut. If that cannot be kept, nothing is, and why is returned; an
    /// error if what was known stays, and would be believed.
    pub(crate) fn complete(
        &self,
        volume: &str,
        source: &Source,
    ) -> Result<Option<io::Error>, MarkStays> {
        let Err(error) = self.begin(volume, source, Extent::Whole) else { return Ok(None) };
        match self.forget(source.kind(), volume) {
            Ok(()) => Ok(Some(error)),
            Err(stays) => Err(MarkStays { path: self.named(source.kind(), volume), source: stays }),
        }
    }

    /// Keeps how far a copy of `source` to a volume has come.
    pub(crate) fn keep(&self, volume: &str, source: &Source, done: Extent) -> io::Result<()> {
        let path = self.path(source.kind(), volume)?;
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&self.0)?;
        let text = serde_json::to_vec(&Mark { source: source.clone(), done })?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        // So that no power cut leaves the name without the contents.
        file.sync_data()?;
        fs::rename(new, path)
    }

    /// Where they are, in sentences.
    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// Forgets how far an import into a volume came.
    pub(crate) fn forget_import(&self, volume: &str) -> io::Result<()> {
        self.forget(IMPORT, volume)
    }

    /// Forgets how far an export of a snapshot came.
    pub(crate) fn forget_export(&self, snapshot: &str) -> io::Result<()> {
        self.forget(EXPORT, snapshot)
    }

    fn forget(&self, kind: &str, volume: &str) -> io::Result<()> {
        match fs::remove_file(self.path(kind, volume)?) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            removed => removed?,
        }
        // Or else it might be back after a power cut.
        File::open(&self.0)?.sync_all()
    }

    /// Of an identity, which a server has told.
    fn path(&self, kind: &str, volume: &str) -> io::Result<PathBuf> {
        let is_plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        if volume.is_empty() || volume.len() > 64 || !volume.bytes().all(is_plain) {
            return Err(io::Error::other("the server told no volume's identity"));
        }
        Ok(self.named(kind, volume))
    }

    fn named(&self, kind: &str, volume: &str) -> PathBuf {
        self.0.join(format!("{kind}-{volume}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_volume_and_one_state_of_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks(folder.path().join("state"));
        let path = folder.path().join("image");
        fs::write(&path, "one").unwrap();
        let source =
            |reading: &str| Source::of(&fs::metadata(&path).unwrap(), reading.into()).unwrap();
        let first = source("raw");
        assert_eq!(marks.recall("a-1", &first), Recalled::Nothing);
        marks.begin("a-1", &first, Extent::UpTo(5)).unwrap();
        marks.keep("a-1", &first, Extent::UpTo(7)).unwrap();
        assert_eq!(marks.recall("a-1", &first), Recalled::Done(Extent::UpTo(7)));
        assert!(marks.is_unfinished("a-1") && !marks.is_unfinished("a-2"));
        assert_eq!(marks.recall("a-2", &first), Recalled::Nothing);
        assert_eq!(marks.recall("a-1", &source("qcow2")), Recalled::Changed);
        // The same length, and even the same time of modification.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, "two").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_eq!(marks.recall("a-1", &source("raw")), Recalled::Changed);
        marks.forget_import("a-1").unwrap();
        marks.forget_import("a-1").unwrap();
        assert_eq!(marks.recall("a-1", &first), Recalled::Nothing);
        marks.keep("a-1", &first, Extent::Whole).unwrap();
        assert_eq!(marks.recall("a-1", &first), Recalled::Done(Extent::Whole));
        assert!(!marks.is_unfinished("a-1"));
        // One cut short is none.
        fs::write(marks.path(IMPORT, "a-1").unwrap(), "{").unwrap();
        assert_eq!(marks.recall("a-1", &first), Recalled::Nothing);
    }

    /// Such as in a home that is full.
    #[test]
    fn a_complete_copy_that_cannot_be_marked_is_not_taken_for_a_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks(folder.path().to_owned());
        let path = folder.path().join("image");
        fs::write(&path, "one").unwrap();
        let source = Source::of(&fs::metadata(&path).unwrap(), "raw".into()).unwrap();
        assert!(marks.complete("a-1", &source).unwrap().is_none());
        assert_eq!(marks.recall("a-1", &source), Recalled::Done(Extent::Whole));

        marks.begin("a-1", &source, Extent::UpTo(5)).unwrap();
        // In the place of every new mark.
        fs::create_dir(folder.path().join("import-a-1.new")).unwrap();
        assert!(marks.complete("a-1", &source).unwrap().is_some());
        assert_eq!(marks.recall("a-1", &source), Recalled::Nothing);
        // And if the old one cannot be removed either, that is told.
        let kept = folder.path().join("import-a-1.json");
        fs::create_dir(&kept).unwrap();
        assert_eq!(marks.complete("a-1", &source).unwrap_err().path, kept);
    }

    #[test]
    fn nothing_but_an_identity_names_a_mark() {
        let marks = Marks("/nonexistent".into());
        let found = fs::metadata("/").unwrap();
        assert_eq!(Source::of(&found, String::new()), None);
        assert_eq!(Source::target(&found), None);
        for name in ["", "../x", "a/b", "x", &"a".repeat(65)] {
            marks.path(IMPORT, name).unwrap_err();
        }
    }
}
