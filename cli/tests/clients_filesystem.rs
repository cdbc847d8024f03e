//! File systems on a volume, through nbdfuse and a loop mount: files are copied in, the file
//! system is unmounted, checked, mounted again and compared. Needs root, FUSE and loop devices;
//! says so and passes where they are missing.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use support::{Folder, Server, has, run, siltstone};

/// A volume as a file, by nbdfuse.
struct Fused {
    fuse: Child,
    file: PathBuf,
}

impl Fused {
    fn mount(uri: &str, file: PathBuf, size_bytes: u64) -> Option<Self> {
        std::fs::write(&file, "").unwrap();
        let fuse = Command::new("nbdfuse").args([file.to_str().unwrap(), uri]).spawn().unwrap();
        let mut fused = Self { fuse, file };
        for _ in 0..400 {
            if std::fs::metadata(&fused.file).is_ok_and(|file| file.len() == size_bytes) {
                return Some(fused);
            }
            if fused.fuse.try_wait().unwrap().is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(25));
        }
        None
    }

    fn unmount(mut self) {
        run("fusermount3", ["-u", self.file.to_str().unwrap()]);
        self.fuse.wait().unwrap();
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").args(["-uz", self.file.to_str().unwrap()]).output();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// A loop mount, undone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(image: &Path, folder: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&folder).unwrap();
        let mount = Command::new("mount").arg("-o").arg("loop").arg(image).arg(&folder).output();
        let mount = mount.unwrap();
        if mount.status.success() {
            return Some(Self(folder));
        }
        println!("cannot mount: {}", String::from_utf8_lossy(&mount.stderr));
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(unmounted.success() || thread::panicking(), "umount {}", self.0.display());
    }
}

fn files_survive(make: &str, options: &[&str], check: &str, check_options: &[&str]) {
    let programs = ["nbdfuse", "fusermount3", "mount", make, check];
    let there = |program: &&str| Command::new(program).arg("-V").output().is_ok();
    if !programs.iter().all(there) || !Path::new("/dev/fuse").exists() {
        println!("one of {programs:?} or /dev/fuse is missing: not tested");
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("1G");
    let server = Server::start(&pool, &["--create", "disk=512M"]);
    let file = folder.path("disk");
    let Some(fused) = Fused::mount(&server.uri("disk"), file.clone(), 512 << 20) else {
        println!("this system does not let nbdfuse mount: not tested");
        return;
    };
    let disk = file.to_str().unwrap().to_owned();
    run(make, options.iter().copied().chain([disk.as_str()]));
    let source = ["/usr/lib/python3", "/usr/share/perl", "/etc"]
        .into_iter()
        .find(|path| Path::new(path).is_dir())
        .unwrap();
    let Some(mounted) = Mounted::mount(&file, folder.path("mount")) else { return };
    let copy = mounted.0.join("copy");
    let copy_text = copy.to_str().unwrap().to_owned();
    run("cp", ["-a", source, &copy_text]);
    run("cp", ["-a", source, &format!("{copy_text}2")]);
    run("rm", ["-rf", &format!("{copy_text}2")]);
    drop(mounted);
    run(check, check_options.iter().copied().chain([disk.as_str()]));
    fused.unmount();
    assert!(server.stop().success());

    // Once more by another server: what it finds is what the first one made durable.
    let server = Server::start(&pool, &[]);
    let fused = Fused::mount(&server.uri("disk"), file.clone(), 512 << 20).unwrap();
    let mounted = Mounted::mount(&file, folder.path("mount")).unwrap();
    run("diff", ["-r", "--no-dereference", source, &copy_text]);
    drop(mounted);
    fused.unmount();
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}

#[test]
fn an_ext4_file_system_survives() {
    if has("mke2fs") {
        files_survive("mkfs.ext4", &["-q", "-F"], "fsck.ext4", &["-f", "-n"]);
    }
}

#[test]
fn an_xfs_file_system_survives() {
    files_survive("mkfs.xfs", &["-q", "-f"], "xfs_repair", &["-n"]);
}
