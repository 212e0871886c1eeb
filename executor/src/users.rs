//! User namespaces that tasks have left, for the next with the same ids: making one costs a process.

use proffer_launcher::{Error, IdRange, UserNamespace};

/// How many are kept; each is a descriptor and some memory of the kernel's.
const IDLE_MAX: usize = 256;

/// User namespaces without a process.
#[derive(Default)]
pub(crate) struct Users {
    idle: Vec<UserNamespace>,
}

impl Users {
    /// A namespace of these ids, which nobody else is in.
    pub(crate) fn take(&mut self, range: IdRange) -> Result<UserNamespace, Error> {
        match self.idle.iter().rposition(|idle| idle.range() == range) {
            Some(at) => Ok(self.idle.swap_remove(at)),
            None => UserNamespace::new(range),
        }
    }

    /// Takes back what a container was in, once its pid namespace is gone. Beside processes a user namespace holds its
    /// maps, which are written whole when it is made, and keys: only one whose processes could make none is given back here.
    pub(crate) fn give_back(&mut self, namespace: UserNamespace) {
        if self.idle.len() == IDLE_MAX {
            self.idle.remove(0);
        }
        self.idle.push(namespace);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_same_ids_find_the_same_namespace_again() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: a user namespace with other ids needs root");
            return;
        }
        let inode =
            |namespace: &UserNamespace| nix::sys::stat::fstat(namespace.fd().as_fd()).expect("stat").st_ino;
        let range = |first| IdRange { first, count: 65_536 };
        let mut users = Users::default();
        let one = users.take(range(0x5000_0000)).expect("made");
        let other = users.take(range(0x5000_0000)).expect("made");
        assert_ne!(inode(&one), inode(&other), "each has its own while it runs");
        let number = inode(&one);
        users.give_back(one);
        let elsewhere = users.take(range(0x5001_0000)).expect("made");
        assert_ne!(inode(&elsewhere), number, "other ids");
        assert_eq!(inode(&users.take(range(0x5000_0000)).expect("kept")), number);
        for _ in 0..=IDLE_MAX {
            users.give_back(UserNamespace::from_fd(
                other.fd().try_clone_to_owned().expect("a descriptor"),
                other.range(),
            ));
        }
        assert_eq!(users.idle.len(), IDLE_MAX);
    }
}
