//! Tests of the engine as a whole; parts of it have theirs beside them.

mod histories;
mod reference;
mod stories;

use proffer_types::{AgentId, FrameworkId, Resources, Role};

use crate::{Allocator, Event, Grant};

fn r(text: &str) -> Resources {
    Resources::parse(text).expect(text)
}

fn role(path: &str) -> Role {
    Role::new(path).expect(path)
}

fn agent(n: u64) -> AgentId {
    AgentId(n)
}

fn framework(n: u64) -> FrameworkId {
    FrameworkId(n)
}

/// A seeded sequence of numbers.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn one_of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        (!list.is_empty()).then(|| &list[self.throw(list.len() as u64) as usize])
    }
}

/// Events that must be taken, and books that must be right after each.
trait Expect {
    fn tell(&mut self, now_ms: u64, event: Event);
    fn round(&mut self, now_ms: u64) -> Vec<Grant>;
}

impl Expect for Allocator {
    fn tell(&mut self, now_ms: u64, event: Event) {
        self.apply(now_ms, &event).unwrap_or_else(|why| panic!("{event:?}: {why}"));
        self.check().unwrap_or_else(|why| panic!("{event:?}: {why}"));
    }

    fn round(&mut self, now_ms: u64) -> Vec<Grant> {
        let grants = self.next(now_ms, 1, usize::MAX);
        self.check().unwrap();
        grants
    }
}

/// What a client holds on an agent: offered, used.
fn held(engine: &Allocator, agent: AgentId, framework: FrameworkId, role: &Role) -> (Resources, Resources) {
    let client = engine.frameworks.get(&framework).and_then(|f| f.clients.get(role));
    let agent = engine.agent_numbers.get(&agent).map(|at| engine.agent(*at));
    let holding =
        client.zip(agent).and_then(|(client, agent)| agent.holdings.iter().find(|h| h.0 == *client));
    holding.map(|(_, h)| (h.offered.clone(), h.used.clone())).unwrap_or_default()
}
