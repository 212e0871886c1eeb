//! Offers: one at a time, used once, taken back.

use proffer_broker::Lost;
use proffer_types::TaskState;
use proffer_types::call::Call;
use proffer_types::command::{Refusal, Rejection};
use proffer_types::event::{FrameworkEvent, Refused, Reply};

use crate::harness::Harness;

#[test]
fn what_an_accept_leaves_is_filtered_for_its_framework_only() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let offers = h.offers(&a);
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].resources, agent.resources);
    h.launch(&mut a, &offers[0], "t", "cpus:1;mem:1GiB");
    assert!(h.offers(&a).is_empty(), "the rest is filtered");
    let b = h.framework(&["b"]);
    let offers = h.offers(&b);
    assert_eq!(offers[0].resources.to_string(), "cpus:3;mem:3GiB");
    h.call(b.decline(&offers, 3_600_000));
    h.pass(4_900);
    assert!(h.offers(&a).is_empty());
    h.pass(1_200);
    assert_eq!(h.offers(&a).len(), 1, "after five seconds it is offered again");
}

#[test]
fn an_offer_is_used_once() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&a).remove(0);
    h.launch(&mut a, &offer, "t", "cpus:1;mem:1GiB");
    let reply = h.call(a.accept(&[offer.id], &[("u", "cpus:1;mem:1GiB")], 0));
    assert!(matches!(h.answers[&reply], Err(Refused::InvalidOffer { .. })));
}

#[test]
fn somebody_elses_offer_is_refused_and_stays_theirs() {
    let mut h = Harness::new();
    let a = h.framework(&["a"]);
    let mut b = h.framework(&["b"]);
    h.agent("cpus:4;mem:4GiB");
    let mut all = h.offers(&a);
    all.extend(h.offers(&b));
    assert_eq!(all.len(), 1);
    if all[0].framework == b.id {
        return;
    }
    let reply = h.call(b.accept(&[all[0].id], &[("u", "cpus:1;mem:1GiB")], 0));
    assert!(matches!(h.answers[&reply], Err(Refused::InvalidOffer { .. })));
    assert_eq!(h.broker.offers().count(), 1);
}

#[test]
fn offers_of_two_agents_do_not_go_together() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    h.agent("cpus:4;mem:4GiB");
    let ids: Vec<_> = h.offers(&a).iter().map(|offer| offer.id).collect();
    assert_eq!(ids.len(), 2);
    let reply = h.call(a.accept(&ids, &[("t", "cpus:1;mem:1GiB")], 0));
    assert!(
        matches!(&h.answers[&reply], Err(Refused::Invalid { field, .. }) if field == "parts[0].offer_ids")
    );
    let reply = h.call(a.accept(&[ids[0], ids[0]], &[("t", "cpus:1;mem:1GiB")], 0));
    assert!(
        matches!(&h.answers[&reply], Err(Refused::Invalid { field, .. }) if field == "parts[0].offer_ids[1]")
    );
    assert_eq!(h.broker.offers().count(), 2, "malformed calls leave the offers alone");
}

#[test]
fn a_task_that_does_not_fit_is_refused_and_the_others_go_on() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&a).remove(0);
    let tasks = [("big", "cpus:5;mem:1GiB"), ("one", "cpus:1;mem:1GiB"), ("one", "cpus:1;mem:1GiB")];
    let reply = h.call(a.accept(&[offer.id], &tasks, 0));
    let Ok(Reply::Accepted(answer)) = &h.answers[&reply] else { panic!("{:?}", h.answers[&reply]) };
    assert_eq!(answer.outcomes, [Some(Refusal::NotOffered), None, Some(Refusal::TaskIdInUse)]);
    assert_eq!(h.registry.tasks_of_framework(a.id).count(), 1);
}

#[test]
fn an_offer_expires_and_comes_back_later() {
    let mut h = Harness::new();
    let a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&a).remove(0);
    h.pass(29_999);
    assert!(!h.take_events(&a).iter().any(|e| matches!(e, FrameworkEvent::Rescind(_))));
    h.pass(1);
    let rescinded = h.take_events(&a);
    assert!(rescinded.iter().any(|e| matches!(e, FrameworkEvent::Rescind(ids) if ids == &[offer.id])));
    assert_eq!(h.broker.offers().count(), 0);
    h.pass(150);
    assert_eq!(h.offers(&a).len(), 1);
}

#[test]
fn a_repeated_accept_is_answered_and_not_executed() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&a).remove(0);
    let call = a.accept(&[offer.id], &[("t", "cpus:1;mem:1GiB")], 0);
    h.hold = true;
    let first = h.call(call.clone());
    let second = h.call(call.clone());
    h.hold = false;
    h.settle();
    let third = h.call(call);
    assert_eq!(h.answers[&first], h.answers[&second]);
    assert_eq!(h.answers[&first], h.answers[&third]);
    assert!(h.answers[&first].is_ok());
    assert_eq!(h.registry.tasks_of_framework(a.id).count(), 1);
}

#[test]
fn a_lost_proposal_gives_the_offers_back_without_filter() {
    let mut h = Harness::new();
    let mut a = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&a).remove(0);
    h.hold = true;
    let reply = h.call(a.accept(&[offer.id], &[("t", "cpus:1;mem:1GiB")], 60_000));
    h.lose_one(Lost::Failed);
    assert!(matches!(h.answers[&reply], Err(Refused::Busy { .. })));
    h.hold = false;
    h.pass(1);
    assert_eq!(h.offers(&a).len(), 1);
}

#[test]
fn a_fenced_session_may_do_nothing() {
    let mut h = Harness::new();
    let mut old = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&old).remove(0);
    let (id, connection) = (old.id, h.connection());
    let mut new = old.successor(connection);
    h.call(new.subscribe(Some(id), None));
    h.subscribed(&mut new);
    assert_eq!(new.id, id);
    assert_eq!(h.streams[&old.connection].end, Some(proffer_types::event::StreamEnd::SessionFenced));
    let reply = h.call(old.accept(&[offer.id], &[("t", "cpus:1;mem:1GiB")], 0));
    assert_eq!(h.answers[&reply], Err(Refused::Rejected(Rejection::SessionFenced)));
    assert_eq!(h.offers(&new).len(), 1, "the new session is offered what the old one had");
}

/// Two frameworks take one task per offer and decline the rest: dominant resource fairness ends at 3 and 2.
#[test]
fn nine_cpus_are_shared_fairly() {
    let mut h = Harness::new();
    let mut frameworks = [h.framework(&["a"]), h.framework(&["b"])];
    let wants = ["cpus:1;mem:4GiB", "cpus:3;mem:1GiB"];
    let agent = h.agent("cpus:9;mem:18GiB");
    for _ in 0..200 {
        for (i, framework) in frameworks.iter_mut().enumerate() {
            for offer in h.offers(framework) {
                let want = proffer_types::Resources::parse(wants[i]).expect("resources");
                if offer.resources.contains(&want) {
                    let name = format!("t{}", framework.seq);
                    h.call(framework.accept(&[offer.id], &[(&name, wants[i])], 0));
                } else {
                    h.call(framework.decline(&[offer], 0));
                }
            }
        }
        h.pass(50);
    }
    let counts = frameworks.each_ref().map(|f| h.registry.tasks_of_framework(f.id).count());
    assert_eq!(counts, [3, 2]);
    let used = &h.registry.agent(agent.id).expect("the agent").used;
    assert_eq!(used.to_string(), "cpus:9;mem:14GiB");
    assert!(h.registry.tasks().all(|task| task.status.state == TaskState::Staging));
}

#[test]
fn no_offer_outlives_its_agents_session() {
    let mut h = Harness::new();
    let mut agent = h.agent("cpus:4;mem:4GiB");
    let framework = h.framework(&["*"]);
    assert_eq!(h.broker.offers().count(), 1);
    // On the same connection, on another one, and with none.
    let hello = agent.hello(Some(agent.id));
    h.hold = true;
    h.tell(Call::AgentHello { connection: agent.connection, hello });
    assert_eq!(h.broker.offers().count(), 0);
    h.hold = false;
    h.settle();
    assert_eq!(h.broker.offers().count(), 1);
    h.hold = true;
    h.attach(&mut agent);
    assert_eq!(h.broker.offers().count(), 0);
    h.hold = false;
    h.settle();
    assert_eq!(h.broker.offers().count(), 1);
    h.tell(Call::AgentGone { connection: agent.connection });
    assert_eq!(h.broker.offers().count(), 0);
    let rescinds = h.take_events(&framework);
    let rescinds = rescinds.iter().filter(|event| matches!(event, FrameworkEvent::Rescind(_)));
    assert_eq!(rescinds.count(), 3);
}

#[test]
fn a_refused_atomic_call_says_which_task_it_was() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0).id;
    let tasks = [("t", "cpus:1;mem:1GiB"), ("t", "cpus:1;mem:1GiB"), ("u", "cpus:9;mem:1GiB")];
    let mut call = framework.accept(&[offer], &tasks, 0);
    if let Call::Accept { atomic, .. } = &mut call {
        *atomic = true;
    }
    let reply = h.call(call.clone());
    let expected = Refused::Atomic { task: 1, refusal: Refusal::TaskIdInUse, more: 1 };
    assert_eq!(h.answers[&reply], Err(expected.clone()));
    // And says so again.
    let reply = h.call(call);
    assert_eq!(h.answers[&reply], Err(expected));
    assert_eq!(h.registry.tasks().count(), 0);
    h.pass(200);
    assert_eq!(h.offers(&framework).len(), 1);
}
