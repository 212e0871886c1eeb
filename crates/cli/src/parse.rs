//! Values on the command line.

use std::time::Duration;

use proffer_types::Role;
use proffer_types::resources::{parse_bytes, parse_milli};

/// Cpus as a decimal; the result is in thousandths.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    parse_milli(text).and_then(positive)
}

/// A size with a unit; the result is in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).and_then(positive)
}

fn positive(amount: u64) -> Result<u64, String> {
    if amount == 0 { Err("must be greater than 0".into()) } else { Ok(amount) }
}

/// `500ms`, `10s`, `5m`, `2h`; a bare 0 needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 500ms, 10s or 5m");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let unit_ms: u64 = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 1,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// `K=V`.
pub(crate) fn env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.into(), value.into())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

/// `1-N`; the result is N.
pub(crate) fn array(text: &str) -> Result<u32, String> {
    let count = text.strip_prefix("1-").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    count.ok_or_else(|| format!("`{text}` is not a range 1-N, as in 1-100"))
}

/// A path in the role tree.
pub(crate) fn role(text: &str) -> Result<Role, String> {
    Role::new(text).map_err(|error| error.to_string())
}

/// `HOST:PORT`.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not HOST:PORT, as in 127.0.0.1:5050");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host_ok =
        !host.is_empty() && !host.contains(['/', '@', '?', '#']) && !host.contains(char::is_whitespace);
    match port.parse::<u16>() {
        Ok(port) if port > 0 && host_ok => Ok(text.into()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_strictly() {
        assert_eq!(cpus("0.5"), Ok(500));
        assert!(cpus("0").is_err() && cpus("-1").is_err() && cpus("x").is_err());
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert!(size("64").is_err() && size("64M").is_err());
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("10").is_err() && duration("s").is_err() && duration("1d").is_err());
        assert_eq!(env("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(env("A="), Ok(("A".into(), String::new())));
        assert!(env("A").is_err() && env("=x").is_err());
        assert_eq!(array("1-1000"), Ok(1000));
        for wrong in ["0-3", "2-3", "1-0", "1-", "3", "1-x", "1--1"] {
            assert!(array(wrong).is_err(), "{wrong}");
        }
        assert!(address("127.0.0.1:5050").is_ok() && address("[::1]:5050").is_ok());
        assert!(address("127.0.0.1").is_err() && address(":1").is_err() && address("a b:1").is_err());
    }
}
