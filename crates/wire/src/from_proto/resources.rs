//! Resources.

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::resources::{
    AMOUNT_MAX, Attribution, AttributionParts, Custom, Disk, DiskKind, Quantities, Ranges, Resources,
    ScalarKind, Volume,
};
use proffer_types::{Role, names};

use super::role;
use crate::common::v1 as pb;
use crate::malformed::{Path, Problems};

/// Highest port.
const PORT_MAX: u64 = 65_535;

/// What may be said of whose resources are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attributions {
    /// Nothing: reservations, volumes, disks, revocable and shared resources are refused by name.
    Refused,
    /// Anything.
    Allowed,
}

/// Parses a list of amounts. An empty list is nothing at all; whoever needs something says so.
pub(crate) fn resources(
    list: Vec<pb::Resource>,
    at: &Path<'_>,
    name: &'static str,
    allowed: Attributions,
    problems: &mut Problems,
) -> Option<Resources> {
    let mut sums: BTreeMap<Attribution, Amounts> = BTreeMap::new();
    let mut whole = Some(());
    for (i, resource) in list.into_iter().enumerate() {
        let at = at.item(name, i);
        if one(resource, at, allowed, &mut sums, problems).is_none() {
            whole = None;
        }
    }
    whole?;
    let mut total = Resources::new();
    for (attribution, amounts) in sums {
        let quantities = amounts.into_quantities();
        if let Err(error) = total.add(&Resources::of(attribution, quantities)) {
            return problems.invalid(at.field(name), error);
        }
    }
    Some(total)
}

/// The amounts of one attribution while they are gathered.
#[derive(Default)]
struct Amounts {
    seen: BTreeSet<String>,
    scalars: [u64; 4],
    ports: Ranges,
    custom: Custom,
}

impl Amounts {
    fn into_quantities(self) -> Quantities {
        let [cpus, memory, disk, gpus] = self.scalars;
        Quantities::scalars(cpus, memory, disk, gpus).with_ports(self.ports).with_custom(self.custom)
    }
}

fn one(
    resource: pb::Resource,
    at: Path<'_>,
    allowed: Attributions,
    sums: &mut BTreeMap<Attribution, Amounts>,
    problems: &mut Problems,
) -> Option<()> {
    let kind = kind(resource.kind, &at, problems);
    let attribution = match resource.attribution {
        None => Some(Attribution::unreserved()),
        Some(given) => attribution(given, &at.field("attribution"), allowed, problems),
    };
    let Some(value) = resource.value else {
        return problems.invalid(at, "one of amount, ranges and set must be given");
    };
    let (kind, attribution) = (kind?, attribution?);
    let amounts = sums.entry(attribution).or_default();
    if amounts.seen.contains(&kind) {
        return problems.invalid(at, format_args!("`{kind}` is given twice"));
    }
    let known = ScalarKind::ALL.into_iter().find(|k| k.name() == kind);
    use pb::resource::Value;
    match value {
        Value::Amount(amount) => {
            if kind == "ports" {
                return problems.invalid(at, "`ports` are ranges");
            }
            if amount == 0 || amount > AMOUNT_MAX {
                return problems.invalid(at.field("amount"), "must be greater than 0 and less than 2^63");
            }
            match known {
                Some(known) => amounts.scalars[known as usize] = amount,
                None => drop(amounts.custom.scalars.insert(kind.clone(), amount)),
            }
        }
        _ if known.is_some() => return problems.invalid(at, format_args!("`{kind}` is an amount")),
        Value::Ranges(given) => {
            let ranges = ranges(given, &kind, &at, problems)?;
            match kind.as_str() {
                "ports" => amounts.ports = ranges,
                _ => drop(amounts.custom.ranges.insert(kind.clone(), ranges)),
            }
        }
        Value::Set(_) if kind == "ports" => return problems.invalid(at, "`ports` are ranges"),
        Value::Set(set) => drop(amounts.custom.sets.insert(kind.clone(), items(set, &at, problems)?)),
    }
    amounts.seen.insert(kind);
    Some(())
}

fn kind(kind: String, at: &Path<'_>, problems: &mut Problems) -> Option<String> {
    if kind.is_empty() || kind.len() > proffer_types::limits::NAME_BYTES_MAX {
        return problems.invalid(at.field("kind"), "must have 1 to 255 bytes");
    }
    if !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
        return problems.invalid(at.field("kind"), "may hold letters, digits, `_`, `-` and `.` only");
    }
    Some(kind)
}

fn ranges(given: pb::Ranges, kind: &str, at: &Path<'_>, problems: &mut Problems) -> Option<Ranges> {
    let at = at.field("ranges");
    if given.ranges.is_empty() {
        return problems.invalid(at, "must not be empty");
    }
    let most = if kind == "ports" { PORT_MAX } else { AMOUNT_MAX };
    if let Some(i) = given.ranges.iter().position(|r| r.first > r.last || r.last > most) {
        return problems.invalid(at.item("ranges", i), format_args!("must have first <= last <= {most}"));
    }
    match Ranges::new(kind, given.ranges.iter().map(|r| (r.first, r.last))) {
        Ok(ranges) => Some(ranges),
        Err(error) => problems.invalid(at, error),
    }
}

fn items(set: pb::Set, at: &Path<'_>, problems: &mut Problems) -> Option<BTreeSet<String>> {
    let at = at.field("set");
    if set.items.is_empty() {
        return problems.invalid(at, "must not be empty");
    }
    let mut items = BTreeSet::new();
    for (i, item) in set.items.into_iter().enumerate() {
        if item.is_empty()
            || item.len() > proffer_types::limits::NAME_BYTES_MAX
            || item.chars().any(char::is_control)
        {
            return problems
                .invalid(at.item("items", i), "must have 1 to 255 bytes and no control characters");
        }
        if !items.insert(item) {
            return problems.invalid(at.item("items", i), "is there twice");
        }
    }
    Some(items)
}

fn attribution(
    given: pb::Attribution,
    at: &Path<'_>,
    allowed: Attributions,
    problems: &mut Problems,
) -> Option<Attribution> {
    let mut reservation: Vec<Role> = Vec::with_capacity(given.reservation.len());
    for (i, path) in given.reservation.iter().enumerate() {
        let at = at.item("reservation", i);
        let role = role(path, at, problems)?;
        if reservation.last().is_some_and(|above| &role == above || !role.is_within(above)) {
            return problems.invalid(at, "must be a sub-role of the one before");
        }
        reservation.push(role);
    }
    let volume = match given.volume {
        None => None,
        Some(volume) => Some(self::volume(volume, &at.field("volume"), problems)?),
    };
    let disk = match given.disk {
        None => None,
        Some(disk) => Some(self::disk(disk, &at.field("disk"), problems)?),
    };
    if given.shared && volume.is_none() {
        return problems.invalid(at.field("shared"), "only a volume can be shared");
    }
    let parts =
        AttributionParts { reservation, volume, disk, revocable: given.revocable, shared: given.shared };
    if allowed == Attributions::Refused {
        let what = [
            (!parts.reservation.is_empty(), "reservation", "reservations are not supported by this version"),
            (parts.volume.is_some(), "volume", "volumes are not supported by this version"),
            (parts.disk.is_some(), "disk", "disks of their own are not supported by this version"),
            (parts.revocable, "revocable", "revocable resources are not supported by this version"),
        ];
        if let Some((_, field, text)) = what.into_iter().find(|(there, ..)| *there) {
            return problems.unsupported(at.field(field), text);
        }
    }
    Some(parts.into())
}

fn volume(volume: pb::attribution::Volume, at: &Path<'_>, problems: &mut Problems) -> Option<Volume> {
    if let Err(error) = names::check_name(&volume.id) {
        return problems.invalid(at.field("id"), error);
    }
    if volume.container_path.is_empty() || volume.container_path.contains('\0') {
        return problems.invalid(at.field("container_path"), "must be a path");
    }
    Some(Volume { id: volume.id, container_path: volume.container_path })
}

fn disk(disk: pb::attribution::Disk, at: &Path<'_>, problems: &mut Problems) -> Option<Disk> {
    use pb::attribution::DiskKind as Kind;
    let kind = match Kind::try_from(disk.kind) {
        Ok(Kind::Path) => DiskKind::Path,
        Ok(Kind::Mount) => DiskKind::Mount,
        Ok(Kind::Block) => DiskKind::Block,
        Ok(Kind::Raw) => DiskKind::Raw,
        Ok(Kind::Unspecified) | Err(_) => {
            return problems.invalid(at.field("kind"), format_args!("{} is not a kind of disk", disk.kind));
        }
    };
    if disk.id.len() > 4096 || disk.id.contains('\0') {
        return problems.invalid(at.field("id"), "must be a path or a name");
    }
    Some(Disk { kind, id: disk.id })
}
