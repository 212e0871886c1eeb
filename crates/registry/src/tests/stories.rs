//! Whole lives, as scripts: commands in, changes out.

use super::*;

/// Runs the commands and compares the changes, each as one line of text.
fn story(lab: &mut Lab, steps: Vec<(Command, &str)>) {
    for (n, (command, expected)) in steps.into_iter().enumerate() {
        let changes = lab.run(command);
        let lines: Vec<String> = changes.iter().map(line).collect();
        let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, expected, "step {n}");
    }
}

fn line(change: &Change) -> String {
    match change {
        Change::AgentAttached { agent, attachment, forget, confirm, returned, .. } => {
            let returned = if *returned { " returned" } else { "" };
            format!("attached {agent:?} #{attachment} forget {forget:?} confirm {confirm:?}{returned}")
        }
        Change::TaskLaunched { launch, agent, resources, .. } => {
            format!("launched {launch:?} on {agent:?} {resources}")
        }
        Change::StatusChanged { launch, from, status, .. } => {
            let (m, t) = status.position();
            let reason = if status.reason == Reason::None { "" } else { " " };
            format!("{launch:?} {from} -> {} {m}.{t}{reason}{}", status.state, status.reason)
        }
        Change::StatusConfirmed { launch, task_seq, .. } => format!("confirmed {launch:?} {task_seq}"),
        Change::ResourcesReturned { launch, resources, .. } => format!("returned {launch:?} {resources}"),
        Change::KillOrdered { launch, .. } => format!("kill {launch:?}"),
        Change::Acknowledged { launch, .. } => format!("acknowledged {launch:?}"),
        Change::TaskRetired { launch, .. } => format!("retired {launch:?}"),
        Change::Answered { answer, repeated } => {
            let again = if *repeated { "again" } else { "answered" };
            match answer.rejected {
                None => format!("{again} {:?} {:?}", answer.first_launch, answer.outcomes),
                Some(rejection) => format!("{again} {rejection:?}"),
            }
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn one_task_from_offer_to_history() {
    let mut lab = Lab::default();
    let origin = RequestId(1);
    let instance = RequestId(2);
    let (agent, framework, session, launch) = (AgentId(1), FrameworkId(2), SessionId(3), LaunchId(4));
    let call = |seq| CallId { framework, session, seq, done_below: 0, content: seq };
    let attach = Attach {
        agent,
        instance,
        info: agent_info("cpus:4;mem:1GiB"),
        boot_id: BootId(1),
        last_seq: 0,
        digest: proffer_types::agent::holdings_digest([]),
        held: None,
    };
    let statuses = |statuses| Command::Statuses { agent, attachment: 1, statuses };
    let wanted = "cpus:0.5;mem:64MiB";
    story(
        &mut lab,
        vec![
            (Command::Form { cluster: ClusterId([1; 16]), masters: vec![] }, "Formed"),
            (
                Command::RegisterAgent { instance, info: agent_info("cpus:4;mem:1GiB"), boot_id: BootId(1) },
                "AgentRegistered { agent: agt_1, repeated: false }",
            ),
            (Command::AttachAgent(attach), "attached agt_1 #1 forget [] confirm []"),
            (
                Command::OpenSession { framework: None, origin, info: framework_info() },
                "FrameworkAdded { framework: fw_2 }
             SessionOpened { framework: fw_2, session: ses_3, origin: RequestId(1) }",
            ),
            (
                Command::Accept {
                    call: call(1),
                    atomic: false,
                    parts: vec![part(agent, "cpus:4;mem:1GiB", vec![one(spec(wanted), "hello")])],
                },
                "launched lch_4 on agt_1 cpus:0.5;mem:64MiB
             answered lch_4 [None]",
            ),
            (
                statuses(vec![
                    (launch, status(1, TaskState::Starting)),
                    (launch, status(2, TaskState::Running)),
                ]),
                "lch_4 STAGING -> STARTING 0.1
             confirmed lch_4 1
             lch_4 STARTING -> RUNNING 0.2
             confirmed lch_4 2",
            ),
            (
                Command::Acknowledge {
                    call: call(2),
                    acks: vec![Ack { launch, master_seq: 0, task_seq: 1 }],
                },
                "acknowledged lch_4
             answered lch_0 []",
            ),
            (
                statuses(vec![(launch, status(3, TaskState::Finished))]),
                "lch_4 RUNNING -> FINISHED 0.3
             returned lch_4 cpus:0.5;mem:64MiB
             confirmed lch_4 3",
            ),
            (
                Command::Acknowledge {
                    call: call(3),
                    acks: vec![Ack { launch, master_seq: 0, task_seq: 3 }],
                },
                "acknowledged lch_4
             retired lch_4
             answered lch_0 []",
            ),
            (
                Command::Acknowledge {
                    call: call(3),
                    acks: vec![Ack { launch, master_seq: 0, task_seq: 3 }],
                },
                "again lch_0 []",
            ),
            (Command::Kill { call: call(4), task: task_id("hello"), grace_ms: None }, "answered UnknownTask"),
        ],
    );
}

#[test]
fn a_partition_and_a_return() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let runs = lab.running(framework, agent, "runs", "cpus:1");
    let ends = lab.running(framework, agent, "ends", "cpus:1");
    let unsent = lab.launch(framework, agent, "unsent", "cpus:1");
    assert_eq!((runs, ends, unsent), (LaunchId(4), LaunchId(5), LaunchId(6)));
    let mut opening = lab.opening(agent);
    (opening.last_seq, opening.digest) = (2, 0);
    let listing = Attach {
        held: Some(vec![held(runs, 1, TaskState::Running), held(ends, 2, TaskState::Finished)]),
        ..opening.clone()
    };
    let call = lab.call(framework);
    story(
        &mut lab,
        vec![
            (
                Command::MarkUnreachable { agent, attachment: 1 },
                "AgentUnreachable { agent: agt_1 }
             lch_4 RUNNING -> UNREACHABLE 1.1 agent_lost
             lch_5 RUNNING -> UNREACHABLE 1.1 agent_lost
             lch_6 STAGING -> UNREACHABLE 1.0 agent_lost",
            ),
            (
                Command::Kill { call, task: task_id("runs"), grace_ms: Some(1) },
                "kill lch_4
             answered lch_0 []",
            ),
            (Command::AttachAgent(opening), "Rejected { rejection: ListingNeeded }"),
            (
                Command::AttachAgent(listing),
                "attached agt_1 #2 forget [] confirm [(lch_4, 1), (lch_5, 2)] returned
             lch_4 UNREACHABLE -> RUNNING 2.1 agent_returned
             lch_5 UNREACHABLE -> FINISHED 2.2
             returned lch_5 cpus:1
             lch_6 UNREACHABLE -> DROPPED 2.0 agent_unreachable
             returned lch_6 cpus:1",
            ),
            (
                Command::Statuses {
                    agent,
                    attachment: 2,
                    statuses: vec![(runs, status(2, TaskState::Killed))],
                },
                "lch_4 RUNNING -> KILLED 2.2
             returned lch_4 cpus:1
             confirmed lch_4 2",
            ),
        ],
    );
    assert_eq!(lab.agent_record(agent).used, r(""));
}
