//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// A program that was built beside this test.
///
/// # Panics
/// If it is not there, saying what to build.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own file");
    let dir = own.parent().expect("a directory");
    // Tests lie in `deps`, one below the programs.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or_else(|| Path::new("/")) } else { dir };
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not there: run `cargo build` in the repository first", path.display());
    path
}
