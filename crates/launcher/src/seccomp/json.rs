//! Profiles in JSON.

use serde::Deserialize;

use super::table::{self, Named};
use super::{Action, Comparison, Condition, Profile, Rule};

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON, or not of the form.
    #[error("seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    /// A field whose value is not supported.
    #[error("seccomp profile: {field}: {reason}")]
    Field {
        /// The field's path, such as `syscalls[2].action`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Text {
    default_action: String,
    default_errno_ret: Option<u16>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchText>>,
    #[serde(default)]
    syscalls: Vec<RuleText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchText {
    architecture: String,
    #[allow(dead_code, reason = "read so that it is not unknown; other architectures are never let in")]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleText {
    names: Option<Vec<String>>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<ConditionText>>,
    #[allow(dead_code, reason = "for people")]
    comment: Option<String>,
    includes: Option<FilterText>,
    excludes: Option<FilterText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConditionText {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilterText {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The error number of `SCMP_ACT_ERRNO` without another.
const ERRNO_DEFAULT: u16 = libc::EPERM as u16;
/// The greatest that the kernel returns.
const ERRNO_MAX: u16 = 4095;
/// System calls have six arguments.
const ARGUMENTS: u8 = 6;

pub(super) fn parse(json: &str) -> Result<Profile, ProfileError> {
    let text: Text = serde_json::from_str(json)?;
    let listed = text.architectures.into_iter().flatten();
    let mapped = text.arch_map.into_iter().flatten().map(|entry| entry.architecture);
    let architectures = listed.chain(mapped).collect::<Vec<_>>();
    if !architectures.is_empty() && !architectures.iter().any(|name| name == table::NAMES[0]) {
        return Err(wrong("architectures", format!("{} is not among them", table::NAMES[0])));
    }
    let errno = text.default_errno_ret;
    let otherwise = action(&text.default_action, errno, "defaultAction")?;
    let mut rules = Vec::with_capacity(text.syscalls.len());
    for (index, rule) in text.syscalls.into_iter().enumerate() {
        rules.extend(read_rule(rule, &format!("syscalls[{index}]"))?);
    }
    Ok(Profile { otherwise, unknown: otherwise, rules })
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> ProfileError {
    ProfileError::Field { field: field.into(), reason: reason.into() }
}

fn read_rule(text: RuleText, at: &str) -> Result<Option<Rule>, ProfileError> {
    let names = match (text.names, text.name) {
        (Some(names), None) if !names.is_empty() => names,
        (None, Some(name)) => vec![name],
        _ => return Err(wrong(format!("{at}.names"), "names no system call")),
    };
    let mut numbers = Vec::with_capacity(names.len());
    for name in names {
        match table::look_up(&name) {
            Named::Number(number) => numbers.push(number),
            Named::Foreign => {}
            Named::Unknown => {
                return Err(wrong(format!("{at}.names"), format!("unknown system call {name:?}")));
            }
        }
    }
    let action = action(&text.action, text.errno_ret, &format!("{at}.action"))?;
    let conditions = text.args.into_iter().flatten().enumerate();
    let conditions = conditions
        .map(|(index, condition)| read_condition(&condition, &format!("{at}.args[{index}]")))
        .collect::<Result<Vec<_>, _>>()?;
    let included = match &text.includes {
        Some(filter) => matches(filter, &format!("{at}.includes"), Absent::Holds)?,
        None => true,
    };
    let excluded = match &text.excludes {
        Some(filter) => matches(filter, &format!("{at}.excludes"), Absent::Fails)?,
        None => false,
    };
    let applies = included && !excluded && !numbers.is_empty();
    Ok(applies.then_some(Rule { numbers, action, conditions }))
}

fn action(name: &str, errno: Option<u16>, at: &str) -> Result<Action, ProfileError> {
    let errno_ret = errno.unwrap_or(ERRNO_DEFAULT);
    if errno_ret > ERRNO_MAX {
        return Err(wrong(at, format!("error number {errno_ret} is above {ERRNO_MAX}")));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno_ret),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" | "SCMP_ACT_TRACE" => {
            return Err(wrong(at, format!("{name} needs somebody to ask, and there is nobody")));
        }
        _ => return Err(wrong(at, format!("unknown action {name:?}"))),
    })
}

fn read_condition(text: &ConditionText, at: &str) -> Result<Condition, ProfileError> {
    if text.index >= ARGUMENTS {
        return Err(wrong(format!("{at}.index"), format!("{} is above {}", text.index, ARGUMENTS - 1)));
    }
    let (comparison, value) = match text.op.as_str() {
        "SCMP_CMP_NE" => (Comparison::NotEqual, text.value),
        "SCMP_CMP_LT" => (Comparison::Less, text.value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, text.value),
        "SCMP_CMP_EQ" => (Comparison::Equal, text.value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, text.value),
        "SCMP_CMP_GT" => (Comparison::Greater, text.value),
        "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(text.value), text.value_two),
        other => return Err(wrong(format!("{at}.op"), format!("unknown comparison {other:?}"))),
    };
    Ok(Condition { argument: text.index, comparison, value })
}

/// What a filter that says nothing about a point means for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// `includes`: every point that is named must hold.
    Holds,
    /// `excludes`: any point that holds excludes.
    Fails,
}

fn matches(filter: &FilterText, at: &str, absent: Absent) -> Result<bool, ProfileError> {
    let kernel = match &filter.min_kernel {
        Some(version) => Some(at_least(version, &format!("{at}.minKernel"))?),
        None => None,
    };
    let arch = (!filter.arches.is_empty()).then(|| filter.arches.iter().any(|name| name == table::NAMES[1]));
    // A task has no capabilities.
    let caps = (!filter.caps.is_empty()).then_some(false);
    let mut points = [kernel, arch, caps].into_iter().flatten();
    Ok(match absent {
        Absent::Holds => points.all(|holds| holds),
        Absent::Fails => points.any(|holds| holds),
    })
}

/// Whether this kernel is of the version, such as `4.8`, or later.
fn at_least(version: &str, at: &str) -> Result<bool, ProfileError> {
    let bad = || wrong(at, format!("{version:?} is not MAJOR.MINOR"));
    let (major, minor) = version.split_once('.').ok_or_else(bad)?;
    let wanted = (major.parse::<u32>().map_err(|_| bad())?, minor.parse::<u32>().map_err(|_| bad())?);
    let own = nix::sys::utsname::uname().map_err(|error| wrong(at, format!("uname: {error}")))?;
    let own = own.release().to_string_lossy().into_owned();
    let mut numbers = own.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted)
}
