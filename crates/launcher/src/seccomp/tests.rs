use super::*;

/// What the kernel would do with a call.
fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    data[0] = number;
    data[1] = architecture;
    for (index, argument) in arguments.iter().enumerate() {
        data[4 + 2 * index] = *argument as u32;
        data[5 + 2 * index] = (*argument >> 32) as u32;
    }
    let (mut at, mut a) = (0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program.0[at];
        at += 1;
        let mut jump = |yes| at += usize::from(if yes { jt } else { jf });
        match code {
            0x20 => a = data[k as usize / 4],
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn number(name: &str) -> u32 {
    match table::look_up(name) {
        Named::Number(number) => number,
        other => panic!("{name}: {other:?}"),
    }
}

fn call(program: &Program, name: &str, arguments: &[u64]) -> u32 {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    run(program, table::AUDIT_ARCH, number(name), six)
}

fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

#[test]
fn the_default_is_short_and_denies_what_it_says() {
    let program = Profile::default().compile().expect("compiled");
    assert!(program.len() < 160, "{} instructions", program.len());
    for name in DENIED.split_ascii_whitespace() {
        match table::look_up(name) {
            Named::Number(_) => assert_eq!(call(&program, name, &[]), errno(libc::EPERM), "{name}"),
            Named::Foreign => {}
            Named::Unknown => panic!("{name} is no system call"),
        }
    }
    for name in
        ["read", "execve", "seccomp", "mmap", "futex", "prctl", "kill", "pidfd_open", "mseal", "clone"]
    {
        assert_eq!(call(&program, name, &[]), ALLOW, "{name}");
    }
    assert_eq!(call(&program, "clone3", &[]), errno(libc::ENOSYS));
    for flag in [17, 25, 26, 27, 28, 29, 30] {
        assert_eq!(call(&program, "clone", &[(1 << flag) | 17]), errno(libc::EPERM), "bit {flag}");
        assert_eq!(call(&program, "unshare", &[1 << flag]), errno(libc::EPERM), "bit {flag}");
        assert_eq!(call(&program, "clone", &[(1 << 32) | (1 << flag)]), errno(libc::EPERM), "bit {flag}");
    }
    assert_eq!(call(&program, "unshare", &[NEW_TIME]), errno(libc::EPERM));
    assert_eq!(call(&program, "unshare", &[0x200]), ALLOW, "CLONE_FS");
    assert_eq!(call(&program, "clone", &[0x3d_0f00]), ALLOW, "a thread");
    for family in 0..64 {
        let (plain, odd) =
            (call(&program, "socket", &[family, 1, 0]), call(&program, "socket", &[family, 1, 9]));
        let refused = errno(libc::EAFNOSUPPORT);
        match family {
            1 | 2 | 10 => assert_eq!((plain, odd), (ALLOW, ALLOW)),
            16 => assert_eq!((plain, odd), (ALLOW, refused), "routing only"),
            _ => assert_eq!((plain, odd), (refused, refused), "family {family}"),
        }
        // The kernel reads 32 bits of it: a filter that reads 64 must not be fooled.
        assert_eq!(call(&program, "socket", &[family | 1 << 32, 1, 0]), refused);
    }
    assert_eq!(call(&program, "personality", &[0xffff_ffff]), ALLOW);
    assert_eq!(call(&program, "personality", &[0x4_0000]), errno(libc::EPERM), "ADDR_NO_RANDOMIZE");
    assert_eq!(run(&program, table::AUDIT_ARCH, 470, [0; 6]), errno(libc::ENOSYS));
    assert_eq!(run(&program, table::AUDIT_ARCH, u32::MAX, [0; 6]), KILL_PROCESS);
    assert_eq!(run(&program, table::AUDIT_ARCH ^ 1, 0, [0; 6]), KILL_PROCESS, "another architecture");
    #[cfg(target_arch = "x86_64")]
    assert_eq!(run(&program, table::AUDIT_ARCH, 0x4000_0000, [0; 6]), KILL_PROCESS, "x32");
}

#[test]
fn comparisons_are_of_64_bits() {
    const V: u64 = 0x1_0000_0005;
    let around = [0, 4, 5, 6, V - 1, V, V + 1, 0x2_0000_0000, u64::MAX];
    type Holds = fn(u64) -> bool;
    let cases: [(&str, Holds); 7] = [
        ("SCMP_CMP_NE", |a| a != V),
        ("SCMP_CMP_LT", |a| a < V),
        ("SCMP_CMP_LE", |a| a <= V),
        ("SCMP_CMP_EQ", |a| a == V),
        ("SCMP_CMP_GE", |a| a >= V),
        ("SCMP_CMP_GT", |a| a > V),
        ("SCMP_CMP_MASKED_EQ", |a| a & V == 4),
    ];
    for (op, holds) in cases {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read","_llseek"],
            "action":"SCMP_ACT_ALLOW","args":[{{"index":2,"value":{V},"valueTwo":4,"op":"{op}"}}]}}]}}"#
        );
        let program = Profile::parse(&json).expect("a profile").compile().expect("compiled");
        for value in around {
            let wanted = if holds(value) { ALLOW } else { errno(libc::EPERM) };
            assert_eq!(call(&program, "read", &[0, 0, value]), wanted, "{op} {value:#x}");
        }
        assert_eq!(call(&program, "write", &[]), errno(libc::EPERM));
    }
}

#[test]
fn the_first_rule_that_applies_counts_and_long_profiles_hold_together() {
    // Every second call with conditions of its own: jumps of more than 255 instructions.
    let mut rules = String::new();
    for (index, name) in ["read", "open", "stat", "lstat", "lseek", "mprotect"].iter().enumerate() {
        for value in 0..40 {
            rules += &format!(
                r#"{{"name":"{name}","action":"SCMP_ACT_ERRNO","errnoRet":{},
                "args":[{{"index":{index},"value":{value},"op":"SCMP_CMP_EQ"}}]}},"#,
                100 + value
            );
        }
        rules += &format!(r#"{{"name":"{name}","action":"SCMP_ACT_TRAP"}},"#);
    }
    rules += r#"{"name":"read","action":"SCMP_ACT_KILL_PROCESS"}"#;
    let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#);
    let program = Profile::parse(&json).expect("a profile").compile().expect("compiled");
    assert!(program.len() > 600);
    for (index, name) in ["read", "open", "stat", "lstat", "lseek", "mprotect"].iter().enumerate() {
        for value in 0..50 {
            let mut arguments = [u64::MAX; 6];
            arguments[index] = value;
            let wanted = if value < 40 { errno(100 + value as i32) } else { libc::SECCOMP_RET_TRAP };
            assert_eq!(call(&program, name, &arguments), wanted, "{name} {value}");
        }
    }
    assert_eq!(call(&program, "write", &[]), ALLOW);
    let bytes = program.to_bytes();
    assert_eq!(Program::from_bytes(&bytes).expect("a program").to_bytes(), bytes);
    assert_eq!(Program::from_bytes(&bytes[1..]).expect_err("cut"), ProgramError::Length(bytes.len() - 1));
    assert_eq!(Program::from_bytes(&[]).expect_err("empty"), ProgramError::Length(0));
    assert_eq!(Program::from_bytes(&[0; 8 * 4097]).expect_err("long"), ProgramError::TooLong(4097));
}

#[test]
fn what_a_profile_may_not_say_is_named() {
    let error = |json: &str| Profile::parse(json).expect_err(json).to_string();
    let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
    let cases = [
        ("{}".to_owned(), "missing field `defaultAction`"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":[]}"#.to_owned(), "unknown field `flags`"),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(),
            "defaultAction: SCMP_ACT_NOTIFY needs somebody",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#.to_owned(),
            "is not among them",
        ),
        (
            rule(r#"{"names":["opne"],"action":"SCMP_ACT_ERRNO"}"#),
            r#"syscalls[0].names: unknown system call "opne""#,
        ),
        (rule(r#"{"names":[],"action":"SCMP_ACT_ERRNO"}"#), "syscalls[0].names: names no system call"),
        (
            rule(r#"{"names":["open"],"action":"SCMP_ACT_NO"}"#),
            r#"syscalls[0].action: unknown action "SCMP_ACT_NO""#,
        ),
        (rule(r#"{"names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}"#), "5000 is above 4095"),
        (
            rule(
                r#"{"names":["open"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            ),
            "args[0].index: 6 is above 5",
        ),
        (
            rule(
                r#"{"names":["open"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":0,"op":"SCMP_CMP_XX"}]}"#,
            ),
            "args[0].op: unknown comparison",
        ),
        ("[".to_owned(), "EOF"),
    ];
    for (json, wanted) in cases {
        let error = error(&json);
        assert!(error.starts_with("seccomp profile: ") && error.contains(wanted), "{error}");
    }
}

#[test]
fn conditional_rules_of_docker_are_weighed() {
    let profile = |rest: &str| {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[{{"architecture":"{}",
            "subArchitectures":["SCMP_ARCH_X86"]}}],"syscalls":[{{"names":["mount"],"action":"SCMP_ACT_ALLOW",
            "comment":"","includes":{{}},"excludes":{{}},{rest}}}]}}"#,
            table::NAMES[0]
        );
        let json = json.replace(r#""includes":{},"excludes":{},"#, "");
        call(&Profile::parse(&json).expect("a profile").compile().expect("compiled"), "mount", &[])
    };
    let native = table::NAMES[1];
    assert_eq!(profile(r#""args":[]"#), ALLOW);
    assert_eq!(profile(r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#), errno(libc::ENOSYS));
    assert_eq!(profile(r#""excludes":{"caps":["CAP_SYS_ADMIN"]}"#), ALLOW);
    assert_eq!(profile(r#""includes":{"minKernel":"4.8"}"#), ALLOW);
    assert_eq!(profile(r#""includes":{"minKernel":"999.0"}"#), errno(libc::ENOSYS));
    assert_eq!(profile(&format!(r#""includes":{{"arches":["{native}"]}}"#)), ALLOW);
    assert_eq!(profile(r#""includes":{"arches":["s390"]}"#), errno(libc::ENOSYS));
    assert_eq!(profile(r#""excludes":{"arches":["s390"]}"#), ALLOW);
}

#[test]
fn the_documents_example_is_a_profile_and_does_what_it_says() {
    let text = include_str!("../../../../docs/seccomp.md");
    let (_, rest) = text.split_once("```json\n").expect("an example");
    let (json, _) = rest.split_once("```").expect("its end");
    let program = Profile::parse(json).expect("a profile").compile().expect("compiled");
    assert_eq!(call(&program, "socket", &[libc::AF_UNIX as u64]), ALLOW);
    assert_eq!(call(&program, "socket", &[libc::AF_INET as u64]), errno(libc::EACCES));
    assert_eq!(call(&program, "bind", &[]), ALLOW);
}
