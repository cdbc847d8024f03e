//! A real disk image of more than a gigabyte, through every door and back: identical, stored in
//! little more than its codec needs, and a changed copy of it in little more than its changes,
//! with an index that holds all fingerprints and with one of a sixteenth of that.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{
    collections::HashSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{Folder, MIB, Server, assert_same, has, run, siltstone};

const WANTED_BYTES: u64 = 1 << 30;

/// Copies installed files until there is a gigabyte of them.
fn tree(folder: &Folder) -> Option<PathBuf> {
    let tree = folder.path("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut bytes = 0;
    for source in ["/usr/share", "/usr/include", "/usr/bin", "/usr/lib/gcc", "/usr/lib"] {
        if bytes >= WANTED_BYTES {
            break;
        }
        if Path::new(source).is_dir() {
            let target = tree.join(source.replace('/', "-"));
            run("cp", ["-a", source, target.to_str().unwrap()]);
            let size = run("du", ["-s", "--block-size=1", target.to_str().unwrap()]);
            bytes += size.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        }
    }
    (bytes >= WANTED_BYTES).then_some(tree)
}

/// An ext4 image of a tree.
fn image(folder: &Folder, tree: &Path, name: &str) -> PathBuf {
    let used = run("du", ["-s", "--block-size=1M", tree.to_str().unwrap()]);
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    let path = folder.path(name);
    let size = format!("{}M", used * 5 / 4 + 128);
    let tree = tree.to_str().unwrap();
    let options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-i", "8192", "-d", tree];
    run("mke2fs", options.into_iter().chain([path.to_str().unwrap(), &size]));
    path
}

/// An independent count of a series of images.
#[derive(Default)]
struct Count {
    seen: HashSet<blake3::Hash>,
    blocks: u64,
    duplicates: u64,
    /// The distinct blocks' bytes when 32 KiB of them at a time are compressed at zstd level 1.
    compressed_bytes: u64,
    pending: Vec<u8>,
}

impl Count {
    fn add(&mut self, image: &Path) {
        let mut file = File::open(image).unwrap();
        let mut block = [0; 4096];
        while file.read_exact(&mut block).is_ok() {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            self.blocks += 1;
            if !self.seen.insert(blake3::hash(&block)) {
                self.duplicates += 1;
                continue;
            }
            self.pending.extend_from_slice(&block);
            if self.pending.len() == 32 << 10 {
                self.compress();
            }
        }
        self.compress();
    }

    fn compress(&mut self) {
        let packed = zstd::bulk::compress(&self.pending, 1).unwrap();
        self.compressed_bytes += packed.len().min(self.pending.len()) as u64;
        self.pending.clear();
    }

    fn distinct_bytes(&self) -> u64 {
        self.seen.len() as u64 * 4096
    }
}

fn stat(pool: &str) -> Value {
    serde_json::from_str(&siltstone(["stat", pool, "--json"]).succeeds()).unwrap()
}

fn number(stat: &Value, key: &str) -> u64 {
    stat[key].as_u64().unwrap()
}

#[test]
fn a_large_image_is_kept_small_and_its_changed_copy_costs_its_changes() {
    if !["mke2fs", "qemu-img", "nbdcopy"].into_iter().all(has) {
        return;
    }
    let folder = Folder::new();
    let Some(tree) = tree(&folder) else {
        println!("less than a gigabyte of files is installed: not tested");
        return;
    };
    let first = image(&folder, &tree, "first");
    // Every thirtieth file goes, every twentieth grows: later ones move.
    let change = "find . -type f -size -256k | sort | awk 'NR%30==1' | tr '\\n' '\\0' | xargs -0 rm; \
                  find . -type f -size -256k | sort | awk 'NR%20==1' | \
                  while read -r f; do echo changed >> \"$f\"; done";
    run("sh", ["-c", &format!("cd {} && {change}", tree.display())]);
    let second = image(&folder, &tree, "second");
    run("rm", ["-rf", tree.to_str().unwrap()]);

    let pool = folder.pool("6G");
    let (first_text, second_text) = (first.to_str().unwrap(), second.to_str().unwrap());
    let size = std::fs::metadata(&first).unwrap().len();
    let server = Server::start(&pool, &["--create", &format!("first={size}")]);
    let uri = server.uri("first");
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", first_text, &uri]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", first_text, &uri]);
    let back = folder.path("back");
    run("nbdcopy", [&uri, back.to_str().unwrap()]);
    assert_same(&first, &back);
    std::fs::remove_file(&back).unwrap();
    assert!(server.stop().success());

    let mut count = Count::default();
    count.add(&first);
    let after_first = stat(&pool);
    let unique = number(&after_first, "unique_bytes");
    assert!(unique.abs_diff(count.distinct_bytes()) * 100 <= count.distinct_bytes());
    let stored = number(&after_first, "stored_bytes") + number(&after_first, "map_bytes");
    println!(
        "first copy: {} MiB not zero, {} MiB distinct, {} MiB stored, {} MiB by the codec alone",
        count.blocks >> 8,
        count.distinct_bytes() >> 20,
        stored >> 20,
        count.compressed_bytes >> 20
    );
    assert!(stored * 100 <= count.compressed_bytes * 105, "{stored} {}", count.compressed_bytes);

    siltstone(["import", &pool, "second", second_text]).succeeds();
    siltstone(["export", &pool, "second", back.to_str().unwrap()]).succeeds();
    assert_same(&second, &back);
    count.add(&second);
    let after_second = stat(&pool);
    let unique = number(&after_second, "unique_bytes");
    assert!(unique.abs_diff(count.distinct_bytes()) * 100 <= count.distinct_bytes());
    siltstone(["check", &pool]).succeeds();
    std::fs::remove_file(&pool).unwrap();

    // The same with a sixteenth of the memory that all fingerprints need, at 8 bytes each.
    let index_bytes = (count.distinct_bytes() / 4096 * 8 / 16).to_string();
    let pool = folder.text("sampled");
    siltstone(["create", &pool, "--size", "6G", "--index-memory", &index_bytes]).succeeds();
    siltstone(["import", &pool, "first", first_text]).succeeds();
    siltstone(["import", &pool, "second", second_text]).succeeds();
    let sampled = stat(&pool);
    let stored_blocks = number(&sampled, "unique_bytes") / 4096;
    let found = count.blocks - stored_blocks;
    println!(
        "with {} MiB of {} duplicates, index of {index_bytes} bytes: {} found",
        count.blocks >> 8,
        count.duplicates,
        found
    );
    assert!(number(&sampled, "index_sample_bits") >= 3, "the index was meant to be too small");
    assert!(found * 100 >= count.duplicates * 97, "{found} of {}", count.duplicates);
    assert!(count.duplicates > 100 * MIB / 4096, "the images were meant to have much in common");
}
