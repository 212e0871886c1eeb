//! What frameworks and operators rely on, one short story each.

use proffer_types::resources::{Attribution, Quantities};
use proffer_types::{Resources, Role};

use super::{Expect, agent, framework, held, r, role};
use crate::{Allocator, Event, Grant, Policy, Refused, Verdict};

/// Agents with the same total, and connected frameworks, each in one role; numbered from 0.
fn cluster(agents: u64, total: &str, roles: &[&str]) -> Allocator {
    let mut engine = Allocator::new(Policy::default());
    for n in 0..agents {
        engine.tell(0, Event::AgentAdded { agent: agent(n), total: r(total) });
    }
    for (n, path) in roles.iter().enumerate() {
        join(&mut engine, n as u64, &[path]);
    }
    engine
}

fn join(engine: &mut Allocator, n: u64, roles: &[&str]) {
    let roles = roles.iter().map(|path| role(path)).collect();
    engine.tell(0, Event::FrameworkAdded { framework: framework(n), roles, suppressed: vec![] });
    engine.tell(0, Event::FrameworkActivated { framework: framework(n) });
}

fn grant(framework_n: u64, path: &str, agent_n: u64, text: &str) -> Grant {
    Grant { framework: framework(framework_n), role: role(path), agent: agent(agent_n), resources: r(text) }
}

fn decline(grant: &Grant, filter_ms: u64) -> Event {
    Event::Declined { grant: grant.clone(), filter_ms }
}

/// To whom, by number.
fn to(grants: &[Grant]) -> Vec<u64> {
    grants.iter().map(|g| g.framework.0).collect()
}

/// The whole agent goes to the first; then the order is looked at again for the next agent.
#[test]
fn tv_4_agent_grain() {
    for seed in 0..20 {
        let mut engine = cluster(4, "cpus:2;mem:1GiB", &["*", "*"]);
        let grants = engine.next(0, seed, usize::MAX);
        let mut who = to(&grants);
        who.sort_unstable();
        assert_eq!(who, [0, 0, 1, 1], "whatever the order of agents");
        assert!(grants.iter().all(|g| g.resources == r("cpus:2;mem:1GiB")));
        assert_eq!(engine.next(0, seed, usize::MAX), []);
    }
}

/// Two frameworks take one task per offer and decline the rest with a filter of nothing.
#[test]
fn tv_1_by_offers() {
    let mut engine = cluster(1, "cpus:9;mem:18GiB", &["a", "b"]);
    let tasks = [r("cpus:1;mem:4GiB"), r("cpus:3;mem:1GiB")];
    let mut launched = [0, 0];
    for now in (0..5_000).step_by(20) {
        for offer in engine.round(now) {
            let n = offer.framework.0 as usize;
            let mut rest = offer.clone();
            if offer.resources.contains(&tasks[n]) {
                engine.tell(now, Event::Launched(Grant { resources: tasks[n].clone(), ..offer.clone() }));
                rest.resources.sub(&tasks[n]).unwrap();
                launched[n] += 1;
            }
            engine.tell(now, decline(&rest, 0));
        }
    }
    assert_eq!(launched, [3, 2]);
    assert_eq!(engine.free(agent(0)), Some(&r("mem:4GiB")));
}

/// What an accepted offer leaves is refused by who accepted it, and offered to others at once.
#[test]
fn the_rest_of_an_offer_goes_to_others_at_once() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["*"]);
    let offer = engine.round(0).remove(0);
    engine.tell(10, Event::Launched(Grant { resources: r("cpus:1;mem:1GiB"), ..offer.clone() }));
    let rest = Grant { resources: r("cpus:3;mem:3GiB"), ..offer };
    engine.tell(10, decline(&rest, 5_000));
    assert_eq!(engine.round(10), []);
    assert_eq!(engine.round(5_009), [], "5 s are not over");
    join(&mut engine, 1, &["*"]);
    let other = engine.round(5_009);
    assert_eq!((to(&other), other[0].resources.to_string()), (vec![1], rest.resources.to_string()));
    engine.tell(5_009, Event::Rescinded(other[0].clone()));
    engine.tell(5_009, Event::FrameworkRemoved { framework: framework(1) });
    let until = engine.next_wakeup_ms().unwrap();
    assert!(until <= 5_010, "there is something to look at");
    assert_eq!(engine.round(5_009), []);
    let until = engine.next_wakeup_ms().unwrap();
    assert!((5_010..=6_260).contains(&until), "{until}");
    assert_eq!(to(&engine.round(until)), [0]);
}

/// A filter withholds what the refused amount contains; more, or something else, passes.
#[test]
fn a_filter_withholds_what_it_contains() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["*"]);
    let offer = engine.round(0).remove(0);
    engine.tell(0, Event::Launched(Grant { resources: r("cpus:2"), ..offer.clone() }));
    engine.tell(0, decline(&Grant { resources: r("cpus:2;mem:4GiB"), ..offer.clone() }, 60_000));
    assert_eq!(engine.round(1_000), []);
    engine.tell(1_000, Event::Returned(Grant { resources: r("cpus:1"), ..offer.clone() }));
    let bigger = engine.round(1_000);
    assert_eq!(bigger[0].resources, r("cpus:3;mem:4GiB"), "offered the moment it is more than was refused");
    engine.tell(1_000, Event::Rescinded(bigger[0].clone()));
    assert_eq!(engine.round(1_000).len(), 1, "taking an offer back filters nothing");
}

/// A filter of 0 s and a lapsed offer still pause for the re-offer floor, longer each time; others need not wait.
#[test]
fn the_floor_doubles_while_the_same_is_refused() {
    for lapse in [false, true] {
        let mut engine = cluster(1, "cpus:4;mem:4GiB", &["*"]);
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let offer = engine.round(now).remove(0);
            engine.tell(now, if lapse { Event::Expired(offer) } else { decline(&offer, 0) });
            assert_eq!(engine.round(now), []);
            let again = engine.next_wakeup_ms().unwrap();
            pauses.push(again - now);
            now = again;
        }
        for (pause, least) in pauses.iter().zip([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]) {
            assert!((least..=least + least / 4).contains(pause), "{pauses:?}");
        }
        // A launch shows that it was worth offering: the doubling starts again.
        let offer = engine.round(now).remove(0);
        engine.tell(now, Event::Launched(Grant { resources: r("cpus:1"), ..offer.clone() }));
        engine.tell(now, decline(&Grant { resources: r("cpus:3;mem:4GiB"), ..offer }, 0));
        assert_eq!(engine.round(now), []);
        assert!(engine.next_wakeup_ms().unwrap() <= now + 125);
    }
}

/// Who looks for one agent among many alike is not made to wait for it by refusing the others.
#[test]
fn refusing_one_agent_withholds_no_other() {
    let mut engine = cluster(50, "cpus:4;mem:4GiB", &["*"]);
    for offer in engine.round(0) {
        engine.tell(0, decline(&offer, 0));
    }
    engine.tell(1, Event::AgentAdded { agent: agent(99), total: r("cpus:4;mem:4GiB") });
    assert_eq!(engine.round(1).len(), 1);
    assert_eq!(engine.explain(framework(0)).unwrap()[0].floor_ms, 100, "one burst raises the floor once");
}

#[test]
fn suppressed_and_disconnected_frameworks_get_nothing() {
    let mut engine = cluster(2, "cpus:4;mem:4GiB", &["a", "b"]);
    engine.tell(0, Event::Suppressed { framework: framework(0), roles: vec![] });
    engine.tell(0, Event::FrameworkDeactivated { framework: framework(1) });
    assert_eq!(engine.round(0), []);
    assert_eq!(engine.round(0), []);
    engine.tell(0, Event::FrameworkActivated { framework: framework(1) });
    let grants = engine.round(0);
    assert_eq!(to(&grants), [1, 1]);
    engine.tell(0, decline(&grants[0], 3_600_000));
    engine.tell(0, decline(&grants[1], 3_600_000));
    assert_eq!(engine.round(0), []);
    // A disconnect forgets filters; so does a revival.
    engine.tell(0, Event::FrameworkDeactivated { framework: framework(1) });
    engine.tell(0, Event::FrameworkActivated { framework: framework(1) });
    let grants = engine.round(0);
    assert_eq!(to(&grants), [1, 1]);
    engine.tell(0, decline(&grants[0], 3_600_000));
    engine.tell(0, Event::Suppressed { framework: framework(1), roles: vec![role("b")] });
    engine.tell(0, Event::Revived { framework: framework(1), roles: vec![role("b")] });
    assert_eq!(to(&engine.round(0)), [1]);
    engine.tell(0, Event::Revived { framework: framework(0), roles: vec![role("a")] });
    assert_eq!(engine.round(0), [], "everything is out");
}

/// Suppression is per role, and a restated list of roles replaces it.
#[test]
fn roles_are_suppressed_one_by_one() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &[]);
    join(&mut engine, 0, &["a", "b"]);
    engine.tell(0, Event::Suppressed { framework: framework(0), roles: vec![role("a")] });
    let offer = engine.round(0).remove(0);
    assert_eq!(offer.role, role("b"));
    engine.tell(0, Event::Rescinded(offer));
    let changed = Event::FrameworkChanged {
        framework: framework(0),
        roles: vec![role("a"), role("c")],
        suppressed: vec![role("c")],
    };
    engine.tell(0, changed);
    assert_eq!(engine.round(0)[0].role, role("a"));
    assert_eq!(engine.explain_on(0, framework(0), &role("b"), agent(0)), Verdict::NotInRole);
}

/// What is unused goes to the lower share; what a framework that left still uses is counted until it is returned.
#[test]
fn uses_count_until_they_are_returned() {
    let mut engine = cluster(1, "cpus:10;mem:10GiB", &["a", "b"]);
    engine.tell(0, Event::Used(grant(0, "a", 0, "cpus:4")));
    assert_eq!(to(&engine.round(0)), [1], "b has the lower share");
    engine.tell(0, Event::FrameworkRemoved { framework: framework(0) });
    assert_eq!(held(&engine, agent(0), framework(0), &role("a")).1, r("cpus:4"));
    engine.tell(0, Event::Returned(grant(0, "a", 0, "cpus:4")));
    assert_eq!(engine.explain(framework(0)), None, "nothing of it is left");
    assert_eq!(engine.round(0)[0].resources, r("cpus:4"), "what returns is offered at once");
}

/// A lost agent frees nothing, and weighs on nobody.
#[test]
fn a_lost_agent_leaves_the_shares_and_keeps_its_uses() {
    let mut engine = cluster(2, "cpus:4;mem:4GiB", &["a", "b"]);
    engine.tell(0, Event::Used(grant(0, "a", 0, "cpus:4")));
    engine.tell(0, Event::Used(grant(1, "b", 1, "cpus:1")));
    let share = |engine: &Allocator| engine.explain(framework(0)).unwrap()[0].share_millionths;
    assert_eq!(share(&engine), 500_000);
    engine.tell(0, Event::AgentLost { agent: agent(0) });
    assert_eq!(share(&engine), 0);
    assert_eq!(engine.free(agent(0)), Some(&r("mem:4GiB")), "nothing is freed");
    assert_eq!(to(&engine.round(0)), [0], "only the other agent, to the lower share");
    engine.tell(0, Event::Returned(grant(0, "a", 0, "cpus:1")));
    engine.tell(0, Event::AgentResumed { agent: agent(0) });
    assert_eq!(share(&engine), 750_000, "3 cpus used and 3 offered, of 8");
}

/// Ties go by grants; that an agent was away is not one.
#[test]
fn an_agent_that_returns_counts_as_no_grant() {
    let mut engine = cluster(2, "cpus:4;mem:4GiB", &["a", "b"]);
    engine.tell(0, Event::Used(grant(0, "a", 0, "cpus:4;mem:4GiB")));
    engine.tell(0, Event::Used(grant(1, "b", 1, "cpus:4;mem:4GiB")));
    engine.tell(0, Event::AgentLost { agent: agent(0) });
    engine.tell(0, Event::AgentResumed { agent: agent(0) });
    engine.tell(0, Event::AgentAdded { agent: agent(2), total: r("cpus:4;mem:4GiB") });
    assert_eq!(to(&engine.round(0)), [0], "equal shares, equal counts: the name decides");
}

#[test]
fn paused_agents_are_not_offered() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["a"]);
    engine.tell(0, Event::AgentPaused { agent: agent(0) });
    assert_eq!(engine.round(0), []);
    assert_eq!(engine.explain_on(0, framework(0), &role("a"), agent(0)), Verdict::AgentPaused);
    engine.tell(0, Event::AgentResumed { agent: agent(0) });
    assert_eq!(engine.round(0).len(), 1);
}

/// An agent that comes back smaller than what runs on it offers nothing until enough has ended.
#[test]
fn an_agent_that_shrank_offers_nothing_until_it_fits() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["a"]);
    engine.tell(0, Event::Used(grant(0, "a", 0, "cpus:3")));
    engine.tell(0, Event::AgentChanged { agent: agent(0), total: r("cpus:2;mem:2GiB") });
    assert_eq!(engine.round(0), []);
    engine.tell(0, Event::Returned(grant(0, "a", 0, "cpus:2")));
    assert_eq!(engine.round(0)[0].resources, r("cpus:1;mem:2GiB"));
}

/// An offer has at least 0.01 cpu or 32 MiB.
#[test]
fn crumbs_are_not_offered() {
    for (left, offered) in
        [("cpus:0.009;mem:31MiB", false), ("cpus:0.01", true), ("mem:32MiB", true), ("disk:1TiB", false)]
    {
        let mut engine = cluster(1, left, &["a"]);
        assert_eq!(!engine.round(0).is_empty(), offered, "{left}");
    }
}

/// Reserved resources are for their role and those below it, together with what is unreserved.
#[test]
fn reservations_are_honoured() {
    let reserved = |path: &str| {
        let amount = Quantities::scalars(1_000, 1 << 30, 0, 0);
        Resources::of(Attribution::reserved(vec![role(path)]), amount)
    };
    let total =
        [reserved("a"), reserved("b")].iter().fold(r("cpus:1"), |sum, more| sum.checked_add(more).unwrap());
    let mut engine = Allocator::new(Policy::default());
    engine.tell(0, Event::AgentAdded { agent: agent(0), total });
    join(&mut engine, 0, &["a/x"]);
    join(&mut engine, 1, &["b"]);
    join(&mut engine, 2, &["c"]);
    join(&mut engine, 3, &["aa"]);
    let grants = engine.round(0);
    let offers: Vec<(u64, Resources)> = grants.into_iter().map(|g| (g.framework.0, g.resources)).collect();
    let own = r("cpus:1").checked_add(&reserved("a")).unwrap();
    assert_eq!(offers, [(0, own), (1, reserved("b"))], "a goes first and takes the unreserved too");
}

/// Of two that are equal otherwise the one with the greater weight comes first, and gets more.
#[test]
fn weights_decide() {
    let mut engine = cluster(0, "", &["a", "b"]);
    engine.tell(0, Event::WeightSet { role: role("b"), weight_milli: 3_000 });
    for n in 0..8 {
        engine.tell(0, Event::AgentAdded { agent: agent(n), total: r("cpus:1;mem:1GiB") });
    }
    let grants = engine.round(0);
    assert_eq!(grants.iter().filter(|g| g.framework == framework(1)).count(), 6);
    let zero = Event::WeightSet { role: role("b"), weight_milli: 0 };
    assert_eq!(engine.apply(0, &zero), Err(Refused::ZeroWeight(role("b"))));
}

/// However the others behave, nobody with a lower share is passed over for ever.
#[test]
fn nobody_starves() {
    let roles = ["a", "a", "b/x", "b/y", "c"];
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &roles);
    let mut last = [0; 5];
    for now in (0..60_000).step_by(50) {
        for offer in engine.round(now) {
            last[offer.framework.0 as usize] = now;
            match offer.framework.0 {
                0 => engine.tell(now, decline(&offer, 0)),
                1 => engine.tell(now, decline(&offer, 5_000)),
                2 => engine.tell(now, Event::Rescinded(offer)),
                3 => engine.tell(now, Event::Expired(offer)),
                _ => {
                    engine.tell(now, Event::Launched(offer.clone()));
                    engine.tell(now, Event::Returned(offer));
                }
            }
        }
        assert!(last.iter().all(|at| now - at <= 6_500), "at {now} ms the last offers were at {last:?}");
    }
}

/// The order of agents depends on the seed; everything else does not.
#[test]
fn the_seed_shuffles_agents() {
    let order = |seed| {
        let grants = cluster(20, "cpus:1;mem:1GiB", &["a"]).next(0, seed, usize::MAX);
        grants.into_iter().map(|g| g.agent.0).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    let mut sorted = order(3);
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..20));
}

#[test]
fn contradictions_are_refused() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["a"]);
    let offer = engine.round(0).remove(0);
    type Expected = fn(&Refused) -> bool;
    let refusals: Vec<(Event, Expected)> = vec![
        (Event::AgentAdded { agent: agent(0), total: r("cpus:1") }, |e| matches!(e, Refused::AgentKnown(_))),
        (Event::AgentPaused { agent: agent(7) }, |e| matches!(e, Refused::UnknownAgent(_))),
        (Event::FrameworkActivated { framework: framework(7) }, |e| {
            matches!(e, Refused::UnknownFramework(_))
        }),
        (Event::FrameworkAdded { framework: framework(0), roles: vec![], suppressed: vec![] }, |e| {
            matches!(e, Refused::FrameworkKnown(_))
        }),
        (Event::Suppressed { framework: framework(0), roles: vec![role("a"), role("b")] }, |e| {
            matches!(e, Refused::UnknownRole { .. })
        }),
        (
            Event::FrameworkChanged { framework: framework(0), roles: vec![], suppressed: vec![role("a")] },
            |e| matches!(e, Refused::UnknownRole { .. }),
        ),
        (Event::Returned(offer.clone()), |e| matches!(e, Refused::NotHeld { what: "used", .. })),
        (Event::Launched(grant(0, "a", 0, "cpus:5")), |e| {
            matches!(e, Refused::NotHeld { what: "offered", .. })
        }),
        (Event::Rescinded(grant(0, "b", 0, "cpus:1")), |e| matches!(e, Refused::NotHeld { .. })),
        (Event::Expired(grant(3, "a", 0, "cpus:1")), |e| matches!(e, Refused::NotHeld { .. })),
        (Event::Used(grant(0, "a", 7, "cpus:1")), |e| matches!(e, Refused::UnknownAgent(_))),
    ];
    for (event, expected) in refusals {
        let answer = engine.apply(0, &event);
        assert!(answer.as_ref().is_err_and(expected), "{event:?}: {answer:?}");
        engine.check().unwrap();
        assert_eq!(held(&engine, agent(0), framework(0), &role("a")).0, offer.resources);
    }
    let ports = |range: &str| Event::Used(grant(0, "a", 0, range));
    engine.tell(0, ports("ports:[1-2]"));
    assert!(matches!(engine.apply(0, &ports("ports:[2-3]")), Err(Refused::Sum { .. })));
}

/// Each reason why somebody gets nothing has a name.
#[test]
fn reasons_are_told() {
    let mut engine = cluster(1, "cpus:4;mem:4GiB", &["a", "b"]);
    let on = |engine: &Allocator, now, n, path| engine.explain_on(now, framework(n), &role(path), agent(0));
    assert_eq!(on(&engine, 0, 0, "a"), Verdict::Next(r("cpus:4;mem:4GiB")));
    assert_eq!(on(&engine, 0, 1, "b"), Verdict::Behind { framework: framework(0), role: role("a") });
    assert_eq!(on(&engine, 0, 1, "a"), Verdict::NotInRole);
    assert_eq!(on(&engine, 0, 9, "a"), Verdict::Disconnected);
    assert_eq!(engine.explain_on(0, framework(0), &role("a"), agent(9)), Verdict::UnknownAgent);
    let offer = engine.round(0).remove(0);
    assert_eq!(on(&engine, 0, 1, "b"), Verdict::NothingFree);
    engine.tell(0, Event::Launched(Grant { resources: r("cpus:4"), ..offer.clone() }));
    engine.tell(0, decline(&Grant { resources: r("mem:4GiB"), ..offer.clone() }, 5_000));
    assert_eq!(on(&engine, 0, 0, "a"), Verdict::Filtered { refused: r("mem:4GiB"), until_ms: 5_120 });
    assert_eq!(on(&engine, 5_120, 0, "a"), Verdict::Behind { framework: framework(1), role: role("b") });
    engine.tell(0, Event::Used(grant(0, "a", 0, "mem:4080MiB")));
    assert_eq!(on(&engine, 0, 1, "b"), Verdict::BelowMinimum(r("mem:16MiB")));
    engine.tell(7, Event::Suppressed { framework: framework(1), roles: vec![] });
    assert_eq!(on(&engine, 9, 1, "b"), Verdict::Suppressed { since_ms: 7 });
    engine.tell(9, Event::AgentLost { agent: agent(0) });
    assert_eq!(on(&engine, 9, 0, "a"), Verdict::AgentLost);
    let standing = &engine.explain(framework(0)).unwrap()[0];
    assert_eq!((standing.grants, standing.last_grant_ms, standing.filters), (1, Some(0), 1));
    let counters = engine.counters();
    assert_eq!((counters.grants, counters.refusals, counters.clients_active), (1, 1, 1));
}

/// Roles whose names share a beginning are not related; `*` is a role like others.
#[test]
fn star_is_a_role_like_others() {
    let mut engine = cluster(2, "cpus:1;mem:1GiB", &["*", "z"]);
    let mut roles: Vec<Role> = engine.round(0).into_iter().map(|g| g.role).collect();
    roles.sort();
    assert_eq!(roles, [Role::star(), role("z")]);
}
