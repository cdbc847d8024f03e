//! File systems on a volume, through nbdfuse and a loop mount: files are copied in, the file
//! system is unmounted, checked, mounted again and compared; and one of which snapshots are taken
//! while it is written to is mounted as it was at each. Needs root, FUSE and loop devices;
//! says so and passes where they are missing.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
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

/// Whether everything that this needs is here.
fn have(programs: &[&str]) -> bool {
    let there = |program: &&str| Command::new(program).arg("-V").output().is_ok();
    let all = programs.iter().all(there) && Path::new("/dev/fuse").exists();
    if !all {
        println!("one of {programs:?} or /dev/fuse is missing: not tested");
    }
    all
}

fn files_survive(make: &str, options: &[&str], check: &str, check_options: &[&str]) {
    if !have(&["nbdfuse", "fusermount3", "mount", make, check]) {
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

/// Files that were synced before a snapshot are in it, whole; the file system in it recovers as after
/// a power cut.
#[test]
fn a_file_system_recovers_in_snapshots_that_were_taken_while_it_was_written() {
    if !has("mke2fs") || !have(&["nbdfuse", "fusermount3", "mount", "fsck.ext4"]) {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("512M");
    let server = Server::start(&pool, &["--create", "disk=128M"]);
    let file = folder.path("disk");
    let Some(fused) = Fused::mount(&server.uri("disk"), file.clone(), 128 << 20) else {
        println!("this system does not let nbdfuse mount: not tested");
        return;
    };
    run("mkfs.ext4", ["-q", "-F", file.to_str().unwrap()]);
    let Some(mounted) = Mounted::mount(&file, folder.path("mount")) else { return };
    let content = |number: u32| number.to_le_bytes().repeat(50_000);
    let synced = AtomicU32::new(0);
    // How many files had been synced when each snapshot was asked for.
    let mut known = Vec::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (synced, stop, mounted) = (&synced, &stop, &mounted);
        let writer = scope.spawn(move || {
            for number in 0..400 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let mut file = File::create(mounted.0.join(number.to_string())).unwrap();
                file.write_all(&content(number)).unwrap();
                file.sync_all().unwrap();
                synced.store(number + 1, Ordering::SeqCst);
            }
        });
        for snapshot in 0..3 {
            thread::sleep(Duration::from_millis(400));
            known.push(synced.load(Ordering::SeqCst));
            let name = format!("disk@{snapshot}");
            siltstone(["snapshot", "create", &pool, &name]).succeeds();
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    drop(mounted);
    fused.unmount();
    for (snapshot, count) in known.iter().enumerate() {
        // The journal of a file system that was in use is replayed where that can be written.
        let clone = format!("clone{snapshot}");
        siltstone(["clone", &pool, &format!("disk@{snapshot}"), &clone]).succeeds();
        let file = folder.path(&clone);
        let fused = Fused::mount(&server.uri(&clone), file.clone(), 128 << 20).unwrap();
        let mounted = Mounted::mount(&file, folder.path("mount")).unwrap();
        for number in 0..*count {
            let found = fs::read(mounted.0.join(number.to_string())).unwrap();
            assert!(found == content(number), "file {number} of {count} in snapshot {snapshot}");
        }
        drop(mounted);
        run("fsck.ext4", ["-f", "-n", file.to_str().unwrap()]);
        fused.unmount();
    }
    println!("snapshots held {known:?} synced files");
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}
