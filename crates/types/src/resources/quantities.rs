//! Amounts of the known and of custom kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Ranges, ResourceError};

/// The scalar kinds that every node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScalarKind {
    /// Milli-cpus.
    Cpus,
    /// Bytes.
    Memory,
    /// Bytes.
    Disk,
    /// Milli-gpus.
    Gpus,
}

impl ScalarKind {
    /// All kinds, in the order of their storage.
    pub const ALL: [Self; 4] = [Self::Cpus, Self::Memory, Self::Disk, Self::Gpus];

    /// The name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpus => "cpus",
            Self::Memory => "mem",
            Self::Disk => "disk",
            Self::Gpus => "gpus",
        }
    }

    fn is_milli(self) -> bool {
        matches!(self, Self::Cpus | Self::Gpus)
    }
}

/// Kinds that only some nodes have. Scalars are in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Custom {
    /// Scalar kinds, in thousandths.
    pub scalars: BTreeMap<String, u64>,
    /// Range kinds.
    pub ranges: BTreeMap<String, Ranges>,
    /// Set kinds.
    pub sets: BTreeMap<String, BTreeSet<String>>,
}

/// Largest amount of a scalar: sums of two stay inside 64 bits, and signed languages can hold it.
pub const AMOUNT_MAX: u64 = i64::MAX as u64;

/// Amounts without attribution. Canonical: no zero scalar, no empty range or set in the custom part.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantities {
    scalars: [u64; 4],
    ports: Ranges,
    custom: Option<Box<Custom>>,
}

impl Quantities {
    /// Scalars only, each in its base unit (milli-cpus, bytes, bytes, milli-gpus).
    pub fn scalars(cpus_milli: u64, memory_bytes: u64, disk_bytes: u64, gpus_milli: u64) -> Self {
        Self { scalars: [cpus_milli, memory_bytes, disk_bytes, gpus_milli], ..Self::default() }
    }

    /// Puts `ports` in place of what was there.
    pub fn with_ports(mut self, ports: Ranges) -> Self {
        self.ports = ports;
        self
    }

    /// Puts `custom` in place of what was there, leaving out what is empty.
    pub fn with_custom(mut self, mut custom: Custom) -> Self {
        custom.scalars.retain(|_, amount| *amount > 0);
        custom.ranges.retain(|_, ranges| !ranges.is_empty());
        custom.sets.retain(|_, set| !set.is_empty());
        self.custom = (custom != Custom::default()).then(|| Box::new(custom));
        self
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.scalars == [0; 4] && self.ports.is_empty() && self.custom.is_none()
    }

    /// One scalar, in its base unit.
    pub fn scalar(&self, kind: ScalarKind) -> u64 {
        self.scalars[kind as usize]
    }

    /// All four scalars, in the order of [`ScalarKind::ALL`].
    pub fn scalar_array(&self) -> [u64; 4] {
        self.scalars
    }

    /// The ports.
    pub fn ports(&self) -> &Ranges {
        &self.ports
    }

    /// The custom kinds, `None` if there are none.
    pub fn custom(&self) -> Option<&Custom> {
        self.custom.as_deref()
    }

    /// Whether `other` could be taken away.
    pub fn contains(&self, other: &Self) -> bool {
        self.scalars.iter().zip(&other.scalars).all(|(have, want)| have >= want)
            && self.ports.contains(&other.ports)
            && other
                .custom
                .as_ref()
                .is_none_or(|theirs| self.custom.as_ref().is_some_and(|c| c.contains(theirs)))
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<(), ResourceError> {
        for kind in ScalarKind::ALL {
            let sum = add(kind.name(), self.scalar(kind), other.scalar(kind))?;
            self.scalars[kind as usize] = sum;
        }
        self.ports.add("ports", &other.ports)?;
        if let Some(theirs) = &other.custom {
            let mut mine = self.custom.take().map(|c| *c).unwrap_or_default();
            mine.add(theirs)?;
            self.custom = Some(Box::new(mine));
        }
        Ok(())
    }

    pub(super) fn sub(&mut self, other: &Self) -> Result<(), ResourceError> {
        for kind in ScalarKind::ALL {
            let (have, want) = (self.scalar(kind), other.scalar(kind));
            self.scalars[kind as usize] =
                have.checked_sub(want).ok_or_else(|| ResourceError::Insufficient {
                    kind: kind.name().into(),
                    have: amount(kind, have),
                    want: amount(kind, want),
                })?;
        }
        self.ports.sub("ports", &other.ports)?;
        if let Some(theirs) = &other.custom {
            let mut mine = self.custom.take().map(|c| *c).unwrap_or_default();
            mine.sub(theirs)?;
            *self = std::mem::take(self).with_custom(mine);
        }
        Ok(())
    }

    pub(super) fn parse(text: &str) -> Result<Self, ResourceError> {
        let mut quantities = Self::default();
        let mut custom = Custom::default();
        let mut seen = BTreeSet::new();
        for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
            let wrong = |why: &str| ResourceError::Syntax { text: part.into(), why: why.into() };
            let (name, value) = part.split_once(':').ok_or_else(|| wrong("expected `name:value`"))?;
            let (name, value) = (name.trim(), value.trim());
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
                return Err(wrong("a name has letters, digits, `_`, `-` and `.`"));
            }
            if !seen.insert(name) {
                return Err(wrong("this kind is given twice"));
            }
            let scalar = ScalarKind::ALL.into_iter().find(|k| k.name() == name);
            if let Some(list) = bracketed(value, '[', ']') {
                let ranges = Ranges::new(name, parse_ranges(list).map_err(|why| wrong(&why))?)?;
                match (scalar, name) {
                    (Some(_), _) => return Err(wrong("this kind is an amount, not ranges")),
                    (None, "ports") => quantities.ports = ranges,
                    (None, _) => drop(custom.ranges.insert(name.into(), ranges)),
                }
            } else if let Some(list) = bracketed(value, '{', '}') {
                if scalar.is_some() || name == "ports" {
                    return Err(wrong("this kind is not a set"));
                }
                let items: BTreeSet<String> =
                    list.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
                custom.sets.insert(name.into(), items);
            } else {
                let amount = match scalar {
                    Some(kind) if !kind.is_milli() => parse_bytes(value),
                    _ => parse_milli(value),
                };
                let amount = amount.map_err(|why| wrong(&why))?;
                match (scalar, name) {
                    (Some(kind), _) => quantities.scalars[kind as usize] = amount,
                    (None, "ports") => return Err(wrong("ports are ranges: ports:[31000-32000]")),
                    (None, _) => drop(custom.scalars.insert(name.into(), amount)),
                }
            }
        }
        Ok(quantities.with_custom(custom))
    }
}

impl Custom {
    fn contains(&self, other: &Self) -> bool {
        other.scalars.iter().all(|(k, want)| self.scalars.get(k).is_some_and(|have| have >= want))
            && other.ranges.iter().all(|(k, want)| self.ranges.get(k).is_some_and(|have| have.contains(want)))
            && other.sets.iter().all(|(k, want)| self.sets.get(k).is_some_and(|have| have.is_superset(want)))
    }

    fn add(&mut self, other: &Self) -> Result<(), ResourceError> {
        for (kind, amount) in &other.scalars {
            let mine = self.scalars.entry(kind.clone()).or_default();
            *mine = add(kind, *mine, *amount)?;
        }
        for (kind, ranges) in &other.ranges {
            self.ranges.entry(kind.clone()).or_default().add(kind, ranges)?;
        }
        for (kind, set) in &other.sets {
            let mine = self.sets.entry(kind.clone()).or_default();
            for item in set {
                if !mine.insert(item.clone()) {
                    return Err(ResourceError::Overlap { kind: kind.clone(), what: item.clone() });
                }
            }
        }
        Ok(())
    }

    fn sub(&mut self, other: &Self) -> Result<(), ResourceError> {
        let missing = |kind: &str, have: String, want: String| ResourceError::Insufficient {
            kind: kind.into(),
            have,
            want,
        };
        for (kind, want) in &other.scalars {
            let have = self.scalars.entry(kind.clone()).or_default();
            *have = have.checked_sub(*want).ok_or_else(|| missing(kind, milli(*have), milli(*want)))?;
        }
        for (kind, ranges) in &other.ranges {
            self.ranges.entry(kind.clone()).or_default().sub(kind, ranges)?;
        }
        for (kind, set) in &other.sets {
            let mine = self.sets.entry(kind.clone()).or_default();
            for item in set {
                if !mine.remove(item) {
                    return Err(missing(kind, "not there".into(), item.clone()));
                }
            }
        }
        Ok(())
    }
}

fn add(kind: &str, a: u64, b: u64) -> Result<u64, ResourceError> {
    a.checked_add(b)
        .filter(|sum| *sum <= AMOUNT_MAX)
        .ok_or_else(|| ResourceError::Overflow { kind: kind.into() })
}

fn bracketed(value: &str, open: char, close: char) -> Option<&str> {
    value.strip_prefix(open)?.strip_suffix(close)
}

fn parse_ranges(list: &str) -> Result<Vec<(u64, u64)>, String> {
    let number = |s: &str| s.trim().parse::<u64>().map_err(|_| format!("`{}` is not a number", s.trim()));
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| match item.split_once('-') {
            Some((first, last)) => Ok((number(first)?, number(last)?)),
            None => number(item).map(|n| (n, n)),
        })
        .collect()
}

/// Reads a decimal in thousandths, rounded to the nearest; 0.0004 and less than nothing are refused.
pub fn parse_milli(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a decimal number such as 0.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let mut padded: String = fraction.chars().take(4).collect();
    while padded.len() < 4 {
        padded.push('0');
    }
    let fraction: u64 = padded.parse().map_err(|_| wrong())?;
    let amount =
        whole.checked_mul(1000).and_then(|m| m.checked_add((fraction + 5) / 10)).filter(|m| *m <= AMOUNT_MAX);
    match amount {
        None => Err(format!("`{text}` is too large")),
        Some(0) if text.bytes().any(|b| (b'1'..=b'9').contains(&b)) => {
            Err(format!("`{text}` is less than 0.001"))
        }
        Some(amount) => Ok(amount),
    }
}

/// Reads a size: digits and `B`, `KiB`, `MiB`, `GiB` or `TiB`; a bare 0 needs no unit.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 64MiB (units: B KiB MiB GiB TiB)");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let shift = match text[end..].trim() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "" if number == 0 => 0,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .filter(|n| *n <= AMOUNT_MAX)
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// Thousandths as a decimal without needless zeros.
pub fn milli(amount: u64) -> String {
    if amount.is_multiple_of(1000) {
        return (amount / 1000).to_string();
    }
    format!("{}.{:03}", amount / 1000, amount % 1000).trim_end_matches('0').into()
}

/// Bytes in the largest unit that divides them.
pub fn bytes(amount: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| amount > 0 && amount.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{}{unit}", amount >> shift),
        None => format!("{amount}B"),
    }
}

fn amount(kind: ScalarKind, amount: u64) -> String {
    if kind.is_milli() { milli(amount) } else { bytes(amount) }
}

impl fmt::Display for Quantities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for kind in ScalarKind::ALL {
            if self.scalar(kind) > 0 {
                parts.push(format!("{}:{}", kind.name(), amount(kind, self.scalar(kind))));
            }
        }
        if !self.ports.is_empty() {
            parts.push(format!("ports:{}", self.ports));
        }
        if let Some(custom) = &self.custom {
            parts.extend(custom.scalars.iter().map(|(k, v)| format!("{k}:{}", milli(*v))));
            parts.extend(custom.ranges.iter().map(|(k, v)| format!("{k}:{v}")));
            parts.extend(custom.sets.iter().map(|(k, v)| {
                format!("{k}:{{{}}}", v.iter().map(String::as_str).collect::<Vec<_>>().join(","))
            }));
        }
        f.write_str(&parts.join(";"))
    }
}
