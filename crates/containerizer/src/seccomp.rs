//! The profiles of system calls that tasks may name, and what is installed for a task.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proffer_launcher::seccomp::{Profile, ProfileError, ProgramError};
use proffer_types::container::Seccomp;
use prost::bytes::Bytes;

use crate::Error;

/// The profiles that this node's operator has installed, by name; compiled once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeccompProfiles(Arc<BTreeMap<String, Bytes>>);

/// Why profiles cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// The directory or a file in it cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is no profile.
    #[error("{}", path.display())]
    Profile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ProfileError,
    },
    /// A profile is longer than the kernel takes.
    #[error("{}", path.display())]
    Program {
        /// Which.
        path: PathBuf,
        /// How long it is.
        #[source]
        source: ProgramError,
    },
}

impl SeccompProfiles {
    /// Reads each `NAME.json` in a directory; other files there are not looked at.
    ///
    /// # Errors
    /// The first file that is no profile: a node with half of its profiles would refuse tasks that it was set up for.
    pub fn load(dir: &Path) -> Result<Self, ProfilesError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| ProfilesError::Read { path, source }
        };
        let mut profiles = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(read(dir))? {
            let path = entry.map_err(read(dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            let json = fs::read_to_string(&path).map_err(read(&path))?;
            let profile = Profile::parse(&json)
                .map_err(|source| ProfilesError::Profile { path: path.clone(), source })?;
            let program =
                profile.compile().map_err(|source| ProfilesError::Program { path: path.clone(), source })?;
            profiles.insert(name.to_owned(), program.to_bytes().into());
        }
        Ok(Self(Arc::new(profiles)))
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The programs to install for a task; none at all stands for the default profile alone.
    pub(crate) fn programs(&self, wanted: &Seccomp) -> Result<Vec<Bytes>, Error> {
        let refused = |field: &str, why: String| Error::Refused { field: field.into(), why };
        let named = match self.0.get(&wanted.profile) {
            Some(program) => Some(program.clone()),
            None if wanted.profile.is_empty() => None,
            None => {
                let names: Vec<_> = self.names().collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let why = format!("{:?} is not installed on this agent; it has {known}", wanted.profile);
                return Err(refused("container.seccomp.profile", why));
            }
        };
        if wanted.also.is_empty() {
            return Ok(named.into_iter().collect());
        }
        let also = |why: String| refused("container.seccomp.also", why);
        let more = Profile::parse(&wanted.also).map_err(|error| also(error.to_string()))?;
        let more = more.compile().map_err(|error| also(error.to_string()))?;
        let first = match named {
            Some(program) => program,
            None => Profile::default().compile().map_err(|error| also(error.to_string()))?.to_bytes().into(),
        };
        Ok(vec![first, more.to_bytes().into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SYNC: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]}"#;

    #[test]
    fn profiles_are_taken_from_a_directory_and_named_when_unknown() {
        let dir = std::env::temp_dir().join(format!("proffer-test-seccomp-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("no-sync.json"), NO_SYNC).unwrap();
        fs::write(dir.join("README"), "not a profile").unwrap();
        let profiles = SeccompProfiles::load(&dir);
        fs::write(dir.join("broken.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW", "colour": "red"}"#)
            .unwrap();
        let broken = SeccompProfiles::load(&dir);
        fs::remove_dir_all(&dir).unwrap();

        let profiles = profiles.expect("loaded");
        assert_eq!(profiles.names().collect::<Vec<_>>(), ["no-sync"]);
        let ask = |profile: &str, also: &str| {
            profiles.programs(&Seccomp { profile: profile.into(), also: also.into() })
        };
        assert_eq!(ask("", "").expect("the default").len(), 0);
        assert_eq!(ask("no-sync", "").expect("known").len(), 1);
        assert_eq!(ask("", NO_SYNC).expect("more than the default").len(), 2);
        let unknown = ask("strict", "").unwrap_err().to_string();
        assert!(unknown.contains("container.seccomp.profile") && unknown.contains("no-sync"), "{unknown}");
        let bad = ask("", "{}").unwrap_err().to_string();
        assert!(bad.contains("container.seccomp.also"), "{bad}");
        let broken = broken.expect_err("an unknown field");
        assert!(
            matches!(&broken, ProfilesError::Profile { path, .. } if path.ends_with("broken.json")),
            "{broken}"
        );
    }
}
