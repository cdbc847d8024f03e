//! Images that are not raw, read by `qemu-img`.
//!
//! Why so: QEMU knows every kind of image and what is wrong with each; a reader of our own would be
//! thousands of lines that parse what strangers made, inside a process that has the pool open. How:
//! `qemu-img convert -n` writes the disk's contents to an NBD export, front to back, holes as holes.
//! Its standard input is one end of a socket pair; whoever imports serves NBD at the other
//! ([`super::converted`]). So nothing is converted to a file first, there is no address that others
//! could connect to, and a conversion can begin anywhere, which resuming needs. The process is always
//! a child of the command, with the rights of whoever gave it, also if a server has the pool.
//!
//! An image can name other files as parts of itself (backing files, data files, extents), any file
//! that its reader can read. What strangers made could so show them the reader's files. They are read
//! on demand only (`--backing`), and named otherwise.

use std::{
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{fs::FileTypeExt, net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
};

use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use super::format::ImageFormat;
use crate::errors::CliError;

const PROGRAM: &str = "qemu-img";
/// The export that it writes to.
pub(crate) const EXPORT: &str = "image";
/// What is kept of what it says.
const MAX_SAID_BYTES: u64 = 4096;

/// An image that is not raw.
#[derive(Clone, Debug)]
pub(crate) struct QemuImage {
    /// What it is called in sentences.
    name: String,
    /// What qemu-img is told to open: options in JSON, so that nothing in a name means anything.
    options: Value,
    pub(crate) format: ImageFormat,
    /// The disk's size.
    pub(crate) size_bytes: u64,
}

/// What `qemu-img info` knows, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Value,
}

impl Info {
    /// The files that are part of the image besides `own`.
    fn other_files(&self, own: &str) -> Vec<String> {
        let data = self.format_specific.as_ref().map(|specific| &specific.data);
        let data_file = data.and_then(|data| data["data-file"].as_str());
        let extents = data.and_then(|data| data["extents"].as_array()).into_iter().flatten();
        let extents = extents.filter_map(|extent| extent["filename"].as_str());
        let extents = extents.filter(|name| *name != own);
        let others = self.backing_filename.as_deref().into_iter().chain(data_file).chain(extents);
        others.map(String::from).collect()
    }
}

impl QemuImage {
    /// Finds out about the image at `path`; other files that it names are part of it if `others` are
    /// allowed, and otherwise an error.
    pub(crate) fn find(path: &Path, format: ImageFormat, others: bool) -> Result<Self, CliError> {
        let name = path.display().to_string();
        let unreadable = |source: io::Error| CliError::file("open", &name, source);
        let own = std::path::absolute(path).map_err(unreadable)?;
        let own = own.to_str().ok_or_else(|| CliError::Impossible {
            reason: format!("{name} is a name that qemu-img cannot be told: rename the file"),
        })?;
        let found = std::fs::metadata(path).map_err(unreadable)?;
        let driver = if found.file_type().is_block_device() { "host_device" } else { "file" };
        let mut options =
            json!({ "driver": format.name(), "file": { "driver": driver, "filename": own } });
        if !others {
            // Whatever becomes of the file after this look at it.
            options["backing"] = Value::Null;
        }
        let arguments = ["info", "--output=json", &pseudo_name(&options)];
        let output = Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|source| cannot_start(&name, format, source))?;
        if !output.status.success() {
            let said = told(&output.stderr, &options);
            return Err(CliError::NotConverted { file: name, said });
        }
        let info = serde_json::from_slice(&output.stdout);
        let info: Info = info.map_err(|error| CliError::NotConverted {
            file: name.clone(),
            said: format!("its answer cannot be understood ({error})"),
        })?;
        let files = info.other_files(own);
        if !others && !files.is_empty() {
            return Err(CliError::OtherFiles { file: name, format, others: files.join(", ") });
        }
        Ok(Self { name, options, format, size_bytes: info.virtual_size })
    }

    /// Begins to convert it, from an offset on; the image's contents come as NBD requests on the
    /// socket.
    pub(crate) fn convert(&self, from_bytes: u64) -> Result<(UnixStream, Conversion), CliError> {
        let system = |source| CliError::System { action: "start qemu-img", source };
        let (ours, theirs) = UnixStream::pair().map_err(system)?;
        let source = match from_bytes {
            0 => self.options.clone(),
            _ => json!({ "driver": "raw", "offset": from_bytes, "file": self.options }),
        };
        // In order, as it is without -W: what was received is a beginning of the image.
        let mut child = Command::new(PROGRAM)
            .args(["convert", "-n", "--target-image-opts"])
            .arg(pseudo_name(&source))
            .arg(format!("driver=nbd,server.type=fd,server.str=0,export={EXPORT}"))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for this program, which ends it in order.
            .process_group(0)
            .spawn()
            .map_err(system)?;
        let stderr = child.stderr.take().expect("it was asked for");
        let said = move || said(stderr, &source);
        let said = thread::Builder::new().name("qemu-img".into()).spawn(said);
        let said = said.map_err(system)?;
        Ok((ours, Conversion { name: self.name.clone(), child, said: Some(said) }))
    }

    /// Converts it to a raw file, which has the disk's size and is all holes, in a directory.
    pub(crate) fn convert_to(&self, raw: &Path, directory: &Path) -> Result<(), CliError> {
        let output = Command::new(PROGRAM)
            // What it says is looked at below.
            .env("LC_ALL", "C")
            .args(["convert", "-n", "--target-is-zero", "-O", "raw"])
            .arg(pseudo_name(&self.options))
            .arg(raw)
            .stdin(Stdio::null())
            .output();
        let output =
            output.map_err(|source| CliError::System { action: "start qemu-img", source })?;
        if output.status.success() {
            return Ok(());
        }
        let (said, file) = (told(&output.stderr, &self.options), self.name.clone());
        match write_error(&said) {
            Some(source) => {
                Err(CliError::NotConvertedIn { file, directory: directory.into(), source })
            }
            None => Err(CliError::NotConverted { file, said }),
        }
    }
}

/// A conversion under way. Dropping it ends it.
pub(crate) struct Conversion {
    name: String,
    child: Child,
    said: Option<JoinHandle<String>>,
}

impl Conversion {
    /// Waits for its end, when it has no more to send; an error if it has not sent the whole image.
    pub(crate) fn end(mut self) -> Result<(), CliError> {
        let status = self.child.wait();
        let status =
            status.map_err(|source| CliError::System { action: "wait for qemu-img", source })?;
        if status.success() {
            return Ok(());
        }
        let said =
            self.said.take().and_then(|said| said.join().ok()).filter(|said| !said.is_empty());
        let said = said.unwrap_or_else(|| status.to_string());
        Err(CliError::NotConverted { file: self.name.clone(), said })
    }
}

impl Drop for Conversion {
    fn drop(&mut self) {
        // Of one that has ended, this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Options as what qemu-img takes for a file's name.
fn pseudo_name(options: &Value) -> String {
    format!("json:{options}")
}

/// What it says, to its end.
fn said(mut stderr: impl Read, source: &Value) -> String {
    let mut kept = Vec::new();
    // What cannot be read was not said.
    let _ = stderr.by_ref().take(MAX_SAID_BYTES).read_to_end(&mut kept);
    // It must not wait for somebody to hear the rest.
    let _ = io::copy(&mut stderr, &mut io::sink());
    told(&kept, source)
}

/// The same in one line, without its name and what it calls the image.
fn told(stderr: &[u8], source: &Value) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.replace(&format!("Could not open '{}': ", pseudo_name(source)), "");
    let lines = text.lines().map(|line| line.trim_start_matches("qemu-img: ").trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// Why it could not write, if that is what it says.
fn write_error(said: &str) -> Option<io::Error> {
    if !said.contains("error while writing") {
        return None;
    }
    let known = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::IO].map(io::Error::from);
    let is_said = |error: &io::Error| {
        let text = error.to_string();
        // Without the number, which it does not say.
        text.split(" (os error").next().is_some_and(|text| said.contains(text))
    };
    Some(known.into_iter().find(is_said).unwrap_or_else(|| io::Error::other(said)))
}

fn cannot_start(name: &str, format: ImageFormat, source: io::Error) -> CliError {
    match source.kind() {
        io::ErrorKind::NotFound => CliError::NoQemuImg { file: name.into(), format },
        _ => CliError::System { action: "start qemu-img", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_besides_its_own_that_an_image_names_is_found() {
        let info = |text: &str| serde_json::from_str::<Info>(text).unwrap();
        let alone = info(
            r#"{ "virtual-size": 5, "format-specific": { "type": "vmdk", "data": {
            "extents": [{ "filename": "/own.vmdk" }] } } }"#,
        );
        assert_eq!(alone.other_files("/own.vmdk"), Vec::<String>::new());
        assert_eq!(alone.other_files("/a.vmdk"), ["/own.vmdk"]);
        let many = info(
            r#"{ "virtual-size": 5, "backing-filename": "/etc/shadow",
            "format-specific": { "type": "qcow2", "data": { "data-file": "d" } } }"#,
        );
        assert_eq!(many.other_files("/own"), ["/etc/shadow", "d"]);
        assert_eq!(info(r#"{ "virtual-size": 5 }"#).other_files("/own"), Vec::<String>::new());
    }

    #[test]
    fn a_lack_of_room_is_told_from_an_image_that_cannot_be_read() {
        let full = write_error("error while writing at byte 0: No space left on device").unwrap();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let other = write_error("error while writing at byte 0: Whatever").unwrap();
        assert!(other.to_string().ends_with("Whatever"));
        assert!(write_error("error while reading at byte 0: Input/output error").is_none());
    }

    #[test]
    fn what_it_says_fits_a_sentence() {
        let source = json!({ "driver": "qcow2" });
        let text =
            b"qemu-img: Could not open 'json:{\"driver\":\"qcow2\"}': one\n\nqemu-img: two\n";
        assert_eq!(told(text, &source), "one; two");
        let much = vec![b'x'; 1 << 20];
        assert_eq!(said(&much[..], &source).len(), MAX_SAID_BYTES as usize);
    }
}
