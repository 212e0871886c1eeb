//! Texts for people and programs.

use std::time::{SystemTime, UNIX_EPOCH};

use proffer_types::Resources;
use proffer_types::resources::ScalarKind;

/// The wall clock in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// `text` with control characters written out, so that a name cannot move the cursor or colour the terminal.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Besides control characters: those that turn the direction of what follows, or are invisible.
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// RFC 3339 in UTC; milliseconds only where there are any.
pub(crate) fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(String::new, |stamp| stamp.to_string())
}

/// How long ago, in one unit.
pub(crate) fn age(then_ms: u64, now_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size for people: three digits or so, in a unit that fits.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < units.len() && bytes >= 1 << (10 * (unit + 1)) {
        unit += 1;
    }
    let whole = bytes >> (10 * unit);
    let rest = bytes - (whole << (10 * unit));
    let tenths = if unit == 0 { 0 } else { ((u128::from(rest) * 10) >> (10 * unit)) as u64 };
    if tenths == 0 || whole >= 100 {
        format!("{whole}{}", units[unit])
    } else {
        format!("{whole}.{tenths}{}", units[unit])
    }
}

/// Cpus for people.
pub(crate) fn cpus(resources: &Resources) -> String {
    proffer_types::resources::milli(resources.cpus_milli())
}

/// Resources in one line for people, sizes rounded.
pub(crate) fn amounts(resources: &Resources) -> String {
    if resources.is_empty() {
        return "-".into();
    }
    let mut parts =
        vec![format!("cpus {}", cpus(resources)), format!("mem {}", size(resources.memory_bytes()))];
    for (kind, name) in [(ScalarKind::Disk, "disk"), (ScalarKind::Gpus, "gpus")] {
        let amount = resources.scalar(kind);
        match kind {
            _ if amount == 0 => {}
            ScalarKind::Disk => parts.push(format!("{name} {}", size(amount))),
            _ => parts.push(format!("{name} {}", proffer_types::resources::milli(amount))),
        }
    }
    let ports: u64 = resources.entries().iter().map(|entry| entry.quantities.ports().count()).sum();
    if ports > 0 {
        parts.push(format!("{ports} ports"));
    }
    parts.join(", ")
}

/// `value`, or a dash where there is none.
pub(crate) fn or_dash(value: impl Into<String>) -> String {
    let value = value.into();
    if value.is_empty() { "-".into() } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\r\n\u{9b}2J\u{202e}ö"), "a\\u{1b}[31mb\\r\\n\\u{9b}2J\\u{202e}ö");
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(1_763_867_750_123), "2025-11-23T03:15:50.123Z");
        assert_eq!(time(u64::MAX), "");
        assert_eq!([age(0, 59_999), age(0, 60_000), age(0, 7_200_000), age(5, 0)], ["59s", "1m", "2h", "0s"]);
        assert_eq!(size(64 << 20), "64MiB");
        assert_eq!(size(1_610_612_736), "1.5GiB");
        assert_eq!(size(1023), "1023B");
        assert_eq!(size(u64::MAX), "15.9EiB");
    }

    #[test]
    fn amounts_fit_in_a_line() {
        let resources = Resources::parse("cpus:1.9;mem:6GiB;disk:10GiB;ports:[31000-31499]").unwrap();
        assert_eq!(amounts(&resources), "cpus 1.9, mem 6GiB, disk 10GiB, 500 ports");
        assert_eq!(amounts(&Resources::new()), "-");
    }
}
