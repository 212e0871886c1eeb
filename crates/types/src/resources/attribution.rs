//! Whose resources are, and of what sort.

use std::fmt;
use std::sync::Arc;

use crate::Role;

/// A persistent volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Volume {
    /// Unique per role and agent.
    pub id: String,
    /// Where it appears in the container.
    pub container_path: String,
}

/// What backs a disk resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskKind {
    /// A directory of a shared file system: divisible.
    Path,
    /// A file system of its own: taken whole.
    Mount,
    /// A block device: taken whole.
    Block,
    /// Not yet made into any of the others.
    Raw,
}

/// A disk that is more than a share of the work directory's file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk {
    /// What backs it.
    pub kind: DiskKind,
    /// Identifies the disk on its agent; may be empty for [`DiskKind::Path`].
    pub id: String,
}

/// The parts of an attribution; the default is "unreserved".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributionParts {
    /// The reservation stack: each role a strict sub-role of the one before; empty for unreserved.
    pub reservation: Vec<Role>,
    /// The persistent volume this is.
    pub volume: Option<Volume>,
    /// The disk this lies on.
    pub disk: Option<Disk>,
    /// May be taken back at any time.
    pub revocable: bool,
    /// A volume that several tasks may hold at once.
    pub shared: bool,
}

/// Identity of an amount for arithmetic: amounts merge only if all parts are equal. Cheap to clone and compare.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attribution(Option<Arc<AttributionParts>>);

impl Attribution {
    /// Belongs to nobody in particular.
    pub fn unreserved() -> Self {
        Self(None)
    }

    /// Reserved along `stack`.
    pub fn reserved(stack: Vec<Role>) -> Self {
        AttributionParts { reservation: stack, ..Default::default() }.into()
    }

    /// The parts, `None` for plain unreserved amounts.
    pub fn parts(&self) -> Option<&AttributionParts> {
        self.0.as_deref()
    }

    /// Whether this is plain unreserved.
    pub fn is_unreserved(&self) -> bool {
        self.0.is_none()
    }

    /// The role the amount is reserved to: the last of the stack.
    pub fn role(&self) -> Option<&Role> {
        self.parts().and_then(|p| p.reservation.last())
    }

    /// Whether several may hold it at once.
    pub fn is_shared(&self) -> bool {
        self.parts().is_some_and(|p| p.shared && p.volume.is_some())
    }

    /// Whether it may be taken back at any time.
    pub fn is_revocable(&self) -> bool {
        self.parts().is_some_and(|p| p.revocable)
    }

    pub(super) fn is_indivisible(&self) -> bool {
        self.parts().is_some_and(|p| {
            p.volume.is_some()
                || p.disk.as_ref().is_some_and(|d| match d.kind {
                    DiskKind::Path => false,
                    DiskKind::Mount | DiskKind::Block => true,
                    DiskKind::Raw => !d.id.is_empty(),
                })
        })
    }
}

impl From<AttributionParts> for Attribution {
    fn from(parts: AttributionParts) -> Self {
        if parts == AttributionParts::default() { Self(None) } else { Self(Some(Arc::new(parts))) }
    }
}

impl fmt::Display for Attribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parts) = self.parts() else { return f.write_str("unreserved") };
        let mut words = Vec::new();
        if let Some(role) = parts.reservation.last() {
            words.push(format!("reserved to {role}"));
        }
        if let Some(volume) = &parts.volume {
            words.push(format!("volume {}", volume.id));
        }
        if let Some(disk) = &parts.disk {
            words.push(format!("{:?} disk {}", disk.kind, disk.id).to_lowercase());
        }
        if parts.revocable {
            words.push("revocable".into());
        }
        if parts.shared {
            words.push("shared".into());
        }
        f.write_str(&words.join(", "))
    }
}
