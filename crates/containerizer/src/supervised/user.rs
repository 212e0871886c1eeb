//! Who a task runs as.

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
    #[error("user {0:?} is uid 0, which this agent does not allow")]
    Root(String),
    #[error("user {0:?} is not the agent's own, and it does not run as root")]
    NotOwn(String),
    #[error("user {0:?} cannot be looked up: {1}")]
    Lookup(String, String),
}

/// Finds the account of `name`; an empty name is `nobody`, or the agent's own user if that is not root.
pub(crate) fn account(name: &str, allow_root: bool) -> Result<Account, Refused> {
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
    if own.is_root() && account.uid == 0 && !allow_root {
        return Err(Refused::Root(shown.to_owned()));
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
    fn root_and_strangers_are_refused() {
        if !Uid::effective().is_root() {
            assert!(matches!(account("root", true), Err(Refused::NotOwn(_))));
            return;
        }
        assert_eq!(account("root", false), Err(Refused::Root("root".into())));
        assert_eq!(account("root", true), Ok(Account { uid: 0, gid: 0 }));
        assert_eq!(account("proffer-no-such", false), Err(Refused::Unknown("proffer-no-such".into())));
        assert_eq!(account("", false), account("nobody", false));
        assert_ne!(account("", false).map(|account| account.uid), Ok(0));
    }
}
