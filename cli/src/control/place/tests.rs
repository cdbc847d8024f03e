use std::{fs::File, os::unix::fs::PermissionsExt};

use tempfile::TempDir;

use super::*;

fn pool(folder: &TempDir, name: &str) -> PoolArgument {
    let path = folder.path().join(name);
    File::create_new(&path).unwrap();
    PoolArgument { path, control: None }
}

#[test]
fn the_socket_is_beside_the_pool_and_only_for_its_user() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder, "pool");
    let listener = Listener::bind(&pool).unwrap().unwrap();
    let path = folder.path().join("pool.control");
    assert_eq!(listener.path(), path.canonicalize().unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Also for those who name the pool by another name.
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&pool.path, &link).unwrap();
    let linked = PoolArgument { path: link, control: None };
    assert!(connect(&linked).unwrap().is_some());
    listener.close();
    assert!(!path.exists());
    connect(&pool).unwrap_err();
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced_and_another_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder, "pool");
    let path = folder.path().join("pool.control");
    let stale = new_socket().unwrap();
    with_address(&path, |address| bind(&stale, address)).unwrap();
    drop(stale);
    assert!(connect(&pool).unwrap_err().to_string().contains("Connection refused"));
    let listener = Listener::bind(&pool).unwrap().unwrap();
    assert_eq!(listener.path(), path.canonicalize().unwrap());
    let asked = PoolArgument { control: Some(Control::Path(path.clone())), ..pool.clone() };
    let taken = Listener::bind(&asked).unwrap_err().to_string();
    let listens = format!("process {} listens there", std::process::id());
    assert!(taken.contains(&listens), "{taken}");
    assert!(connect(&pool).unwrap().is_some());
    drop(listener);

    fs::write(&path, "precious").unwrap();
    let refused = Listener::bind(&asked).unwrap_err().to_string();
    assert!(refused.contains("not a socket"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_listener_removes_no_socket_but_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder, "pool");
    let path = folder.path().join("pool.control");
    let listener = Listener::bind(&pool).unwrap().unwrap();
    fs::remove_file(&path).unwrap();
    let other = Listener::bind(&pool).unwrap().unwrap();
    drop(listener);
    assert!(connect(&pool).unwrap().is_some());
    drop(other);
    assert!(!path.exists());
}

#[test]
fn paths_may_be_longer_than_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(150));
    fs::create_dir(&deep).unwrap();
    let path = deep.join("pool");
    File::create_new(&path).unwrap();
    let pool = PoolArgument { path, control: None };
    let listener = Listener::bind(&pool).unwrap().unwrap();
    assert!(deep.join("pool.control").exists());
    assert!(connect(&pool).unwrap().is_some());
    drop(listener);
    assert!(!deep.join("pool.control").exists());
}

#[test]
fn nobody_is_asked_and_nobody_listens_if_none_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let pool = PoolArgument { control: Some(Control::None), ..pool(&folder, "pool") };
    assert!(Listener::bind(&pool).unwrap().is_none());
    assert!(connect(&pool).unwrap().is_none());
}
