//! What kind of image a file is, by the marks that each kind begins or ends with.
//!
//! A guest decides what its raw disk begins with, and can have it look like another kind. What such a
//! disk would lead to is bounded: of an image that is not raw, nothing but its own file is read unless
//! that is asked for (see [`super::qemu`]), and `--format raw` takes any file as it is.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, path::Path};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Enough of an image's beginning to recognise it.
pub(crate) const HEAD_BYTES: usize = 512;
/// The end of a VHD, which has its mark there if it is as long as its disk.
const FOOTER_BYTES: u64 = 512;

/// A kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImageFormat {
    /// The disk's bytes, and nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// QEMU's older one.
    Qcow,
    /// QEMU's enhanced one.
    Qed,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's and older Hyper-V's, .vhd.
    Vpc,
    /// Parallels' expandable one.
    Parallels,
}

impl ImageFormat {
    /// What qemu-img calls it, and `--format`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Parallels => "parallels",
        }
    }

    /// What a file's name says that it is, unless that is raw or nothing.
    pub(crate) fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "vhd" => Some(Self::Vpc),
            "hdd" => Some(Self::Parallels),
            "qcow2" | "qcow" | "qed" | "vmdk" | "vdi" | "vhdx" => {
                Self::from_str(&ending, false).ok()
            }
            _ => None,
        }
    }

    /// What begins like this; raw if nothing is known that does.
    pub(crate) fn of_head(head: &[u8]) -> Self {
        let word = |at: usize| head.get(at..at + 4).unwrap_or_default();
        match head {
            [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1, ..] => Self::Qcow,
            [b'Q', b'F', b'I', 0xfb, ..] => Self::Qcow2,
            [b'Q', b'E', b'D', 0, ..] => Self::Qed,
            _ if head.starts_with(b"KDMV") || head.starts_with(b"COWD") => Self::Vmdk,
            _ if head.starts_with(b"# Disk DescriptorFile") => Self::Vmdk,
            _ if head.starts_with(b"vhdxfile") => Self::Vhdx,
            _ if head.starts_with(b"conectix") => Self::Vpc,
            _ if head.starts_with(b"WithoutFreeSpace") => Self::Parallels,
            _ if head.starts_with(b"WithouFreSpacExt") => Self::Parallels,
            _ if word(64) == [0x7f, 0x10, 0xda, 0xbe] => Self::Vdi,
            _ => Self::Raw,
        }
    }

    /// What a file or block device of this size holds.
    pub(crate) fn of_file(file: &File, size_bytes: u64) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        let len = usize::try_from(size_bytes).unwrap_or(HEAD_BYTES).min(HEAD_BYTES);
        file.read_exact_at(&mut head[..len], 0)?;
        let found = Self::of_head(&head[..len]);
        if found == Self::Raw && size_bytes > FOOTER_BYTES {
            let mut footer = [0; 8];
            file.read_exact_at(&mut footer, size_bytes - FOOTER_BYTES)?;
            if footer == *b"conectix" {
                return Ok(Self::Vpc);
            }
        }
        Ok(found)
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for format in ImageFormat::value_variants() {
            let name = format.to_possible_value().unwrap();
            assert_eq!(name.get_name(), format.name());
        }
    }

    #[test]
    fn a_name_may_say_what_a_file_is() {
        for (name, format) in [
            ("a/disk.qcow2", Some(ImageFormat::Qcow2)),
            ("disk.VHD", Some(ImageFormat::Vpc)),
            ("disk.vhdx", Some(ImageFormat::Vhdx)),
            ("disk.raw", None),
            ("disk.img", None),
            ("qcow2", None),
            ("-", None),
        ] {
            assert_eq!(ImageFormat::of_name(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn images_are_recognised_by_their_marks_and_short_ones_are_raw() {
        assert_eq!(ImageFormat::of_head(b"QFI\xfb\0\0\0\x03"), ImageFormat::Qcow2);
        assert_eq!(ImageFormat::of_head(b"QFI\xfb\0\0\0\x01"), ImageFormat::Qcow);
        let mut vdi = [0; 512];
        vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(ImageFormat::of_head(&vdi), ImageFormat::Vdi);
        for short in [&b""[..], b"Q", b"QFI", &vdi[..66]] {
            assert_eq!(ImageFormat::of_head(short), ImageFormat::Raw);
        }
        let file = tempfile::tempfile().unwrap();
        for size_bytes in [0, 100, 512, 4096] {
            file.set_len(size_bytes).unwrap();
            assert_eq!(ImageFormat::of_file(&file, size_bytes).unwrap(), ImageFormat::Raw);
        }
        file.write_all_at(b"conectix", 4096 - 512).unwrap();
        assert_eq!(ImageFormat::of_file(&file, 4096).unwrap(), ImageFormat::Vpc);
    }
}
