//! Golden texts: what scripts and people have come to rely on.

use std::collections::{BTreeMap, BTreeSet};

use proffer_client::rows::{AgentRow, FrameworkRow, MasterRow, OfferRow, StatusSummary, TaskRow};
use proffer_types::{
    AgentId, AttributeValue, CellTag, ClusterId, FrameworkId, FrameworkInfo, LaunchId, MasterId, Reason,
    Resources, Role, Source, Status as TaskStatus, TaskId, TaskState,
};

use serde_json::Value;

use super::*;

const CELL: CellTag = CellTag(0x7f3a);
const NOW: u64 = 1_763_867_750_123;

fn out(format: Format) -> Out {
    Out { format, quiet: false, colour: false }
}

fn task(name: &str, state: TaskState, reason: Reason) -> Task {
    let mut status = TaskStatus::new(state, reason, Source::Task);
    status.exit_code = (reason == Reason::ExitCode).then_some(7);
    status.memory_peak_bytes = (reason == Reason::OutOfMemory).then_some(64 << 20);
    status.isolation = Some("linux".into());
    status.message =
        if reason == Reason::ExitCode { "the program exited with code 7".into() } else { String::new() };
    let row = TaskRow {
        task_id: TaskId::new(name).unwrap(),
        framework: FrameworkId(0x1c),
        agent: AgentId(3),
        name: String::new(),
        role: Role::star(),
        status,
        resources: Resources::parse("cpus:0.1;mem:64MiB").unwrap(),
        created_ms: NOW - 90_000,
        started_ms: Some(NOW - 89_000),
        finished_ms: state.is_terminal().then_some(NOW - 1_000),
        launch: LaunchId(0x2a),
        argv: vec!["sh".into(), "-c".into(), "exit 7".into()],
        user: String::new(),
        hostname: "node1".into(),
        retired: false,
        group: None,
        executor: String::new(),
        terminal: false,
    };
    Task::new(row, CELL)
}

#[test]
fn tasks_in_a_table() {
    let rows = [
        task("web.1", TaskState::Running, Reason::None),
        task("hog", TaskState::Failed, Reason::OutOfMemory),
        task("seven", TaskState::Failed, Reason::ExitCode),
    ];
    assert_eq!(
        out(Format::Table).list_text(&rows, NOW),
        "\
TASK              STATE    WHY     AGENT       ROLE  CPUS  MEM    AGE
fw_7f3a_1c/web.1  RUNNING  -       agt_7f3a_3  *     0.1   64MiB  1m
fw_7f3a_1c/hog    FAILED   oom     agt_7f3a_3  *     0.1   64MiB  1m
fw_7f3a_1c/seven  FAILED   exit 7  agt_7f3a_3  *     0.1   64MiB  1m
"
    );
    let quiet = Out { quiet: true, ..out(Format::Table) };
    assert_eq!(quiet.list_text(&rows[..1], NOW), "fw_7f3a_1c/web.1\n");
    assert_eq!(
        out(Format::Table).list_text::<Task>(&[], NOW),
        "TASK  STATE  WHY  AGENT  ROLE  CPUS  MEM  AGE\n"
    );
}

#[test]
fn a_task_in_json() {
    let one = task("seven", TaskState::Failed, Reason::ExitCode);
    let shown: Value = serde_json::from_str(&out(Format::Json).show_text(&one, "", &[])).unwrap();
    let expected = serde_json::json!({
        "task_id": "seven",
        "framework_id": "fw_7f3a_1c",
        "agent_id": "agt_7f3a_3",
        "launch_id": "lch_7f3a_2a",
        "name": "seven",
        "role": "*",
        "state": "FAILED",
        "reason": "exit_code",
        "source": "TASK",
        "message": "the program exited with code 7",
        "exit_code": 7,
        "signal": null,
        "cpus": 0.1,
        "memory_bytes": 67_108_864,
        "disk_bytes": 0,
        "ports": [],
        "memory_peak_bytes": null,
        "output_dropped_bytes": null,
        "healthy": null,
        "ready": null,
        "group": null,
        "group_size": null,
        "executor_id": null,
        "terminal": false,
        "isolation": "linux",
        "created_at": "2025-11-23T03:14:20.123Z",
        "started_at": "2025-11-23T03:14:21.123Z",
        "finished_at": "2025-11-23T03:15:49.123Z",
        "hostname": "node1",
        "user": "nobody",
        "command": ["sh", "-c", "exit 7"],
    });
    assert_eq!(shown, expected);
    let list: Value =
        serde_json::from_str(&out(Format::Json).list_text(std::slice::from_ref(&one), NOW)).unwrap();
    assert_eq!(list, serde_json::json!({ "tasks": [expected] }));
    let both = out(Format::Jsonl).list_text(&[one.clone(), one], NOW);
    assert_eq!(both.lines().count(), 2);
    assert_eq!(serde_json::from_str::<Value>(both.lines().next().unwrap()).unwrap(), expected);
}

#[test]
fn what_checks_say_of_a_running_task_is_seen() {
    let says = |healthy, ready| {
        let mut one = task("web", TaskState::Running, Reason::None);
        let mut row = one.known.clone();
        (row.status.healthy, row.status.ready) = (healthy, ready);
        row.group = Some(proffer_types::event::Group { first: LaunchId(0x2a), size: 3 });
        one = Task::new(row, CELL);
        (one.row(NOW)[2].content(), one.details())
    };
    assert_eq!(says(Some(true), Some(true)).0, "-");
    assert_eq!(says(Some(true), Some(false)).0, "not ready");
    let (why, details) = says(Some(false), Some(false));
    assert_eq!(why, "unhealthy");
    assert!(details.contains(&("healthy", "no".to_owned())), "{details:?}");
    assert!(details.contains(&("group", "3 tasks, the first is lch_7f3a_2a".to_owned())), "{details:?}");
}

#[test]
fn a_task_in_lines() {
    let one = task("hog", TaskState::Failed, Reason::OutOfMemory);
    assert_eq!(
        out(Format::Table).show_text(&one, "", &one.details()),
        "\
task         fw_7f3a_1c/hog
name         hog
state        FAILED
reason       oom
source       TASK
message      -
command      sh -c exit 7
user         nobody
role         *
resources    cpus 0.1, mem 64MiB
memory peak  64MiB
isolation    linux
agent        agt_7f3a_3 (node1)
launch       lch_7f3a_2a
created      2025-11-23T03:14:20.123Z
started      2025-11-23T03:14:21.123Z
finished     2025-11-23T03:15:49.123Z
"
    );
}

#[test]
fn names_in_tables_are_harmless() {
    let row = FrameworkRow {
        id: FrameworkId(2),
        info: FrameworkInfo {
            name: "a\u{1b}[2Jb\nc".into(),
            roles: vec![Role::star()],
            ..FrameworkInfo::default()
        },
        state: "CONNECTED".into(),
        principal: "anonymous".into(),
        live_tasks: 2,
        used: Resources::parse("cpus:0.5;mem:1GiB").unwrap(),
        offered: Resources::new(),
        registered_ms: NOW - 7_200_000,
        remaining_ms: None,
        completion_reason: String::new(),
    };
    let one = Framework::new(row, CELL);
    assert_eq!(
        out(Format::Table).list_text(std::slice::from_ref(&one), NOW),
        "\
FRAMEWORK  NAME            STATE      ROLES  TASKS  CPUS  MEM   AGE
fw_7f3a_2  a\\u{1b}[2Jb\\nc  CONNECTED  *      2      0.5   1GiB  2h
"
    );
    assert!(!out(Format::Table).show_text(&one, "", &one.details()).contains('\u{1b}'));
    assert!(!out(Format::Json).show_text(&one, "", &[]).contains('\u{1b}'));
}

#[test]
fn agents_in_a_table_and_in_json() {
    let row = AgentRow {
        id: AgentId(3),
        hostname: "node1".into(),
        state: "REACHABLE".into(),
        connected: true,
        total: Resources::parse("cpus:1.9;mem:6GiB;disk:10GiB;ports:[31000-31499]").unwrap(),
        used: Resources::parse("cpus:0.1;mem:64MiB").unwrap(),
        offered: Resources::new(),
        attributes: BTreeMap::from([
            ("rack".into(), AttributeValue::Text("r1".into())),
            ("speed".into(), AttributeValue::Milli(2_500)),
        ]),
        isolation: "linux".into(),
        version: "0.1.0".into(),
        registered_ms: NOW - 5_000,
        live_tasks: 1,
        features: BTreeSet::new(),
    };
    let one = Agent::new(row, CELL);
    assert_eq!(
        out(Format::Table).list_text(std::slice::from_ref(&one), NOW),
        "\
AGENT       HOST   STATE      CONNECTED  TASKS  CPUS     MEM         ISOLATION  AGE
agt_7f3a_3  node1  REACHABLE  yes        1      0.1/1.9  64MiB/6GiB  linux      5s
"
    );
    let shown: Value = serde_json::from_str(&out(Format::Json).show_text(&one, "", &[])).unwrap();
    assert_eq!(shown["total"]["cpus"], 1.9);
    assert_eq!(shown["total"]["ports"], serde_json::json!([[31000, 31499]]));
    assert_eq!(shown["attributes"], serde_json::json!({"rack": "r1", "speed": 2.5}));
    assert!(one.details().contains(&("attributes", "rack=r1 speed=2.5".into())));
}

#[test]
fn offers_and_masters_in_tables() {
    let offer = OfferRow {
        id: "off_7f3a_0-3-9".into(),
        framework: FrameworkId(0x1c),
        agent: AgentId(3),
        role: Role::star(),
        resources: Resources::parse("cpus:1;mem:1GiB").unwrap(),
        age_ms: 2_500,
    };
    assert_eq!(
        out(Format::Table).list_text(&[Offer::new(offer, CELL)], NOW),
        "\
OFFER           FRAMEWORK   AGENT       ROLE  RESOURCES         AGE
off_7f3a_0-3-9  fw_7f3a_1c  agt_7f3a_3  *     cpus 1, mem 1GiB  2s
"
    );
    let master =
        MasterRow { id: MasterId(1), addr: "127.0.0.1:5050".into(), role: "leader".into(), index: 42 };
    assert_eq!(
        out(Format::Table).list_text(&[Master::from(master)], NOW),
        "\
MASTER  ADDRESS         ROLE    INDEX
1       127.0.0.1:5050  leader  42
"
    );
}

#[test]
fn the_status_has_the_documented_shape() {
    let summary = StatusSummary {
        leader: "127.0.0.1:5050".into(),
        leader_id: MasterId(1),
        term: 3,
        masters: vec![MasterRow {
            id: MasterId(1),
            addr: "127.0.0.1:5050".into(),
            role: "leader".into(),
            index: 9,
        }],
        agents_reachable: 2,
        agents_unreachable: 1,
        total: Resources::parse("cpus:2;mem:4GiB").unwrap(),
        used: Resources::parse("cpus:0.5;mem:1GiB").unwrap(),
        offered: Resources::new(),
        free: Resources::parse("cpus:1.5;mem:3GiB").unwrap(),
        tasks: BTreeMap::from([("RUNNING".into(), 3), ("FAILED".into(), 0)]),
        frameworks: BTreeMap::from([("CONNECTED".into(), 1)]),
    };
    let status = Status::new(ClusterId([0xab; 16]), summary);
    let shown = serde_json::to_value(&status).unwrap();
    assert_eq!(shown["cluster_id"], "ab".repeat(16));
    assert_eq!(shown["agents"], serde_json::json!({"reachable": 2, "unreachable": 1}));
    assert_eq!(shown["resources"]["free"]["memory_bytes"], 3u64 << 30);
    assert_eq!(shown["tasks"]["RUNNING"], 3);
    assert_eq!(
        status.text(),
        format!(
            "\
cluster     {}
leader      127.0.0.1:5050 (master 1, term 3)
masters     1 127.0.0.1:5050 leader
agents      2 reachable, 1 unreachable
frameworks  1 CONNECTED
tasks       3 RUNNING

RESOURCES  CPUS  MEM   DISK
total      2     4GiB  0B
used       0.5   1GiB  0B
offered    0     0B    0B
free       1.5   3GiB  0B
",
            "ab".repeat(16)
        )
    );
}
