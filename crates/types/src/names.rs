//! Names that clients choose. They are data: never part of a path, of a cgroup or of a log file's name.

use std::fmt;
use std::sync::Arc;

use crate::limits;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The empty string.
    #[error("must not be empty")]
    Empty,
    /// More bytes than a name may have.
    #[error("is longer than {} bytes", limits::NAME_BYTES_MAX)]
    TooLong,
    /// A control character.
    #[error("contains a control character")]
    Control,
    /// A path separator.
    #[error("contains `/` or `\\`")]
    Separator,
    /// `.` or `..`.
    #[error("must not be `.` or `..`")]
    Dots,
    /// A role path with an empty component.
    #[error("has an empty component: no leading, trailing or double `/`")]
    EmptyComponent,
    /// A role path with a component that has a meaning elsewhere.
    #[error("has a component `.`, `..` or `*`, or one that starts with `-`")]
    Component,
    /// White space in a role.
    #[error("contains white space")]
    Space,
}

/// The rules for task, executor and volume names: not empty, at most 255 bytes, no control characters, no `/` or `\`,
/// not `.` or `..`.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    if name.contains(['/', '\\']) {
        return Err(NameError::Separator);
    }
    if name == "." || name == ".." {
        return Err(NameError::Dots);
    }
    Ok(())
}

macro_rules! client_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `name` by the rules of [`check_name`].
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name).map(|()| Self(name.into()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

client_name!(
    /// A task's name, chosen by its framework, unique among the framework's retained tasks.
    TaskId
);

client_name!(
    /// An executor's name, chosen by its framework, unique among the framework's executors on an agent.
    ExecutorId
);

/// A path in the role tree (`eng/build`), or `*`, the root's own pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role(Arc<str>);

impl Role {
    /// Checks a role path: no leading, trailing or double slash; no component `.`, `..`, `*`, none starting with `-`;
    /// no white space or control characters. `*` alone is the default role.
    pub fn new(path: &str) -> Result<Self, NameError> {
        if path.is_empty() {
            return Err(NameError::Empty);
        }
        if path.len() > limits::NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        if path.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        if path.chars().any(char::is_whitespace) {
            return Err(NameError::Space);
        }
        if path.contains('\\') {
            return Err(NameError::Separator);
        }
        if path != "*" {
            for component in path.split('/') {
                match component {
                    "" => return Err(NameError::EmptyComponent),
                    "." | ".." | "*" => return Err(NameError::Component),
                    c if c.starts_with('-') => return Err(NameError::Component),
                    _ => {}
                }
            }
        }
        Ok(Self(path.into()))
    }

    /// The default role, `*`.
    pub fn star() -> Self {
        Self("*".into())
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components from the top of the tree; `*` is a top-level role of its own.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether `self` is `other` or lies below it in the tree.
    pub fn is_within(&self, other: &Role) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Default for Role {
    fn default() -> Self {
        Self::star()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        assert!(TaskId::new("web.1 ö").is_ok());
        assert!(TaskId::new(&"x".repeat(255)).is_ok());
        let cases: [(&str, NameError); 6] = [
            ("", NameError::Empty),
            ("a/b", NameError::Separator),
            ("a\\b", NameError::Separator),
            ("a\u{1b}[0m", NameError::Control),
            ("..", NameError::Dots),
            (".", NameError::Dots),
        ];
        for (name, why) in cases {
            assert_eq!(TaskId::new(name), Err(why), "{name:?}");
        }
        assert_eq!(TaskId::new(&"x".repeat(256)), Err(NameError::TooLong));
    }

    #[test]
    fn roles_form_a_tree() {
        let role = |path| Role::new(path).expect(path);
        assert!(role("eng/build").is_within(&role("eng")));
        assert!(!role("engine").is_within(&role("eng")));
        for wrong in ["", "/a", "a/", "a//b", "a/./b", "a/*", "-a", "a b", "a\tb"] {
            assert!(Role::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
