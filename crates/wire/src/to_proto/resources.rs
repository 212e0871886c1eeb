//! Resources.

use proffer_types::resources::{Attribution, DiskKind, Ranges, Resources, ScalarKind};

use crate::common::v1 as pb;
use pb::resource::Value;

/// Amounts as a list, in the order of attributions and kinds. A shared volume that is held several times is told once.
pub fn resources(resources: &Resources) -> Vec<pb::Resource> {
    let mut list = Vec::new();
    for entry in resources.entries() {
        let attribution = attribution(&entry.attribution);
        let mut push = |kind: &str, value: Value| {
            list.push(pb::Resource {
                kind: kind.into(),
                value: Some(value),
                attribution: attribution.clone(),
            });
        };
        for kind in ScalarKind::ALL {
            match entry.quantities.scalar(kind) {
                0 => {}
                amount => push(kind.name(), Value::Amount(amount)),
            }
        }
        if !entry.quantities.ports().is_empty() {
            push("ports", Value::Ranges(ranges(entry.quantities.ports())));
        }
        if let Some(custom) = entry.quantities.custom() {
            custom.scalars.iter().for_each(|(kind, amount)| push(kind, Value::Amount(*amount)));
            custom.ranges.iter().for_each(|(kind, given)| push(kind, Value::Ranges(ranges(given))));
            for (kind, items) in &custom.sets {
                push(kind, Value::Set(pb::Set { items: items.iter().cloned().collect() }));
            }
        }
    }
    list
}

fn ranges(ranges: &Ranges) -> pb::Ranges {
    pb::Ranges { ranges: ranges.iter().map(|(first, last)| pb::Range { first, last }).collect() }
}

fn attribution(attribution: &Attribution) -> Option<pb::Attribution> {
    use pb::attribution::{Disk, DiskKind as Kind, Volume};
    let parts = attribution.parts()?;
    Some(pb::Attribution {
        reservation: parts.reservation.iter().map(|role| role.as_str().into()).collect(),
        volume: parts
            .volume
            .as_ref()
            .map(|v| Volume { id: v.id.clone(), container_path: v.container_path.clone() }),
        disk: parts.disk.as_ref().map(|d| Disk {
            kind: match d.kind {
                DiskKind::Path => Kind::Path,
                DiskKind::Mount => Kind::Mount,
                DiskKind::Block => Kind::Block,
                DiskKind::Raw => Kind::Raw,
            }
            .into(),
            id: d.id.clone(),
        }),
        revocable: parts.revocable,
        shared: parts.shared,
    })
}
