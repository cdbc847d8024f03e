//! What `torture/mutations/run.sh` breaks on purpose still applies to the code as it is. Whether torture notices it
//! takes longer than a test may: the script tells.

use std::{path::Path, process::Command};

#[test]
fn every_mutation_applies_to_the_code_as_it_is() {
    if Command::new("git").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "git is not installed");
        println!("git is not installed: not tested");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace");
    let outside = root.parent().expect("the workspace is in a directory");
    let patches: Vec<_> = std::fs::read_dir(root.join("torture/mutations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    assert!(patches.len() > 30, "only {} mutations were found", patches.len());
    for patch in patches {
        let output = Command::new("git")
            .args(["apply", "--check"])
            .arg(&patch)
            .current_dir(root)
            // In a repository around this one, git would pass over what is not in a patch's place.
            .env("GIT_CEILING_DIRECTORIES", outside)
            .output()
            .expect("git runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", patch.display());
    }
}
