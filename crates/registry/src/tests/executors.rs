//! Executors: made with the first task that names them, counted once, and ended by themselves or on request.

use proffer_types::event::LaunchKind;

use super::*;

fn accept(lab: &mut Lab, framework: FrameworkId, agent: AgentId, launch: Launch) -> Vec<Option<Refusal>> {
    let free = lab.agent_record(agent).free().expect("no more is used than there is");
    let operations = vec![Operation::Launch(launch)];
    let changes =
        lab.accept(framework, vec![AcceptPart { agent, role: Role::star(), offered: free, operations }]);
    answer(&changes).outcomes.clone()
}

fn executor(lab: &Lab, framework: FrameworkId, agent: AgentId, name: &str) -> Option<Task> {
    lab.registry.executor(framework, agent, &ExecutorId::new(name).expect(name)).cloned()
}

fn shutdown(lab: &mut Lab, framework: FrameworkId, agent: AgentId, name: &str) -> Vec<Change> {
    let call = lab.call(framework);
    lab.run(Command::ShutdownExecutor { call, agent, executor: ExecutorId::new(name).expect(name) })
}

#[test]
fn the_first_task_makes_it_and_the_others_find_it() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:8"), lab.framework());
    let spec = run_by("cpus:2", "x", "cpus:1");
    let changes = lab.accept(framework, vec![part(agent, "cpus:8", vec![many(spec.clone(), &["a", "b"])])]);
    let first = answer(&changes).first_launch;
    assert_eq!(answer(&changes).outcomes, [None, None]);
    let made = executor(&lab, framework, agent, "x").expect("it was made");
    assert_eq!((made.kind.clone(), made.agent_seq), (LaunchKind::Executor(ExecutorId::new("x").unwrap()), 1));
    for (launch, seq) in [(first, 2), (LaunchId(first.0 + 1), 3)] {
        assert_eq!(lab.task(launch).kind, LaunchKind::TaskOf(made.launch_id));
        assert_eq!(lab.task(launch).agent_seq, seq);
    }
    assert_eq!(lab.agent_record(agent).used, r("cpus:4"));
    assert_eq!(accept(&mut lab, framework, agent, one(spec, "c")), [None]);
    assert_eq!(lab.agent_record(agent).used, r("cpus:5"));
    assert_eq!((lab.registry.tasks().count(), lab.registry.executors().count()), (3, 1));
    assert_eq!(lab.fw(framework).live_tasks, 3);
    // A task may have the name of an executor.
    assert_eq!(accept(&mut lab, framework, agent, one(super::spec("cpus:1"), "x")), [None]);
    assert!(!lab.registry.task_by_name(framework, &task_id("x")).expect("it is there").is_executor());
}

#[test]
fn another_description_is_refused_and_another_place_is_another_executor() {
    let mut lab = Lab::default();
    let (agent, other, framework) = (lab.agent("cpus:8"), lab.agent("cpus:8"), lab.framework());
    let launch = |executor, name| one(run_by(executor, "x", "cpus:1"), name);
    assert_eq!(accept(&mut lab, framework, agent, launch("cpus:1", "a")), [None]);
    assert_eq!(accept(&mut lab, framework, agent, launch("cpus:2", "b")), [Some(Refusal::ExecutorDiffers)]);
    assert_eq!(accept(&mut lab, framework, other, launch("cpus:2", "b")), [None]);
    let stranger = lab.framework();
    assert_eq!(accept(&mut lab, stranger, agent, launch("cpus:2", "b")), [None]);
    assert_eq!(lab.registry.executors().count(), 3);
}

#[test]
fn both_must_fit_in_what_is_offered() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:8"), lab.framework());
    let spec = run_by("cpus:2", "x", "cpus:1");
    let changes = lab.accept(framework, vec![part(agent, "cpus:2", vec![one(spec.clone(), "a")])]);
    assert_eq!(answer(&changes).outcomes, [Some(Refusal::NotOffered)]);
    assert!(lab.agent_record(agent).used.is_empty() && executor(&lab, framework, agent, "x").is_none());
    let changes = lab.accept(framework, vec![part(agent, "cpus:4", vec![many(spec, &["a", "b", "c"])])]);
    assert_eq!(answer(&changes).outcomes, [None, None, Some(Refusal::NotOffered)]);
}

#[test]
fn its_framework_hears_of_its_end_only() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:8"), lab.framework());
    accept(&mut lab, framework, agent, one(run_by("cpus:2", "x", "cpus:1"), "a"));
    let made = executor(&lab, framework, agent, "x").expect("it was made").launch_id;
    lab.report(made, 1, TaskState::Running);
    assert_eq!(lab.task(made).pending, []);
    let changes = lab.report(made, 2, TaskState::Failed);
    assert!(
        changes.iter().any(|c| matches!(c, Change::ExecutorEnded { launch, .. } if *launch == made)),
        "{changes:?}"
    );
    // It needs no acknowledgement; what it held is free; its tasks end by their own statuses.
    assert_eq!(lab.agent_record(agent).used, r("cpus:1"));
    assert_eq!(lab.registry.executor_history().map(|e| e.launch_id).collect::<Vec<_>>(), [made]);
    assert_eq!(lab.registry.history_of_framework(framework).count(), 0);
    assert_eq!(lab.fw(framework).live_tasks, 1);
    // The next task makes another one, which may be described otherwise.
    assert_eq!(accept(&mut lab, framework, agent, one(run_by("cpus:1", "x", "cpus:1"), "b")), [None]);
    assert_ne!(executor(&lab, framework, agent, "x").expect("it was made").launch_id, made);
}

#[test]
fn no_task_is_handed_to_one_that_was_told_to_end() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:8"), lab.framework());
    let spec = run_by("cpus:1", "x", "cpus:1");
    assert_eq!(rejected(&shutdown(&mut lab, framework, agent, "x")), Rejection::UnknownExecutor);
    accept(&mut lab, framework, agent, one(spec.clone(), "a"));
    let old = executor(&lab, framework, agent, "x").expect("it was made").launch_id;
    let changes = shutdown(&mut lab, framework, agent, "x");
    assert!(matches!(changes[..], [Change::KillOrdered { launch, .. }, _] if launch == old), "{changes:?}");
    let again = shutdown(&mut lab, framework, agent, "x");
    assert!(matches!(again[..], [Change::Answered { .. }]), "{again:?}");
    accept(&mut lab, framework, agent, one(spec, "b"));
    let new = executor(&lab, framework, agent, "x").expect("there are two").launch_id;
    assert!(new > old);
    let of = |name| lab.registry.task_by_name(framework, &task_id(name)).map(|task| task.kind.clone());
    assert_eq!(of("a"), Some(LaunchKind::TaskOf(old)));
    assert_eq!(of("b"), Some(LaunchKind::TaskOf(new)));
}

#[test]
fn it_ends_with_its_framework_whose_record_waits_for_it() {
    let mut lab = Lab::default();
    let agent = lab.agent("cpus:8");
    let info = FrameworkInfo { ends_with_tasks: true, ..framework_info() };
    let framework = lab.framework_with(info);
    accept(&mut lab, framework, agent, one(run_by("cpus:1", "x", "cpus:1"), "a"));
    let made = executor(&lab, framework, agent, "x").expect("it was made").launch_id;
    let task = lab.registry.task_by_name(framework, &task_id("a")).expect("it is there").launch_id;
    lab.disconnect(framework);
    // An executor alone keeps nobody waiting.
    lab.report(task, 1, TaskState::Finished);
    assert!(lab.fw(framework).is_completed());
    assert_eq!(lab.task(made).kill.map(|kill| kill.reason), Some(Reason::FrameworkRemoved));
    assert_eq!(lab.registry.index.settled.len(), 0);
    lab.report(made, 1, TaskState::Killed);
    assert_eq!(lab.registry.index.settled.len(), 1);
    assert!(lab.agent_record(agent).used.is_empty());
}

#[test]
fn it_shares_the_fate_of_its_agent() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:8"), lab.framework());
    accept(&mut lab, framework, agent, one(run_by("cpus:1", "x", "cpus:1"), "a"));
    let made = executor(&lab, framework, agent, "x").expect("it was made").launch_id;
    lab.lose(agent);
    assert_eq!(lab.task(made).status.state, TaskState::Unreachable);
    // Neither had been sent: neither starts.
    let changes = lab.attach_listing(agent, 0, vec![]);
    let ended: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::StatusChanged { status, .. } => Some((status.state, status.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [(TaskState::Dropped, Reason::AgentUnreachable); 2]);
    assert!(executor(&lab, framework, agent, "x").is_none());
    let image = Registry::from_image(lab.registry.image()).expect("an image of a good state is good");
    assert_eq!(image.state_hash(), lab.registry.state_hash());
}
