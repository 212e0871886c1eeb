//! Snapshots: the same state again, or a refusal.

use super::*;
use crate::Error;

fn busy() -> Lab {
    let mut lab = Lab { time: 1_000, ..Lab::default() };
    lab.run(Command::Form { cluster: ClusterId([1; 16]), masters: vec![(MasterId(1), "a:1".into())] });
    let (agent, lost) = (lab.agent("cpus:9;ports:[1-9];sets:{a,b}"), lab.agent("cpus:9"));
    let (framework, done) = (lab.framework(), lab.framework());
    let a = lab.running(framework, agent, "a", "cpus:1;ports:[2-3]");
    lab.running(framework, lost, "b", "cpus:1");
    lab.kill(framework, "a", Some(9));
    lab.report(a, 2, TaskState::Killed);
    lab.ack_all(a);
    lab.running(done, agent, "c", "cpus:1");
    lab.teardown(done);
    lab.lose(lost);
    let call = AdminId { request: RequestId(9), time: ClusterTime(1_000) };
    lab.run(Command::AdminKill { call, framework, task: task_id("b"), grace_ms: None });
    lab
}

#[test]
fn an_image_gives_the_same_state_again() {
    for registry in [Registry::new(), busy().registry] {
        let image: Vec<Segment> = registry.image().collect();
        let again = Registry::from_image(image.clone()).unwrap();
        assert_eq!(again.state_hash(), registry.state_hash());
        assert_eq!(again.image().collect::<Vec<_>>(), image);
    }
    assert_eq!(busy().registry.image().count(), 9, "one of each kind");
}

#[test]
fn segments_are_small() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:9000"), lab.framework());
    let big =
        |n: usize| one(TaskSpec { argv: vec!["x".repeat(60_000)], ..spec("cpus:1") }, &format!("big{n}"));
    let names: Vec<String> = (0..2_500).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    lab.accept(framework, vec![part(agent, "cpus:9000", vec![big(1), many(spec("cpus:1"), &names)])]);
    let sizes: Vec<usize> = (lab.registry.image())
        .filter_map(|segment| match segment {
            Segment::Tasks(tasks) => Some(tasks.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [1_000, 1_000, 501]);
    let again = Registry::from_image(lab.registry.image()).unwrap();
    assert_eq!(again.state_hash(), lab.registry.state_hash());
}

#[test]
fn what_is_missing_doubled_or_contradictory_is_refused() {
    let image: Vec<Segment> = busy().registry.image().collect();
    let load = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = image.clone();
        change(&mut segments);
        Registry::from_image(segments).map(|r| r.applied())
    };
    assert!(load(&|_| {}).is_ok());
    assert_eq!(load(&|s| s.clear()), Err(Error::Meta));
    assert_eq!(load(&|s| drop(s.remove(0))), Err(Error::Meta));
    assert_eq!(load(&|s| s.push(s[0].clone())), Err(Error::Meta));
    let newer = load(&|s| {
        let Segment::Meta(meta) = &mut s[0] else { panic!() };
        meta.state_version = 2;
    });
    assert_eq!(newer, Err(Error::Version { found: 2 }));
    for n in 1..image.len() {
        let missing = load(&|s| drop(s.remove(n)));
        // Answers and history are lost without a trace: only their transport can tell that they are missing.
        let silent = matches!(image[n], Segment::Answers(_) | Segment::AdminAnswers(_));
        assert_eq!(missing.is_err(), !silent, "{:?}", image[n]);
        let twice = load(&|s| s.insert(n, s[n].clone()));
        assert!(matches!(twice, Err(Error::Twice { .. })), "{twice:?} for {:?}", image[n]);
    }
    let used = load(&|s| {
        let agents =
            s.iter_mut().find_map(|s| if let Segment::Agents(a) = s { Some(a) } else { None }).unwrap();
        agents[0].used = r("cpus:3");
    });
    assert!(matches!(used, Err(Error::Broken(_))), "{used:?}");
    let error = used.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains("sum of its live tasks"), "{source}");
}
