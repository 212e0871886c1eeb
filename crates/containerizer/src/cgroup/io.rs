//! A group's share of the disks, and its limits on them.

use std::io;
use std::path::Path;

use proffer_types::container::{Io, IoLimit};

use super::write;
use crate::Error;

/// What a group weighs that asks for nothing; the kernel's own default too.
const WEIGHT_DEFAULT: u32 = 100;
/// The most that bfq takes, where v2 in general takes ten times as much.
const WEIGHT_BFQ_MAX: u32 = 1000;

/// Sets what a group that was just made is to have.
pub(super) fn set(dir: &Path, io: &Io, v2: bool) -> Result<(), Error> {
    if io.weight != 0 {
        set_weight(dir, io.weight, v2)?;
    }
    io.limits.iter().try_for_each(|(device, limit)| set_limit(dir, device, *limit, v2))
}

fn set_weight(dir: &Path, weight: u32, v2: bool) -> Result<(), Error> {
    let bfq = bfq_weight(weight);
    let files: &[(&str, u32)] =
        if v2 { &[("io.weight", weight), ("io.bfq.weight", bfq)] } else { &[("blkio.bfq.weight", bfq)] };
    let mut any = false;
    for (file, weight) in files {
        match write(&dir.join(file), &weight.to_string()) {
            Ok(()) => any = true,
            Err(Error::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if any {
        return Ok(());
    }
    let names: Vec<_> = files.iter().map(|(file, _)| *file).collect();
    let why = format!("this agent's kernel weighs no disk access ({} is not there)", names.join(" or "));
    Err(Error::Refused { field: "container.io.weight".into(), why })
}

/// From 1 to 10,000 around 100, to 1 to 1,000 around 100.
fn bfq_weight(weight: u32) -> u32 {
    if weight <= WEIGHT_DEFAULT {
        return weight;
    }
    WEIGHT_DEFAULT + (weight - WEIGHT_DEFAULT) * (WEIGHT_BFQ_MAX - WEIGHT_DEFAULT) / (10_000 - WEIGHT_DEFAULT)
}

fn set_limit(dir: &Path, device: &str, limit: IoLimit, v2: bool) -> Result<(), Error> {
    let IoLimit { read_bytes, write_bytes, read_ops, write_ops } = limit;
    if v2 {
        let value = |most: u64| if most == 0 { "max".to_owned() } else { most.to_string() };
        let line = format!(
            "{device} rbps={} wbps={} riops={} wiops={}",
            value(read_bytes),
            value(write_bytes),
            value(read_ops),
            value(write_ops)
        );
        return write(&dir.join("io.max"), &line).map_err(|error| refused(device, error));
    }
    for (file, most) in [
        ("blkio.throttle.read_bps_device", read_bytes),
        ("blkio.throttle.write_bps_device", write_bytes),
        ("blkio.throttle.read_iops_device", read_ops),
        ("blkio.throttle.write_iops_device", write_ops),
    ] {
        if most != 0 {
            // The kernel keeps operations in 32 bits.
            let most = if file.contains("iops") { most.min(u64::from(u32::MAX)) } else { most };
            write(&dir.join(file), &format!("{device} {most}")).map_err(|error| refused(device, error))?;
        }
    }
    Ok(())
}

/// What the kernel answers to a limit of a device that a task named.
fn refused(device: &str, error: Error) -> Error {
    let Error::Path { path, source, operation } = error else { return error };
    let why = match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => "this agent has no such block device".to_owned(),
        Some(libc::EINVAL | libc::ERANGE) => "the kernel does not take the device or the limit".to_owned(),
        Some(libc::ENOENT) => "this agent's kernel limits no disk access".to_owned(),
        _ => return Error::Path { path, source, operation },
    };
    Error::Refused { field: format!("container.io.limits[{device}]"), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_order() {
        assert_eq!([1, 50, 100, 10_000].map(bfq_weight), [1, 50, 100, 1000]);
        assert!(bfq_weight(5_000) > bfq_weight(200));
    }
}
