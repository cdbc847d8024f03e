//! What is broken on purpose ([`mutations`](../mutations/run.sh)) still applies to the code as it is.
//! Whether torture notices it takes longer than a test may; `torture/mutations/run.sh` tells.

use std::{path::Path, process::Command};

#[test]
fn every_mutation_applies_to_the_code_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace");
    let patches: Vec<_> = std::fs::read_dir(root.join("torture/mutations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    assert!(patches.len() > 30, "only {} mutations were found", patches.len());
    let stale: Vec<_> = patches
        .iter()
        .filter(|patch| {
            let apply = Command::new("git")
                .args(["apply", "--check"])
                .arg(patch)
                .current_dir(root)
                .status()
                .expect("git runs");
            !apply.success()
        })
        .collect();
    assert!(stale.is_empty(), "these do not apply any more: {stale:?}");
}
