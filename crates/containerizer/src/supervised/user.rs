//! Who a task runs as.

use std::collections::BTreeSet;

use nix::unistd::{Uid, User};

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

/// Finds the account of `name`; an empty name is `nobody`, or the agent's own user if that is not root. `nobody` is
/// always allowed, others if they are among `allowed`; root only by its name.
pub(crate) fn account(name: &str, allowed: &BTreeSet<String>) -> Result<Account, Refused> {
    let own = Uid::effective();
    let found = match name {
        "" if !own.is_root() => User::from_uid(own),
        "" => User::from_name("nobody"),
        name => User::from_name(name),
    };
    let shown = if name.is_empty() { "nobody" } else { name };
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
    let listed =
        allowed.contains(shown) || (account.uid != 0 && (shown == "nobody" || allowed.contains(ANY)));
    if own.is_root() && !listed {
        return Err(Refused::NotAllowed(shown.to_owned()));
    }
    if !own.is_root() && user.uid != own {
        return Err(Refused::NotOwn(shown.to_owned()));
    }
    Ok(account)
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
    }
}
