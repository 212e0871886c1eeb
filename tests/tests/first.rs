//! One task from offer to acknowledgement, by every way in.

use proffer_tests::cluster::{Cluster, Options, Ran, ran, until};

use super::{LIMIT, beside_others, best, good, json, ran_on};

#[tokio::test]
async fn one_task_end_to_end_with_one_master() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let hi = cluster.run(LIMIT, &["run", "--", "echo", "hi"]).await;
    assert_eq!((hi.code, hi.stdout.as_str()), (Some(0), "hi\n"), "{hi:?}");
    let framework =
        hi.stderr.lines().next().and_then(|line| line.strip_prefix("framework ")).expect("its id");

    let show = json(cluster.run(LIMIT, &["-o", "json", "task", "show", &format!("{framework}/echo")]).await);
    let text = |key: &str| show[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((text("state"), text("isolation")), ("FINISHED".into(), best().into()), "{show}");
    assert_eq!(show["exit_code"], 0, "{show}");
    for key in ["task_id", "framework_id", "agent_id", "role", "created_at", "started_at", "finished_at"] {
        assert!(!text(key).is_empty(), "{key} in {show}");
    }
    assert!(good(cluster.run(LIMIT, &["framework", "list"]).await).contains("COMPLETED").eq(&false));
    let completed = good(cluster.run(LIMIT, &["framework", "list", "--completed"]).await);
    assert!(completed.contains(framework), "{completed}");

    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn run_returns_what_the_task_returns() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let cases: [(&[&str], i32); 5] = [
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["proffer-no-such-program"], 127),
        (&["/etc"], 126),
    ];
    for (command, code) in cases {
        let ran = cluster.run(LIMIT, &[&["run", "--"], command].concat()).await;
        assert_eq!(ran.code, Some(code), "{command:?}: {ran:?}");
    }
    let both = cluster.run(LIMIT, &["run", "--env", "A=b", "--", "sh", "-c", "echo $A; echo c >&2"]).await;
    assert_eq!(both.stdout, "b\n");
    assert!(both.stderr.contains("c\n"), "{both:?}");
    ran_on();
}

#[tokio::test]
async fn one_task_end_to_end_with_three_masters_and_without_the_first_leader() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(Options { masters: 3, ..Options::default() }).await;
    assert_eq!(good(cluster.run(LIMIT, &["run", "--", "echo", "hi"]).await), "hi\n");
    let before = json(cluster.run(LIMIT, &["-o", "json", "task", "list"]).await);
    let leader = cluster.leader().await;
    cluster.masters[leader].kill();
    assert_eq!(good(cluster.run(LIMIT, &["run", "--name", "again", "--", "echo", "again"]).await), "again\n");
    let after = json(cluster.run(LIMIT, &["-o", "json", "task", "list"]).await);
    let tasks = |list: &serde_json::Value| list["tasks"].as_array().cloned().expect("a list");
    assert!(tasks(&after).contains(&tasks(&before)[0]), "{before} was forgotten: {after}");
    assert_eq!(tasks(&after).len(), 2, "{after}");
    cluster.masters[leader].start();
    until("all masters are known again", LIMIT, async || {
        let masters = cluster.status().await.masters;
        masters.iter().all(|master| master.role != "unknown").then_some(())
    })
    .await;
}

/// The cluster through one master that does not lead.
struct Follower<'a>(&'a Cluster, Vec<String>);

impl Follower<'_> {
    async fn run(&self, args: &[&str]) -> Ran {
        ran(self.0.proffer(&self.1, args), LIMIT).await
    }
}

#[tokio::test]
async fn every_verb_works_through_a_follower() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { masters: 3, agents: 2, ..Options::default() }).await;
    let follower = cluster.follower().await;
    let through = Follower(&cluster, vec![cluster.masters[follower].address.clone()]);

    assert_eq!(good(through.run(&["run", "--", "echo", "hi"]).await), "hi\n");
    let array =
        good(through.run(&["run", "--array", "1-5", "--", "sh", "-c", "echo $PROFFER_ARRAY_INDEX"]).await);
    let mut lines: Vec<&str> = array.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "2", "3", "4", "5"]);
    let detached = through
        .run(&["run", "--detach", "--name", "long", "--", "sh", "-c", "echo begun; exec sleep 300"])
        .await;
    assert_eq!(detached.code, Some(0), "{detached:?}");
    let framework = detached.stderr.lines().find_map(|line| line.strip_prefix("framework ")).expect("its id");
    let task = format!("{framework}/long");

    until("the task runs", LIMIT, async || {
        let task = json(through.run(&["-o", "json", "task", "show", &task]).await);
        (task["state"] == "RUNNING").then_some(())
    })
    .await;
    until("its output can be read", LIMIT, async || {
        let logs = through.run(&["task", "logs", &task]).await;
        (logs.stdout == "begun\n").then_some(())
    })
    .await;
    for (verb, list) in
        [("task", "tasks"), ("agent", "agents"), ("framework", "frameworks"), ("master", "masters")]
    {
        let found = json(through.run(&["-o", "json", verb, "list"]).await);
        assert!(found[list].as_array().is_some_and(|rows| !rows.is_empty()), "{found}");
        assert_eq!(through.run(&[verb, "list"]).await.code, Some(0));
    }
    assert!(json(through.run(&["-o", "json", "offer", "list"]).await)["offers"].is_array());
    let status = json(through.run(&["-o", "json", "status"]).await);
    let leader = cluster.leader().await;
    assert_eq!(status["leader"], cluster.masters[leader].address, "{status}");
    let agents = json(through.run(&["-o", "json", "agent", "list"]).await);
    let agent = agents["agents"][0]["agent_id"].as_str().expect("an id").to_owned();
    let shown = json(through.run(&["-o", "json", "agent", "show", &agent]).await);
    assert_eq!(shown["agent_id"], agent.as_str());
    assert_eq!(
        json(through.run(&["-o", "json", "framework", "show", framework]).await)["framework_id"],
        framework
    );

    assert_eq!(through.run(&["task", "kill", &task]).await.code, Some(0));
    until("the task is killed", LIMIT, async || {
        let task = json(through.run(&["-o", "json", "task", "show", &task]).await);
        (task["state"] == "KILLED").then_some(())
    })
    .await;
    let detached = through.run(&["run", "--detach", "--name", "more", "--", "sleep", "300"]).await;
    let framework = detached.stderr.lines().find_map(|line| line.strip_prefix("framework ")).expect("its id");
    assert_eq!(through.run(&["framework", "teardown", framework]).await.code, Some(0));
    cluster.all_free(LIMIT).await;
    assert_eq!(through.run(&["task", "show", "no-such-task"]).await.code, Some(3));
    assert_eq!(cluster.end(), Vec::<String>::new());
}
