//! Who a task runs as.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use crate::Users;

/// A user as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Why a task may not run as its user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("user {0:?} is not known on this agent")]
    Unknown(String),
    #[error("user {0:?} is not among those that this agent lets tasks run as (its --task-users)")]
    NotAllowed(String),
    #[error("user {0:?} is not the agent's own, and it does not run as root")]
    NotOwn(String),
    #[error("user {0:?} cannot be looked up: {1}")]
    Lookup(String, String),
}

/// Stands for every user but root among those that are allowed.
const ANY: &str = "*";
/// Who a task runs as that names nobody else.
const NOBODY: &str = "nobody";
/// How long an answer is believed: users may be kept elsewhere than in the file that is looked at.
const BELIEVED: Duration = Duration::from_secs(10);
/// How long the file of users is taken to be the same. A launch that comes so soon after a change might as well have come
/// before it.
const LOOKED: Duration = Duration::from_millis(50);
/// Most answers that are kept; a task may name anything.
const KNOWN_MAX: usize = 256;

/// Finds the account of `name`; an empty name is `nobody`, or the agent's own user if that is not root. `nobody` is
/// always allowed, others if they are among `allowed`; root only by its name.
fn account(name: &str, allowed: &BTreeSet<String>) -> Result<Account, Refused> {
    let own = Uid::effective();
    let found = match name {
        "" if !own.is_root() => User::from_uid(own),
        "" => User::from_name(NOBODY),
        name => User::from_name(name),
    };
    let shown = if name.is_empty() { NOBODY } else { name };
    let user = match found {
        Ok(Some(user)) => user,
        // A uid without an entry is common in images of containers.
        Ok(None) if name.is_empty() && !own.is_root() => {
            return Ok(Account { uid: own.as_raw(), gid: nix::unistd::Gid::effective().as_raw() });
        }
        Ok(None) => return Err(Refused::Unknown(shown.to_owned())),
        Err(error) => return Err(Refused::Lookup(shown.to_owned(), error.to_string())),
    };
    let account = Account { uid: user.uid.as_raw(), gid: user.gid.as_raw() };
    let listed = allowed.contains(shown) || (account.uid != 0 && (shown == NOBODY || allowed.contains(ANY)));
    if own.is_root() && !listed {
        return Err(Refused::NotAllowed(shown.to_owned()));
    }
    if !own.is_root() && user.uid != own {
        return Err(Refused::NotOwn(shown.to_owned()));
    }
    Ok(account)
}

/// Finds the account of `name` inside a range of ids that nobody else has: any name of this node, or any number, for
/// what it is outside is nobody.
fn private_account(name: &str) -> Result<Account, Refused> {
    if let Ok(uid) = name.parse::<u32>() {
        let inside = uid < Users::RANGE;
        return if inside { Ok(Account { uid, gid: uid }) } else { Err(Refused::Unknown(name.to_owned())) };
    }
    let shown = if name.is_empty() { NOBODY } else { name };
    match User::from_name(shown) {
        Ok(Some(user)) if user.uid.as_raw() < Users::RANGE && user.gid.as_raw() < Users::RANGE => {
            Ok(Account { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
        }
        Ok(_) => Err(Refused::Unknown(shown.to_owned())),
        Err(error) => Err(Refused::Lookup(shown.to_owned(), error.to_string())),
    }
}

/// What was looked up. A look-up reads several files and may ask a daemon; the answers are believed while the file of
/// users is the same, and for a while.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    known: BTreeMap<(String, bool), Account>,
    file: Option<(u64, i64, i64, u64)>,
    since: Option<Instant>,
    looked: Option<Instant>,
}

impl Accounts {
    /// The account of a user, in a range of its own or among the node's.
    pub(crate) fn find(
        &mut self,
        name: &str,
        private: bool,
        allowed: &BTreeSet<String>,
    ) -> Result<Account, Refused> {
        let now = Instant::now();
        if self.looked.is_none_or(|looked| now.duration_since(looked) > LOOKED) {
            let file = fs::metadata("/etc/passwd").ok();
            let file = file.map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()));
            if self.file != file || self.since.is_none_or(|since| now.duration_since(since) > BELIEVED) {
                *self = Self { file, since: Some(now), ..Self::default() };
            }
            self.looked = Some(now);
        }
        let key = (name.to_owned(), private);
        if let Some(account) = self.known.get(&key) {
            return Ok(*account);
        }
        let account = if private { private_account(name)? } else { account(name, allowed)? };
        if self.known.len() < KNOWN_MAX {
            self.known.insert(key, account);
        }
        Ok(account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_users_that_are_allowed() {
        let allowed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (none, any, root) = (allowed(&[]), allowed(&["*"]), allowed(&["root"]));
        if !Uid::effective().is_root() {
            assert!(matches!(account("root", &root), Err(Refused::NotOwn(_))));
            return;
        }
        for names in [&none, &any] {
            assert_eq!(account("root", names), Err(Refused::NotAllowed("root".into())));
        }
        assert_eq!(account("root", &root), Ok(Account { uid: 0, gid: 0 }));
        assert_eq!(account("daemon", &none), Err(Refused::NotAllowed("daemon".into())));
        assert_eq!(account("daemon", &root), Err(Refused::NotAllowed("daemon".into())));
        assert!(account("daemon", &any).is_ok() && account("daemon", &allowed(&["daemon"])).is_ok());
        assert_eq!(account("proffer-no-such", &any), Err(Refused::Unknown("proffer-no-such".into())));
        assert_eq!(account("", &none), account("nobody", &none));
        assert_ne!(account("", &none).map(|account| account.uid), Ok(0));
        // Twice: found, and then known.
        let mut accounts = Accounts::default();
        for _ in 0..2 {
            assert_eq!(accounts.find("root", true, &none), Ok(Account { uid: 0, gid: 0 }));
            assert_eq!(accounts.find("root", false, &none), Err(Refused::NotAllowed("root".into())));
            assert_eq!(accounts.find("1234", true, &none), Ok(Account { uid: 1234, gid: 1234 }));
            assert_eq!(accounts.find("1234", false, &any), Err(Refused::Unknown("1234".into())));
            assert_eq!(accounts.find("65536", true, &none), Err(Refused::Unknown("65536".into())));
        }
    }
}
