//! What users send: everything wrong is named by its path, nothing wrong gets through, and what is right comes back.

use std::sync::Arc;

use proffer_types::call::{AcceptCallPart, Call, ConnectionId};
use proffer_types::command::{Answer, CallId, Held, Launch, Member, Operation, Refusal};
use proffer_types::container::{
    Burst, Check, Container, ExecutorSpec, HealthCheck, Io, IoLimit, Probe, ProbePort, Rlimit, RlimitValue,
    Seccomp, UserNamespace,
};
use proffer_types::event::{
    AgentOrder, AgentRefusal, AgentReport, DataAction, Group, Hello, LaunchKind, LaunchOrder, StreamEnd,
    Update,
};
use proffer_types::{
    AgentId, AgentInfo, AttributeValue, BootId, ClusterId, Epoch, ExecutorId, FrameworkId, FrameworkInfo,
    LaunchId, Offer, OfferId, Ranges, Reason, RequestId, Resources, Role, SessionId, Source, Status, TaskId,
    TaskLaunch, TaskSpec, TaskState,
};
use proffer_wire::common::v1 as common;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::told::{Event, Subscribed};
use proffer_wire::{Malformed, from_proto, to_proto};

fn spec() -> TaskSpec {
    TaskSpec {
        argv: vec!["sleep".into(), "1".into()],
        env: [("A".to_owned(), "b=c".to_owned())].into(),
        resources: Resources::parse("cpus:0.5;mem:32MiB;ports:[31000-31001];licence:2;zones:{a,b}").unwrap(),
        kill_grace_ms: 7_000,
        ..TaskSpec::default()
    }
}

/// One that uses every field.
fn whole_spec() -> TaskSpec {
    let check = |probe| Check { probe, delay_ms: 0, interval_ms: 100, timeout_ms: 200 };
    let http = Probe::Http { port: ProbePort::Index(1), path: "/ok".into() };
    let rlimit = RlimitValue { soft: 10, hard: Some(20) };
    TaskSpec {
        container: Container {
            working_directory: "/tmp".into(),
            hostname: "box-1".into(),
            terminal: true,
            seccomp: Seccomp { profile: "strict".into(), also: "{}".into() },
            users: UserNamespace::Private,
            rlimits: [(Rlimit::Nofile, rlimit), (Rlimit::Core, RlimitValue { soft: u64::MAX, hard: None })]
                .into(),
            cpuset: Ranges::new("cpuset", [(0, 1)]).unwrap(),
            io: Io {
                weight: 500,
                limits: [("8:0".to_owned(), IoLimit { read_ops: 7, ..IoLimit::default() })].into(),
            },
            hugetlb: [(2 << 20, 0)].into(),
        },
        burst: Burst { cpus_milli: Some(0), memory_bytes: Some(64 << 20) },
        health: Some(HealthCheck { check: check(http), grace_ms: 5, failures: 1 }),
        readiness: Some(check(Probe::Command(vec!["true".into()]))),
        max_completion_ms: 60_000,
        needs: ["checks", "containment", "max_completion"].map(str::to_owned).into(),
        ..spec()
    }
}

fn offer(n: u64) -> OfferId {
    OfferId { epoch: Epoch { generation: 0, term: 3 }, n }
}

fn call_id() -> CallId {
    CallId { framework: FrameworkId(7), session: SessionId(8), seq: 5, done_below: 4, content: 0 }
}

fn task(name: &str) -> TaskLaunch {
    TaskLaunch {
        task_id: TaskId::new(name).unwrap(),
        name: "n".into(),
        env: Default::default(),
        array: Some((1, 2)),
    }
}

fn accept() -> pb::AcceptRequest {
    let launch = Launch { spec: Arc::new(spec()), tasks: vec![Ok(task("a")), Ok(task("b"))] };
    let operations = vec![Operation::Launch(launch)];
    let part = AcceptCallPart { offers: vec![offer(1), offer(2)], operations };
    to_proto::accept(&call_id(), false, &[part], None)
}

/// The spec of an Accept's only operation.
fn only(call: Call) -> Arc<TaskSpec> {
    match call {
        Call::Accept { parts, .. } => parts[0].operations[0].tasks().next().expect("a task").0.clone(),
        other => panic!("{other:?}"),
    }
}

fn alone(spec: Arc<TaskSpec>) -> pb::AcceptRequest {
    let operations = vec![Operation::Launch(Launch { spec, tasks: vec![Ok(task("a"))] })];
    let part = AcceptCallPart { offers: vec![offer(1)], operations };
    to_proto::accept(&call_id(), false, &[part], None)
}

fn group(specs: impl IntoIterator<Item = TaskSpec>) -> pb::AcceptRequest {
    let member = |(i, spec)| Member { spec: Arc::new(spec), task: Ok(task(&format!("t{i}"))) };
    let members = specs.into_iter().enumerate().map(member).collect();
    let part = AcceptCallPart { offers: vec![offer(1)], operations: vec![Operation::LaunchGroup(members)] };
    to_proto::accept(&call_id(), false, &[part], None)
}

fn launch(request: &mut pb::AcceptRequest) -> &mut pb::Launch {
    match request.parts[0].operations[0].operation.as_mut() {
        Some(pb::operation::Operation::Launch(launch)) => launch,
        _ => panic!("the request has a launch"),
    }
}

fn spec_of(request: &mut pb::AcceptRequest) -> &mut common::TaskSpec {
    launch(request).spec.as_mut().expect("the launch has a spec")
}

#[test]
fn a_valid_accept_is_what_was_meant() {
    let Ok(Call::Accept { call, atomic, parts, filter_ms }) = from_proto::accept(accept()) else {
        panic!("refused")
    };
    assert_eq!(CallId { content: 0, ..call }, call_id());
    assert_ne!(call.content, 0);
    assert_eq!((atomic, filter_ms), (false, 5_000));
    assert_eq!(parts[0].offers, [offer(1), offer(2)]);
    let launch = Launch { spec: Arc::new(spec()), tasks: vec![Ok(task("a")), Ok(task("b"))] };
    assert_eq!(parts[0].operations, [Operation::Launch(launch)]);
}

#[test]
fn a_group_is_what_was_meant() {
    let longer = TaskSpec { kill_grace_ms: 9, ..spec() };
    let request = group([spec(), longer.clone()]);
    let Ok(Call::Accept { parts, .. }) = from_proto::accept(request) else { panic!("refused") };
    let members = [(spec(), "t0"), (longer, "t1")]
        .map(|(spec, name)| Member { spec: Arc::new(spec), task: Ok(task(name)) });
    assert_eq!(parts[0].operations, [Operation::LaunchGroup(members.into())]);
    let shape = to_proto::shape(&parts);
    assert_eq!(shape, [vec![2]]);
}

#[test]
fn what_a_group_may_not_be() {
    let refused = |request| from_proto::accept(request).expect_err("refused").to_string();
    assert!(refused(group([])).contains("launch_group.members: must be 1 to 64"), "{}", refused(group([])));
    assert!(refused(group(vec![spec(); 65])).contains("and are 65"));
    let large = TaskSpec { labels: [("l".to_owned(), "x".repeat(60_000))].into(), ..spec() };
    assert!(refused(group(vec![large; 9])).contains("the limit is 524288"));
    let executor = Some(ExecutorSpec { id: ExecutorId::new("ex").unwrap(), spec: Arc::new(spec()) });
    let run = TaskSpec { argv: Vec::new(), executor, ..spec() };
    assert!(refused(group([spec(), run])).contains("members[1].spec.executor: must be that of members[0]"));
    let mut without = group([spec(), spec()]);
    match without.parts[0].operations[0].operation.as_mut() {
        Some(pb::operation::Operation::LaunchGroup(group)) => {
            group.members[0].task = None;
            group.members[1].spec.as_mut().unwrap().argv.clear();
        }
        _ => panic!("the request has a group"),
    }
    let text = refused(without);
    assert!(text.contains("members[0].task: must be given"), "{text}");
}

#[test]
fn every_field_of_a_spec_arrives() {
    let whole = Arc::new(whole_spec());
    let executed = Arc::new(TaskSpec {
        argv: Vec::new(),
        executor: Some(ExecutorSpec { id: ExecutorId::new("ex").unwrap(), spec: whole.clone() }),
        data: b"do this".to_vec(),
        needs: vec!["executor".into()],
        ..spec()
    });
    for spec in [whole, executed] {
        assert_eq!(only(from_proto::accept(alone(spec.clone())).unwrap()), spec);
    }
}

/// What is wrong with a spec, as the caller reads it.
#[test]
fn what_a_container_and_its_checks_may_not_be() {
    let refused = |change: &dyn Fn(&mut TaskSpec)| {
        let mut spec = whole_spec();
        change(&mut spec);
        match from_proto::accept(alone(Arc::new(spec))) {
            Err(error) => error.to_string(),
            Ok(_) => String::new(),
        }
    };
    let health =
        |probe: Probe| move |spec: &mut TaskSpec| spec.health.as_mut().unwrap().check.probe = probe.clone();
    let executor = ExecutorSpec { id: ExecutorId::new("ex").unwrap(), spec: Arc::new(spec()) };
    type Row<'a> = (&'a dyn Fn(&mut TaskSpec), &'a str);
    let rows: &[Row<'_>] = &[
        (&|spec| spec.container.hostname = "a b".into(), "hostname: must be"),
        (&|spec| spec.container.seccomp.profile = "../x".into(), "seccomp.profile: contains"),
        (&|spec| spec.container.working_directory = "a\0".into(), "working_directory: contains a NUL"),
        (
            &|spec| {
                spec.container.rlimits.insert(Rlimit::Nofile, RlimitValue { soft: 9, hard: Some(8) });
            },
            "nofile: soft is above hard",
        ),
        (&|spec| spec.container.io.weight = 10_001, "io.weight: must be"),
        (
            &|spec| {
                spec.container.io.limits.insert("sda".into(), IoLimit::default());
            },
            "is not MAJOR:MINOR",
        ),
        (
            &|spec| {
                spec.container.hugetlb.insert(3, 0);
            },
            "3 is not the size of a page",
        ),
        (&|spec| spec.burst.cpus_milli = Some(499), "burst.cpus: is less than the task holds"),
        (&|spec| spec.burst.memory_bytes = Some(1), "burst.mem: is less than the task holds"),
        (&health(Probe::Command(Vec::new())), "command.argv: must begin with a program"),
        (&health(Probe::Tcp { port: ProbePort::Number(0) }), "number: must be 1 to 65535"),
        (&health(Probe::Tcp { port: ProbePort::Index(2) }), "port 2 is asked about, the task holds 2"),
        (
            &health(Probe::Http { port: ProbePort::Number(80), path: "/a b".into() }),
            "has a space, a control character",
        ),
        (&|spec| spec.readiness.as_mut().unwrap().interval_ms = 99, "interval_ms: must be 100 to"),
        (&|spec| spec.health.as_mut().unwrap().failures = 0, "failures: must be at least 1"),
        (&|spec| spec.max_completion_ms = u64::MAX, "max_completion_ms: must be 0 to"),
        (&|spec| spec.data = b"x".to_vec(), "data: is only for a task with an executor"),
        (
            &|spec| spec.executor = Some(executor.clone()),
            "argv: must not be given for a task with an executor",
        ),
    ];
    for (change, expected) in rows {
        let said = refused(change);
        assert!(said.contains(expected), "expected {expected:?}, not {said:?}");
    }
}

#[test]
fn a_repetition_has_the_same_content_and_another_call_has_not() {
    let content = |request| match from_proto::accept(request) {
        Ok(Call::Accept { call, .. }) => call.content,
        other => panic!("{other:?}"),
    };
    let mut again = accept();
    again.call.as_mut().unwrap().done_below = 5;
    assert_eq!(content(accept()), content(again));
    let mut other = accept();
    launch(&mut other).tasks[1].task_id = "c".into();
    assert_ne!(content(accept()), content(other));
}

/// Each row spoils a valid Accept; the violation must be found at exactly this path.
#[test]
fn every_invalid_field_is_named() {
    type Spoil = fn(&mut pb::AcceptRequest);
    let rows: &[(&str, Spoil)] = &[
        ("call", |r| r.call = None),
        ("call.framework_id", |r| r.call.as_mut().unwrap().framework_id = 0),
        ("call.session", |r| r.call.as_mut().unwrap().session = 0),
        ("call.done_below", |r| r.call.as_mut().unwrap().done_below = 6),
        ("filter_ms", |r| r.filter_ms = Some(365 * 24 * 3_600_000 + 1)),
        ("parts", |r| r.parts.clear()),
        ("parts[0].offer_ids", |r| r.parts[0].offer_ids.clear()),
        ("parts[0].offer_ids[1]", |r| r.parts[0].offer_ids[1] = r.parts[0].offer_ids[0]),
        ("parts[0].offer_ids[0].epoch", |r| r.parts[0].offer_ids[0].epoch = None),
        ("parts[0].offer_ids[0].epoch.generation", |r| {
            r.parts[0].offer_ids[0].epoch = Some(common::Epoch { generation: 65_536, term: 1 })
        }),
        ("parts[0].operations[0].launch.spec", |r| launch(r).spec = None),
        ("parts[0].operations[0].launch.spec", |r| {
            spec_of(r).labels.insert("x".into(), "y".repeat(64 << 10));
        }),
        ("parts[0].operations[0].launch.spec", |r| spec_of(r).argv = vec!["x".into(); 20_000]),
        ("parts[0].operations[0].launch.tasks", |r| launch(r).tasks.clear()),
        ("parts[0].operations[0].launch.tasks[1].task_id", |r| launch(r).tasks[1].task_id = String::new()),
        ("parts[0].operations[0].launch.tasks[1].task_id", |r| launch(r).tasks[1].task_id = "a/b".into()),
        ("parts[0].operations[0].launch.tasks[1].task_id", |r| launch(r).tasks[1].task_id = "x".repeat(256)),
        ("parts[0].operations[0].launch.tasks[1].task_id", |r| launch(r).tasks[1].task_id = "a\u{7}".into()),
        ("parts[0].operations[0].launch.tasks[1].task_id", |r| launch(r).tasks[1].task_id = "..".into()),
        ("parts[0].operations[0].launch.tasks[0].name", |r| launch(r).tasks[0].name = "a\nb".into()),
        ("parts[0].operations[0].launch.tasks[0].env", |r| {
            launch(r).tasks[0].env.insert("X".into(), "y".repeat(16 << 10));
        }),
        ("parts[0].operations[0].launch.tasks[0].array_index", |r| launch(r).tasks[0].array_index = 3),
        ("parts[0].operations[0].launch.tasks[0].array_index", |r| launch(r).tasks[0].array_index = 0),
        ("parts[0].operations[0].launch.spec.argv", |r| spec_of(r).argv.clear()),
        ("parts[0].operations[0].launch.spec.argv", |r| spec_of(r).argv[0].clear()),
        ("parts[0].operations[0].launch.spec.argv[1]", |r| spec_of(r).argv[1] = "a\0b".into()),
        ("parts[0].operations[0].launch.spec.env[\"\"]", |r| {
            drop(spec_of(r).env.insert("".into(), "x".into()))
        }),
        ("parts[0].operations[0].launch.spec.env[\"A=B\"]", |r| {
            drop(spec_of(r).env.insert("A=B".into(), "x".into()))
        }),
        ("parts[0].operations[0].launch.spec.env[\"A\"]", |r| {
            drop(spec_of(r).env.insert("A".into(), "\0".into()))
        }),
        ("parts[0].operations[0].launch.spec.user", |r| spec_of(r).user = "root/../x".into()),
        ("parts[0].operations[0].launch.spec.kill_grace_ms", |r| spec_of(r).kill_grace_ms = Some(u64::MAX)),
        ("parts[0].operations[0].launch.spec.pids_max", |r| spec_of(r).pids_max = Some(0)),
        ("parts[0].operations[0].launch.spec.needs[1]", |r| spec_of(r).needs = vec!["a".into(), "a".into()]),
        ("parts[0].operations[0].launch.spec.resources", |r| spec_of(r).resources.clear()),
        ("parts[0].operations[0].launch.spec.resources[0].kind", |r| spec_of(r).resources[0].kind.clear()),
        ("parts[0].operations[0].launch.spec.resources[0].kind", |r| {
            spec_of(r).resources[0].kind = "a b".into()
        }),
        ("parts[0].operations[0].launch.spec.resources[0]", |r| spec_of(r).resources[0].value = None),
        ("parts[0].operations[0].launch.spec.resources[0].amount", |r| {
            spec_of(r).resources[0].value = Some(common::resource::Value::Amount(0))
        }),
        ("parts[0].operations[0].launch.spec.resources[0].amount", |r| {
            spec_of(r).resources[0].value = Some(common::resource::Value::Amount(1 << 63))
        }),
        ("parts[0].operations[0].launch.spec.resources[0]", |r| {
            spec_of(r).resources[0].value = spec_of(r).resources[2].value.clone()
        }),
        ("parts[0].operations[0].launch.spec.resources[1]", |r| spec_of(r).resources[1].kind = "cpus".into()),
        ("parts[0].operations[0].launch.spec.resources[2].ranges.ranges[0]", |r| ports(r, 1, 65_536)),
        ("parts[0].operations[0].launch.spec.resources[2].ranges.ranges[0]", |r| ports(r, 2, 1)),
        ("parts[0].operations[0].launch.spec.resources[2].ranges", |r| {
            spec_of(r).resources[2].value = Some(common::resource::Value::Ranges(common::Ranges::default()))
        }),
        ("parts[0].operations[0].launch.spec.resources[2]", |r| {
            spec_of(r).resources[2].value = Some(common::resource::Value::Amount(5))
        }),
        ("parts[0].operations[0].launch.spec.resources[0].attribution.reservation[1]", |r| {
            let reservation = vec!["eng".into(), "ops".into()];
            spec_of(r).resources[0].attribution =
                Some(common::Attribution { reservation, ..Default::default() })
        }),
    ];
    for (path, spoil) in rows {
        let mut request = accept();
        spoil(&mut request);
        match from_proto::accept(request) {
            Err(Malformed::Invalid { fields, .. }) => {
                assert_eq!(fields.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), [*path], "{fields:?}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn ports(request: &mut pb::AcceptRequest, first: u64, last: u64) {
    let ranges = common::Ranges { ranges: vec![common::Range { first, last }] };
    spec_of(request).resources[2].value = Some(common::resource::Value::Ranges(ranges));
}

#[test]
fn what_is_not_supported_is_named() {
    let mut request = accept();
    request.parts.push(request.parts[0].clone());
    request.parts[1].offer_ids = vec![to_proto::offer_id(offer(3))];
    request.parts[1].operations[0].operation = None;
    // A wrong field beside it does not hide it.
    launch(&mut request).tasks.clear();
    let Err(Malformed::Unsupported { path, .. }) = from_proto::accept(request) else { panic!("accepted") };
    assert_eq!(path, "parts[1].operations[0]");

    type Spoil = fn(&mut common::Attribution);
    let rows: [(&str, Spoil); 3] = [
        ("reservation", |a| a.reservation = vec!["eng".into()]),
        ("revocable", |a| a.revocable = true),
        ("disk", |a| {
            let kind = common::attribution::DiskKind::Mount.into();
            a.disk = Some(common::attribution::Disk { kind, id: "sdb".into() })
        }),
    ];
    for (field, spoil) in rows {
        let mut request = accept();
        spoil(spec_of(&mut request).resources[0].attribution.get_or_insert_default());
        let Err(Malformed::Unsupported { path, what }) = from_proto::accept(request) else {
            panic!("{field} accepted")
        };
        assert_eq!(path, format!("parts[0].operations[0].launch.spec.resources[0].attribution.{field}"));
        assert!(what.contains("not supported by this version"), "{what}");
    }
}

#[test]
fn too_many_tasks_are_refused_and_many_violations_counted() {
    let mut request = accept();
    let one = launch(&mut request).tasks[0].clone();
    launch(&mut request).tasks = vec![one.clone(); 10_001];
    let Err(Malformed::Invalid { fields, .. }) = from_proto::accept(request) else { panic!("accepted") };
    assert!(fields[0].reason.contains("10001") && fields[0].reason.contains("10000"), "{fields:?}");

    let mut request = accept();
    launch(&mut request).tasks = vec![common::TaskLaunch { task_id: "/".into(), ..one }; 10_000];
    let Err(Malformed::Invalid { fields, more }) = from_proto::accept(request) else { panic!("accepted") };
    assert_eq!((fields.len(), more), (20, 9_980));
}

#[test]
fn subscribe_is_checked() {
    let info = FrameworkInfo {
        name: "f".into(),
        roles: vec![Role::new("eng").unwrap(), Role::star()],
        failover_timeout_ms: 60_000,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        ..Default::default()
    };
    let good = || {
        to_proto::subscribe(
            &info,
            Some(FrameworkId(3)),
            Some(SessionId(4)),
            RequestId(5),
            &[Role::new("eng").unwrap()],
        )
    };
    let Ok(Call::Subscribe { connection, framework, session, origin, info: parsed, suppressed }) =
        from_proto::subscribe(good(), ConnectionId(9))
    else {
        panic!("refused")
    };
    assert_eq!((connection, framework, session), (ConnectionId(9), Some(FrameworkId(3)), Some(SessionId(4))));
    assert_eq!((origin, parsed, suppressed), (RequestId(5), info.clone(), vec![Role::new("eng").unwrap()]));

    type Spoil = fn(&mut pb::SubscribeRequest);
    let rows: &[(&str, Spoil)] = &[
        ("info", |r| r.info = None),
        ("info.roles", |r| {
            r.info.as_mut().unwrap().roles.clear();
            r.suppressed_roles.clear();
        }),
        ("info.roles[1]", |r| r.info.as_mut().unwrap().roles[1] = "eng".into()),
        ("info.roles[1]", |r| r.info.as_mut().unwrap().roles[1] = "eng//x".into()),
        ("info.failover_timeout_ms", |r| r.info.as_mut().unwrap().failover_timeout_ms = u64::MAX),
        ("info.labels[\"\"]", |r| drop(r.info.as_mut().unwrap().labels.insert("".into(), "".into()))),
        ("origin", |r| r.origin = vec![1; 15].into()),
        ("origin", |r| r.origin = vec![0; 16].into()),
        ("session", |r| r.framework_id = None),
        ("suppressed_roles[0]", |r| r.suppressed_roles[0] = "other".into()),
    ];
    for (path, spoil) in rows {
        let mut request = good();
        spoil(&mut request);
        match from_proto::subscribe(request, ConnectionId(9)) {
            Err(Malformed::Invalid { fields, .. }) => assert_eq!(fields[0].path, *path, "{fields:?}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn a_status(state: TaskState) -> Status {
    Status { exit_code: Some(0), message: "m".into(), ..Status::new(state, Reason::None, Source::Task) }
}

#[test]
fn agents_and_masters_understand_each_other() {
    let info = AgentInfo {
        hostname: "h".into(),
        resources: Resources::parse("cpus:4;mem:8GiB;ports:[31000-32000]").unwrap(),
        attributes: [
            ("rack".to_owned(), AttributeValue::Text("r1".into())),
            ("n".to_owned(), AttributeValue::Milli(-5)),
        ]
        .into(),
        features: ["x".to_owned()].into(),
        isolation: "linux".into(),
        version: "0.1.0".into(),
    };
    let hello = Hello {
        agent: Some(AgentId(2)),
        instance: RequestId(1 << 100),
        info,
        boot_id: BootId(77),
        last_seq: 4,
        digest: u64::MAX,
        epoch_seen: Epoch { generation: 1, term: 9 },
        cluster: Some(ClusterId([7; 16])),
    };
    let reports = vec![
        AgentReport::Hello(Box::new(hello)),
        AgentReport::Listing(vec![
            Held { launch: LaunchId(1), status: a_status(TaskState::Running) },
            Held { launch: LaunchId(3), status: a_status(TaskState::Finished) },
        ]),
        AgentReport::Status { launch: LaunchId(3), status: a_status(TaskState::Failed) },
        AgentReport::Pong { n: 5 },
        AgentReport::Cleaned(vec![LaunchId(3), LaunchId(1)]),
        AgentReport::Message { launch: LaunchId(3), data: vec![1, 2] },
    ];
    let epoch = Epoch { generation: 1, term: 9 };
    let message =
        from_proto::agent_message(to_proto::agent_message(Some(AgentId(2)), Some(epoch), &reports)).unwrap();
    assert_eq!((message.agent, message.epoch, message.reports), (Some(AgentId(2)), Some(epoch), reports));

    let launch = LaunchOrder {
        agent_seq: 1,
        launch: LaunchId(5),
        framework: FrameworkId(6),
        task_id: TaskId::new("t").unwrap(),
        role: Role::star(),
        spec: Arc::new(TaskSpec { user: "u".into(), ..spec() }),
        framework_user: String::new(),
        resources: spec().resources,
        env: [("X".to_owned(), "1".to_owned())].into(),
        array: Some((3, 4)),
        group: None,
        kind: LaunchKind::Task,
    };
    let welcome = AgentOrder::Welcome {
        agent: AgentId(2),
        cluster: ClusterId([7; 16]),
        ping_ms: 15_000,
        reattach_spread_ms: 10_000,
        last_seq: 9,
    };
    let open = AgentOrder::OpenData {
        ticket: [3; 16],
        principal: "p".into(),
        action: DataAction::WriteFiles,
        launch: LaunchId(5),
        expires_ms: 1_000,
    };
    let member = |launch_id, first| LaunchOrder {
        launch: LaunchId(launch_id),
        group: Some(Group { first: LaunchId(first), size: 2 }),
        ..launch.clone()
    };
    let orders = vec![
        welcome,
        AgentOrder::SendListing,
        AgentOrder::Launch(Box::new(launch.clone())),
        AgentOrder::LaunchGroup(vec![member(6, 6), member(7, 6)]),
        AgentOrder::LaunchGroup(vec![member(8, 8)]),
        AgentOrder::Launch(Box::new(LaunchOrder {
            kind: LaunchKind::Executor(ExecutorId::new("ex").unwrap()),
            ..launch.clone()
        })),
        AgentOrder::Launch(Box::new(LaunchOrder { kind: LaunchKind::TaskOf(LaunchId(4)), ..launch.clone() })),
        AgentOrder::Message { launch: LaunchId(4), data: vec![3] },
        AgentOrder::Kill { agent_seq: 2, launch: LaunchId(5), grace_ms: 0, reason: Reason::KilledByOperator },
        AgentOrder::Confirm { launch: LaunchId(5), task_seq: 3 },
        AgentOrder::Forget { launch: LaunchId(5) },
        AgentOrder::Ping { n: 4 },
        open,
        AgentOrder::Refused(AgentRefusal::WrongCluster),
    ];
    let items = orders.iter().flat_map(to_proto::agent_order).collect();
    assert_eq!(from_proto::master_message(to_proto::master_message(epoch, items)), Ok((epoch, orders)));

    // The framework's user stands in for a spec without one.
    let order = LaunchOrder { spec: Arc::new(spec()), framework_user: "fw".into(), ..launch };
    let items = to_proto::agent_order(&AgentOrder::Launch(Box::new(order)));
    let (_, orders) = from_proto::master_message(to_proto::master_message(epoch, items)).unwrap();
    assert!(matches!(&orders[0], AgentOrder::Launch(order) if order.spec.user == "fw"));
}

#[test]
fn frameworks_hear_what_is_told() {
    let info = AgentInfo { hostname: "h".into(), ..AgentInfo::default() };
    let given = Offer {
        id: offer(1),
        framework: FrameworkId(7),
        role: Role::star(),
        agent: AgentId(2),
        resources: spec().resources,
    };
    let first = Subscribed {
        framework: FrameworkId(7),
        session: SessionId(8),
        heartbeat_ms: 15_000,
        cluster: ClusterId([7; 16]),
        epoch: Epoch { generation: 0, term: 3 },
        last_seq: 2,
    };
    let update = Update {
        launch: Some(LaunchId(5)),
        task_id: TaskId::new("t").unwrap(),
        agent: AgentId(2),
        status: Some(a_status(TaskState::Finished)),
        acknowledge: true,
    };
    let executor = ExecutorId::new("ex").unwrap();
    let unknown = Update { launch: None, status: None, acknowledge: false, ..update.clone() };
    let events = vec![
        to_proto::subscribed(&first),
        to_proto::snapshot(vec![]),
        to_proto::snapshot_end(4),
        to_proto::offers([(&given, &info)]),
        to_proto::rescind(&[offer(1)]),
        to_proto::update(&update),
        to_proto::update(&unknown),
        to_proto::failure(AgentId(2), true),
        to_proto::error(StreamEnd::Resync),
        to_proto::heartbeat(9),
        pb::Event { event: None },
        to_proto::executor_ended(AgentId(2), &executor, &a_status(TaskState::Failed)),
        to_proto::message(AgentId(2), &executor, vec![1, 2]),
    ];
    let told = from_proto::events(pb::Events { events }).unwrap();
    assert_eq!(told[0], Event::Subscribed(first));
    assert_eq!(told[2], Event::SnapshotEnd { index: 4 });
    assert!(
        matches!(&told[3], Event::Offers(o) if o[0].resources == given.resources && o[0].hostname == "h")
    );
    assert_eq!(told[4], Event::Rescind(vec![offer(1)]));
    assert_eq!(told[5], Event::Update(update));
    assert_eq!(told[6], Event::Update(unknown));
    assert_eq!(told[7], Event::Failure { agent: AgentId(2), removed: true });
    assert!(matches!(&told[8], Event::Error { end: Some(StreamEnd::Resync), .. }));
    assert_eq!((&told[9], &told[10]), (&Event::Heartbeat { index: 9 }, &Event::Other));
    let status = Box::new(a_status(TaskState::Failed));
    assert_eq!(told[11], Event::ExecutorEnded { agent: AgentId(2), executor: executor.clone(), status });
    assert_eq!(told[12], Event::Message { agent: AgentId(2), executor, data: vec![1, 2].into() });
}

#[test]
fn outcomes_line_up_with_the_tasks() {
    let answer = Answer {
        index: 3,
        content: 0,
        first_launch: LaunchId(100),
        outcomes: vec![None, Some(Refusal::TaskIdInUse), None, None],
        rejected: None,
    };
    let accepted = from_proto::accept_response(to_proto::accept_response(&answer, &[vec![2, 0], vec![2]]));
    let ids: Vec<_> =
        accepted.parts.iter().flatten().flatten().map(|task| task.as_ref().ok().copied()).collect();
    assert_eq!(ids, [Some(LaunchId(100)), None, Some(LaunchId(101)), Some(LaunchId(102))]);
    assert_eq!(accepted.parts[0][0][1].as_ref().unwrap_err().code, "TASK_ID_IN_USE");
    assert_eq!(accepted.parts.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
}
