//! Launching: what is rechecked, and what a refusal leaves behind.

use super::*;
use proffer_types::limits::SPEC_BYTES_PER_FRAMEWORK;

fn outcomes(changes: &[Change]) -> Vec<Option<Refusal>> {
    answer(changes).outcomes.clone()
}

#[test]
fn tasks_are_launched_in_order_with_ids_that_follow_one_another() {
    let mut lab = Lab::default();
    let (agent, other, framework) = (lab.agent("cpus:4"), lab.agent("cpus:4"), lab.framework());
    let mut refused = many(spec("cpus:1"), &["a", "b"]);
    refused.tasks.insert(1, Err(Refusal::InvalidTaskId));
    let parts =
        vec![part(agent, "cpus:2", vec![refused]), part(other, "cpus:1", vec![one(spec("cpus:1"), "c")])];
    let first = LaunchId(lab.registry.last_id() + 1);
    let changes = lab.accept(framework, parts);
    assert_eq!(outcomes(&changes), [None, Some(Refusal::InvalidTaskId), None, None]);
    assert_eq!(answer(&changes).first_launch, first);
    let launched: Vec<(LaunchId, AgentId)> = (changes.iter())
        .filter_map(|c| match c {
            Change::TaskLaunched { launch, agent, .. } => Some((*launch, *agent)),
            _ => None,
        })
        .collect();
    assert_eq!(launched, [(first, agent), (LaunchId(first.0 + 1), agent), (LaunchId(first.0 + 2), other)]);
    let task = lab.task(first);
    assert_eq!((task.status.state, task.status.position(), task.agent_seq), (TaskState::Staging, (0, 0), 1));
    assert_eq!(task.pending, []);
    assert_eq!(lab.task(LaunchId(first.0 + 1)).agent_seq, 2);
    assert_eq!(lab.task(LaunchId(first.0 + 2)).agent_seq, 1);
    assert_eq!(lab.fw(framework).live_tasks, 3);
    assert!(lab.fw(framework).launched);
    assert_eq!(lab.registry.task_by_name(framework, &task_id("c")).map(|t| t.agent), Some(other));
}

#[test]
fn a_name_is_free_again_once_its_task_is_retired() {
    let mut lab = Lab::default();
    let (agent, framework, stranger) = (lab.agent("cpus:4"), lab.framework(), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let again = || vec![part(agent, "cpus:2", vec![many(spec("cpus:1"), &["a", "b", "b"])])];
    let changes = lab.accept(framework, again());
    assert_eq!(outcomes(&changes), [Some(Refusal::TaskIdInUse), None, Some(Refusal::TaskIdInUse)]);
    lab.launch(stranger, agent, "a", "cpus:1");
    lab.report(launch, 2, TaskState::Finished);
    assert_eq!(outcomes(&lab.accept(framework, again()))[0], Some(Refusal::TaskIdInUse));
    lab.ack_all(launch);
    assert_eq!(outcomes(&lab.accept(framework, again()))[0], None);
}

#[test]
fn an_agent_that_went_away_meanwhile_refuses() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let offer = vec![part(agent, "cpus:1", vec![one(spec("cpus:1"), "a")])];
    lab.lose(agent);
    let changes = lab.accept(framework, offer.clone());
    assert_eq!(outcomes(&changes), [Some(Refusal::AgentUnavailable)]);
    assert_eq!(answer(&changes).first_launch, LaunchId(0));
    lab.run(Command::RemoveAgent { agent });
    assert_eq!(outcomes(&lab.accept(framework, offer)), [Some(Refusal::AgentUnavailable)]);
    assert!(!lab.fw(framework).launched);
}

#[test]
fn a_part_uses_no_more_than_was_offered_and_an_agent_no_more_than_it_has() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4;ports:[1-9]"), lab.framework());
    let launches = || vec![many(spec("cpus:1"), &["a", "b", "c"])];
    let changes = lab.accept(framework, vec![part(agent, "cpus:2", launches())]);
    assert_eq!(outcomes(&changes), [None, None, Some(Refusal::NotOffered)]);
    // The broker believes in four cpus, and there are two.
    let rest = vec![many(spec("cpus:1"), &["d", "e", "f"])];
    let changes = lab.accept(framework, vec![part(agent, "cpus:4", rest)]);
    assert_eq!(outcomes(&changes), [None, None, Some(Refusal::AgentUnavailable)]);
    assert_eq!(lab.agent_record(agent).used, r("cpus:4"));
    // A smaller task after a refused one still goes on.
    let other = lab.agent("cpus:1");
    let changes = lab.accept(
        framework,
        vec![part(other, "cpus:1", vec![one(spec("cpus:2"), "g"), one(spec("cpus:1"), "h")])],
    );
    assert_eq!(outcomes(&changes), [Some(Refusal::NotOffered), None]);
}

#[test]
fn two_parts_of_one_agent_share_what_is_free() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:3"), lab.framework());
    let parts = vec![
        part(agent, "cpus:2", vec![one(spec("cpus:2"), "a")]),
        part(agent, "cpus:2", vec![one(spec("cpus:2"), "b"), one(spec("cpus:1"), "c")]),
    ];
    assert_eq!(outcomes(&lab.accept(framework, parts)), [None, Some(Refusal::AgentUnavailable), None]);
}

#[test]
fn a_port_is_held_once() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4;ports:[31000-31009]"), lab.framework());
    let wanted = "cpus:1;ports:[31001-31002]";
    let offered = "cpus:4;ports:[31000-31009]";
    let changes = lab.accept(framework, vec![part(agent, offered, vec![many(spec(wanted), &["a", "b"])])]);
    assert_eq!(outcomes(&changes), [None, Some(Refusal::NotOffered)]);
    let changes = lab.accept(framework, vec![part(agent, offered, vec![one(spec(wanted), "c")])]);
    assert_eq!(outcomes(&changes), [Some(Refusal::AgentUnavailable)]);
    let launch = answer(&lab.accept(framework, vec![])).first_launch;
    assert_eq!(launch, LaunchId(0));
}

#[test]
fn an_agent_must_know_the_features_that_a_spec_needs() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let with = |needs: &str| TaskSpec { needs: vec![needs.into()], ..spec("cpus:1") };
    let launches = vec![one(with("wings"), "a"), one(with("limits"), "b")];
    assert_eq!(
        outcomes(&lab.accept(framework, vec![part(agent, "cpus:4", launches)])),
        [Some(Refusal::FeatureUnknown), None]
    );
}

#[test]
fn a_spec_without_resources_or_too_large_is_refused() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let large = TaskSpec { argv: vec!["x".repeat(70_000)], ..spec("cpus:1") };
    let launches = vec![one(spec(""), "a"), one(large, "b")];
    assert_eq!(
        outcomes(&lab.accept(framework, vec![part(agent, "cpus:4", launches)])),
        [Some(Refusal::InvalidSpec); 2]
    );
}

#[test]
fn specs_are_kept_once_counted_and_limited() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:9000"), lab.framework());
    let big = |n: usize| TaskSpec { argv: vec![format!("{n}-{}", "x".repeat(65_000))], ..spec("cpus:1") };
    let bytes = big(1000).encoded_bytes();
    let fit = SPEC_BYTES_PER_FRAMEWORK as u64 / bytes;
    let mut launches: Vec<Launch> =
        (0..fit + 1).map(|n| one(big(1000 + n as usize), &format!("t{n}"))).collect();
    // One that comes twice in the same call counts once.
    launches.insert(1, one(big(1000), "twin"));
    let changes = lab.accept(framework, vec![part(agent, "cpus:9000", launches)]);
    let refused: Vec<usize> =
        (outcomes(&changes).iter().enumerate()).filter(|o| o.1.is_some()).map(|o| o.0).collect();
    assert_eq!(refused, [fit as usize + 1]);
    assert_eq!(lab.fw(framework).spec_bytes, fit * bytes);
    // A spec that is there already costs nothing more.
    let changes = lab.accept(framework, vec![part(agent, "cpus:1", vec![one(big(1000), "again")])]);
    assert_eq!(outcomes(&changes), [None]);
    let by_name =
        |lab: &Lab, name: &str| lab.registry.task_by_name(framework, &task_id(name)).unwrap().launch_id;
    let (first, twin, again) = (by_name(&lab, "t0"), by_name(&lab, "twin"), by_name(&lab, "again"));
    assert!(Arc::ptr_eq(&lab.task(first).spec, &lab.task(again).spec));
    for launch in [first, twin, again] {
        lab.report(launch, 1, TaskState::Finished);
        lab.ack_all(launch);
    }
    assert_eq!(lab.fw(framework).spec_bytes, (fit - 1) * bytes);
    // The history still knows it, and it counts again when it is used again.
    let changes = lab.accept(framework, vec![part(agent, "cpus:1", vec![one(big(9000), "other")])]);
    assert_eq!(outcomes(&changes), [None]);
    let changes = lab.accept(framework, vec![part(agent, "cpus:1", vec![one(big(1000), "third")])]);
    assert_eq!(outcomes(&changes), [Some(Refusal::LimitReached)]);
}

#[test]
fn atomic_is_all_or_nothing() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let parts = |c: &str| vec![part(agent, "cpus:4", vec![many(spec("cpus:2"), &["a", "b", c])])];
    let call = lab.call(framework);
    let changes = lab.run(Command::Accept { call, atomic: true, parts: parts("c") });
    assert_eq!(changes.len(), 1);
    assert_eq!(answer(&changes).rejected, Some(Rejection::Atomic));
    assert_eq!(outcomes(&changes), [Some(Refusal::Atomic), Some(Refusal::Atomic), Some(Refusal::NotOffered)]);
    assert_eq!((lab.registry.tasks_len(), lab.agent_record(agent).last_seq), (0, 0));
    let fits = vec![part(agent, "cpus:4", vec![many(spec("cpus:2"), &["a", "b"])])];
    let call = lab.call(framework);
    let changes = lab.run(Command::Accept { call, atomic: true, parts: fits });
    assert_eq!((answer(&changes).rejected, outcomes(&changes)), (None, vec![None, None]));
}
