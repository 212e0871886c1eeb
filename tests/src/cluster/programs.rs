//! Where the programs under test are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where tasks see nothing of the host, and a repository may lie all the same.
const OUT_OF_SIGHT: [&str; 6] = ["/home", "/root", "/run", "/tmp", "/var/tmp", "/mnt"];
/// Where they see what there is.
const IN_SIGHT: &str = "/opt";

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

/// A program that was built beside this test, at a place that tasks see; a copy is removed with this.
#[derive(Debug)]
pub struct Visible {
    path: PathBuf,
    _copy: Option<TempDir>,
}

impl Visible {
    /// The program.
    ///
    /// # Panics
    /// If it is not there or cannot be copied.
    pub fn program(name: &str) -> Self {
        let path = program(name);
        if !OUT_OF_SIGHT.iter().any(|place| path.starts_with(place)) {
            return Visible { path, _copy: None };
        }
        let dir = tempfile::Builder::new().prefix("proffer-test").tempdir_in(IN_SIGHT).expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
        let copy = dir.path().join(name);
        fs::copy(&path, &copy).expect("copied");
        Visible { path: copy, _copy: Some(dir) }
    }

    /// Its path, as a command has it.
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path in UTF-8")
    }
}
