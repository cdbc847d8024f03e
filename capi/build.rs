//! Names the shared library by the versions that work in each other's place: before 1.0 those of one
//! minor version, as docs/semver.md says.

fn main() {
    let part = |name| std::env::var(name).unwrap_or_else(|_| panic!("Cargo sets {name}"));
    let (major, minor) = (part("CARGO_PKG_VERSION_MAJOR"), part("CARGO_PKG_VERSION_MINOR"));
    let version = if major == "0" { format!("0.{minor}") } else { major };
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libsiltstone.so.{version}");
    println!("cargo::rerun-if-changed=build.rs");
}
