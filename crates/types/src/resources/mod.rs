//! Resource arithmetic, in integers only.
//!
//! A [`Resources`] value is a sorted list of (attribution, quantities): what is unreserved, what is reserved to which
//! role path, what is a volume. Two amounts merge only if their attribution is equal. Nothing saturates and nothing
//! wraps: an operation that cannot be exact returns a [`ResourceError`].

mod attribution;
mod quantities;
mod ranges;

pub use attribution::{Attribution, AttributionParts, Disk, DiskKind, Volume};
pub use quantities::{AMOUNT_MAX, Custom, Quantities, ScalarKind, bytes, milli, parse_bytes, parse_milli};
pub use ranges::Ranges;

use smallvec::SmallVec;

/// Why an operation on resources has no exact result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// A sum exceeds what 63 bits hold.
    #[error("{kind}: the sum is too large")]
    Overflow {
        /// The kind of resource.
        kind: String,
    },
    /// Something is added which is there already: a port, a set item, a volume.
    #[error("{kind}: {what} is there twice")]
    Overlap {
        /// The kind of resource.
        kind: String,
        /// The part that overlaps.
        what: String,
    },
    /// Less is there than is taken away.
    #[error("{kind}: {have} is there, {want} is wanted")]
    Insufficient {
        /// The kind of resource.
        kind: String,
        /// What is there.
        have: String,
        /// What is wanted.
        want: String,
    },
    /// A range that ends before it begins.
    #[error("range {first}-{last} ends before it begins")]
    Inverted {
        /// First value.
        first: u64,
        /// Last value.
        last: u64,
    },
    /// A text that cannot be read as resources.
    #[error("cannot read `{text}`: {why}")]
    Syntax {
        /// The offending part.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// One attribution with its quantities.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Whose, and of what sort, the quantities are.
    pub attribution: Attribution,
    /// How much.
    pub quantities: Quantities,
    /// How many times a shared volume is held; always 1 for what is not shared.
    pub copies: u32,
}

/// Amounts of resources by attribution, in canonical form: sorted, nothing empty, so equal amounts are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    entries: SmallVec<[Entry; 1]>,
}

impl Resources {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Unreserved quantities.
    pub fn unreserved(quantities: Quantities) -> Self {
        Self::of(Attribution::unreserved(), quantities)
    }

    /// Quantities of one attribution.
    pub fn of(attribution: Attribution, quantities: Quantities) -> Self {
        let mut entries = SmallVec::new();
        if !quantities.is_empty() {
            entries.push(Entry { attribution, quantities, copies: 1 });
        }
        Self { entries }
    }

    /// What [`Self::entries`] gave: sorted, each attribution once, nothing empty.
    ///
    /// # Errors
    /// Entries that are not in canonical form, and copies of what is not shared.
    pub fn from_entries(entries: Vec<Entry>) -> Result<Self, ResourceError> {
        let wrong = |entry: &Entry, why: &str| ResourceError::Overlap {
            kind: entry.attribution.to_string(),
            what: format!("{} ({why})", entry.quantities),
        };
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].attribution >= pair[1].attribution) {
            return Err(wrong(&pair[1], "out of order"));
        }
        let lone = |e: &Entry| {
            !e.quantities.is_empty() && e.copies >= 1 && (e.copies == 1 || e.attribution.is_shared())
        };
        match entries.iter().find(|entry| !lone(entry)) {
            Some(entry) => Err(wrong(entry, "empty, or copied without being shared")),
            None => Ok(Self { entries: entries.into() }),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries, in the order of their attribution.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The quantities that belong to nobody in particular.
    pub fn unreserved_part(&self) -> Option<&Quantities> {
        self.find(&Attribution::unreserved()).ok().map(|at| &self.entries[at].quantities)
    }

    /// The sum over all attributions of one scalar kind, in its base unit. Shared volumes count once.
    pub fn scalar(&self, kind: ScalarKind) -> u64 {
        self.entries.iter().map(|e| e.quantities.scalar(kind)).fold(0, u64::saturating_add)
    }

    /// Milli-cpus over all attributions.
    pub fn cpus_milli(&self) -> u64 {
        self.scalar(ScalarKind::Cpus)
    }

    /// Bytes of memory over all attributions.
    pub fn memory_bytes(&self) -> u64 {
        self.scalar(ScalarKind::Memory)
    }

    /// The entries of which `keep` says yes.
    pub fn filter(&self, mut keep: impl FnMut(&Attribution) -> bool) -> Self {
        Self { entries: self.entries.iter().filter(|e| keep(&e.attribution)).cloned().collect() }
    }

    /// `self + other`.
    pub fn checked_add(&self, other: &Self) -> Result<Self, ResourceError> {
        let mut sum = self.clone();
        sum.add(other)?;
        Ok(sum)
    }

    /// Adds `other`; on error `self` is unchanged.
    pub fn add(&mut self, other: &Self) -> Result<(), ResourceError> {
        let mut entries = self.entries.clone();
        for theirs in &other.entries {
            match find(&entries, &theirs.attribution) {
                Err(at) => entries.insert(at, theirs.clone()),
                Ok(at) => entries[at].add(theirs)?,
            }
        }
        self.entries = entries;
        Ok(())
    }

    /// `self - other`; an error unless `self` contains `other`.
    pub fn checked_sub(&self, other: &Self) -> Result<Self, ResourceError> {
        let mut difference = self.clone();
        difference.sub(other)?;
        Ok(difference)
    }

    /// Takes `other` away; on error `self` is unchanged.
    pub fn sub(&mut self, other: &Self) -> Result<(), ResourceError> {
        let mut entries = self.entries.clone();
        for theirs in &other.entries {
            let at = find(&entries, &theirs.attribution).map_err(|_| theirs.missing())?;
            if entries[at].sub(theirs)? {
                entries.remove(at);
            }
        }
        self.entries = entries;
        Ok(())
    }

    /// Whether `other` could be taken away.
    pub fn contains(&self, other: &Self) -> bool {
        other
            .entries
            .iter()
            .all(|theirs| self.find(&theirs.attribution).is_ok_and(|at| self.entries[at].contains(theirs)))
    }

    /// Reads `cpus:4;mem:8GiB;ports:[31000-32000]`: kinds separated by `;`, each `name:value`, where a value is a
    /// decimal (cpus, gpus), a size with a unit (mem, disk), inclusive ranges in brackets or a set in braces. An
    /// unknown name becomes a custom kind. All amounts are unreserved.
    pub fn parse(text: &str) -> Result<Self, ResourceError> {
        Quantities::parse(text).map(Self::unreserved)
    }

    fn find(&self, attribution: &Attribution) -> Result<usize, usize> {
        find(&self.entries, attribution)
    }
}

fn find(entries: &[Entry], attribution: &Attribution) -> Result<usize, usize> {
    entries.binary_search_by(|e| e.attribution.cmp(attribution))
}

impl Entry {
    /// Volumes and whole disks exist once and are taken whole; everything else is divisible.
    fn indivisible(&self) -> bool {
        self.attribution.is_indivisible()
    }

    fn add(&mut self, other: &Entry) -> Result<(), ResourceError> {
        if self.attribution.is_shared() && self.quantities == other.quantities {
            let overflow = || ResourceError::Overflow { kind: "shared volume".into() };
            self.copies = self.copies.checked_add(other.copies).ok_or_else(overflow)?;
            return Ok(());
        }
        if self.indivisible() {
            return Err(ResourceError::Overlap { kind: "disk".into(), what: self.attribution.to_string() });
        }
        self.quantities.add(&other.quantities)
    }

    /// Returns whether nothing is left.
    fn sub(&mut self, other: &Entry) -> Result<bool, ResourceError> {
        if !self.contains(other) {
            if self.indivisible() {
                return Err(other.missing());
            }
            return self.quantities.sub(&other.quantities).map(|()| self.quantities.is_empty());
        }
        if self.indivisible() {
            self.copies -= other.copies;
            return Ok(self.copies == 0);
        }
        self.quantities.sub(&other.quantities)?;
        Ok(self.quantities.is_empty())
    }

    fn contains(&self, other: &Entry) -> bool {
        if self.indivisible() {
            return self.quantities == other.quantities && self.copies >= other.copies;
        }
        self.quantities.contains(&other.quantities)
    }

    fn missing(&self) -> ResourceError {
        ResourceError::Insufficient {
            kind: self.attribution.to_string(),
            have: "none".into(),
            want: self.quantities.to_string(),
        }
    }
}

impl From<Quantities> for Resources {
    fn from(quantities: Quantities) -> Self {
        Self::unreserved(quantities)
    }
}

impl std::fmt::Display for Resources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (i, entry) in self.entries.iter().enumerate() {
            if i > 0 {
                f.write_str(" + ")?;
            }
            write!(f, "{}", entry.quantities)?;
            if !entry.attribution.is_unreserved() {
                write!(f, " ({})", entry.attribution)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    fn r(text: &str) -> Resources {
        Resources::parse(text).expect(text)
    }

    #[test]
    fn scalars_are_exact() {
        // 0.1 + 0.2 == 0.3; ten times 0.1 is one; a thousandth is the smallest amount.
        assert_eq!(r("cpus:0.1").checked_add(&r("cpus:0.2")), Ok(r("cpus:0.3")));
        let mut sum = Resources::new();
        for _ in 0..10 {
            sum.add(&r("cpus:0.1")).unwrap();
        }
        assert_eq!(sum, r("cpus:1"));
        assert_eq!(r("cpus:1.0001"), r("cpus:1"));
        assert!(Resources::parse("cpus:0.0004").is_err());
        assert!(Resources::parse("cpus:-1").is_err());
    }

    #[test]
    fn ranges_coalesce_and_split() {
        assert_eq!(r("ports:[1-3]").checked_add(&r("ports:[4-6]")), Ok(r("ports:[1-6]")));
        assert_eq!(r("ports:[1-10]").checked_sub(&r("ports:[4-5]")), Ok(r("ports:[1-3,6-10]")));
        assert!(r("ports:[1-3]").checked_add(&r("ports:[3-4]")).is_err());
        assert!(Resources::parse("ports:[3-1]").is_err());
        assert!(Resources::parse("ports:[1-3,2-4]").is_err());
    }

    #[test]
    fn subtraction_needs_the_same_attribution() {
        let eng = Attribution::reserved(vec![Role::new("eng").unwrap()]);
        let reserved = Resources::of(eng, Quantities::parse("cpus:1").unwrap());
        assert!(!r("cpus:4").contains(&reserved));
        let both = r("cpus:4").checked_add(&reserved).unwrap();
        assert_eq!(both.cpus_milli(), 5000);
        assert_eq!(both.checked_sub(&reserved), Ok(r("cpus:4")));
        assert!(both.checked_sub(&r("cpus:5")).is_err());
    }

    #[test]
    fn volumes_are_whole_and_shared_ones_are_counted() {
        let mut parts = AttributionParts {
            reservation: vec![Role::new("db").unwrap()],
            volume: Some(Volume { id: "v1".into(), container_path: "data".into() }),
            ..Default::default()
        };
        let volume = Resources::of(parts.clone().into(), Quantities::parse("disk:1GiB").unwrap());
        let half = Resources::of(parts.clone().into(), Quantities::parse("disk:512MiB").unwrap());
        assert!(!volume.contains(&half));
        assert!(volume.checked_add(&volume).is_err());
        parts.shared = true;
        let shared = Resources::of(parts.into(), Quantities::parse("disk:1GiB").unwrap());
        let twice = shared.checked_add(&shared).unwrap();
        assert_eq!(twice.entries()[0].copies, 2);
        assert_eq!(twice.scalar(ScalarKind::Disk), 1 << 30);
        assert_eq!(twice.checked_sub(&shared), Ok(shared.clone()));
        assert_eq!(shared.checked_sub(&shared), Ok(Resources::new()));
    }

    #[test]
    fn custom_kinds_add_and_subtract() {
        let fpga = r("fpga:2;licence:{a,b}");
        assert_eq!(fpga.checked_sub(&r("fpga:1;licence:{b}")), Ok(r("fpga:1;licence:{a}")));
        assert!(fpga.checked_add(&r("licence:{a}")).is_err());
        assert!(!fpga.contains(&r("licence:{c}")));
    }

    #[test]
    fn sums_do_not_wrap() {
        let most = Resources::unreserved(Quantities::scalars(0, i64::MAX as u64, 0, 0));
        assert!(most.checked_add(&r("mem:1B")).is_err());
    }

    #[test]
    fn text_round_trips() {
        for text in [
            "cpus:0.5;mem:64MiB",
            "cpus:9;mem:18GiB;ports:[31000-31009]",
            "mem:1B",
            "gpus:1;disk:3KiB",
            "fpga:3;licence:{a,b}",
        ] {
            assert_eq!(r(&r(text).to_string()), r(text), "{text}");
        }
    }
}
