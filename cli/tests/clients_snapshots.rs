//! Snapshots and clones through a running server, with real clients. (For a file system in use, see
//! `clients_filesystem`.)

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::fs;

use siltstone_torture::kill::nbd_client::{ClientError, Durability, NbdClient};
use support::{Folder, MIB, Server, assert_same, has, run, siltstone};

#[test]
fn a_snapshot_is_an_export_that_qemu_reads_and_nobody_writes() {
    if !has("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let pool = folder.pool("256M");
    let original = folder.image("original");
    let original_size = fs::metadata(&original).unwrap().len();
    siltstone(["import", &pool, "disk", &folder.text("original")]).succeeds();
    let server = Server::start(&pool, &[]);
    siltstone(["snapshot", "create", &pool, "disk@as imported"]).succeeds();
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    let changes = vec![7; MIB as usize];
    client.write(MIB, &changes, Durability::Later).unwrap();
    client.trim(3 * MIB, 2 << 20, Durability::Later).unwrap();

    let uri = server.uri("disk@as imported").replace(' ', "%20");
    run("qemu-img", ["convert", "-f", "raw", "-O", "raw", &uri, &folder.text("back")]);
    assert_same(&original, &folder.path("back"));
    let mut snapshot = NbdClient::connect(server.socket(), "disk@as imported").unwrap();
    let refused = snapshot.write(0, &[1; 4096], Durability::Later).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");

    // A clone begins there, and goes its own way.
    siltstone(["clone", &pool, "disk@as imported", "clone"]).succeeds();
    let mut clone = NbdClient::connect(server.socket(), "clone").unwrap();
    clone.write(0, &[9; 4096], Durability::Now).unwrap();
    let mut block = vec![0; 4096];
    clone.read(MIB, &mut block).unwrap();
    assert!(block == fs::read(&original).unwrap()[MIB as usize..][..4096]);

    // Who had the volume open when it is rolled back is told, and finds it restored.
    siltstone(["snapshot", "rollback", &pool, "disk@as imported"]).succeeds();
    client.read(0, &mut block).unwrap_err();
    siltstone(["export", &pool, "disk", &folder.text("restored")]).succeeds();
    assert_same(&original, &folder.path("restored"));
    let mut client = NbdClient::connect(server.socket(), "disk").unwrap();
    client.write(original_size - 4096, &[3; 4096], Durability::Now).unwrap();

    siltstone(["snapshot", "delete", &pool, "disk@as imported"]).succeeds();
    snapshot.read(0, &mut block).unwrap_err();
    NbdClient::connect(server.socket(), "disk@as imported").unwrap_err();
    drop((client, clone, snapshot));
    assert!(server.stop().success());
    siltstone(["check", &pool]).succeeds();
}
