//! Random histories: the engine and the reference must agree at every step.

use proffer_types::resources::{Attribution, Custom, Quantities};
use proffer_types::{AgentId, FrameworkId, Resources, Role};

use super::reference::Reference;
use super::{Dice, agent, framework, r, role};
use crate::{Allocator, Event, Grant, Policy};

const ROLES: [&str; 8] = ["*", "a", "a/x", "a/y", "b", "b/z", "b/z/q", "c"];
const AGENTS: u64 = 7;
const FRAMEWORKS: u64 = 6;

/// Deals events that mostly make sense.
struct Dealer {
    dice: Dice,
    now_ms: u64,
    offers: Vec<Grant>,
    uses: Vec<Grant>,
    /// Mostly refuses.
    picky: bool,
}

impl Dealer {
    fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            now_ms: 0,
            offers: Vec::new(),
            uses: Vec::new(),
            picky: seed.is_multiple_of(3),
        }
    }

    fn some_role(&mut self) -> Role {
        role(self.dice.one_of(&ROLES).unwrap())
    }

    fn some_roles(&mut self, most: u64) -> Vec<Role> {
        (0..self.dice.throw(most + 1)).map(|_| self.some_role()).collect()
    }

    fn some_agent(&mut self) -> AgentId {
        agent(self.dice.throw(AGENTS))
    }

    fn some_framework(&mut self) -> FrameworkId {
        framework(self.dice.throw(FRAMEWORKS))
    }

    /// Like agents are frequent, so that shares tie.
    fn some_total(&mut self) -> Resources {
        let mut total = r([
            "cpus:2;mem:4GiB",
            "cpus:2;mem:4GiB",
            "cpus:4;mem:4GiB;ports:[1-20]",
            "cpus:1;mem:8GiB;gpus:1",
            "cpus:3;mem:1GiB;disk:9GiB;fpga:2",
        ][self.dice.throw(5) as usize]);
        for _ in 0..self.dice.throw(5).saturating_sub(2) {
            let reserved = Attribution::reserved(vec![self.some_role()]);
            let amount = r(["cpus:1;mem:1GiB", "cpus:0.005;mem:64MiB"][self.dice.throw(2) as usize]);
            let amount = amount.unreserved_part().unwrap().clone();
            total.add(&Resources::of(reserved, amount)).unwrap();
        }
        total
    }

    /// Some of `whole`: all, or a random part of each amount, perhaps nothing.
    fn part(&mut self, whole: &Resources) -> Resources {
        if self.dice.throw(3) == 0 {
            return whole.clone();
        }
        let mut part = Resources::new();
        for entry in whole.entries() {
            let quarters = self.dice.throw(5);
            let [cpus, mem, disk, gpus] = entry.quantities.scalar_array().map(|all| all / 4 * quarters);
            let ports = entry.quantities.ports();
            let ports = ports.take_first(ports.count() * quarters / 4).unwrap();
            let mut custom = Custom::default();
            for (kind, all) in entry.quantities.custom().iter().flat_map(|c| &c.scalars) {
                custom.scalars.insert(kind.clone(), all * quarters / 4);
            }
            // Whole MiB, as the reference counts.
            let quantities = Quantities::scalars(cpus, mem >> 20 << 20, disk >> 20 << 20, gpus);
            let quantities = quantities.with_ports(ports).with_custom(custom);
            part.add(&Resources::of(entry.attribution.clone(), quantities)).unwrap();
        }
        part
    }

    /// A part of an outstanding offer, taken out of it here too.
    fn offered(&mut self) -> Option<Grant> {
        Self::taken(&mut self.offers, self.dice.throw(1 << 20)).map(|whole| self.cut(whole, true))
    }

    fn used(&mut self) -> Option<Grant> {
        Self::taken(&mut self.uses, self.dice.throw(1 << 20)).map(|whole| self.cut(whole, false))
    }

    fn taken(list: &mut Vec<Grant>, at: u64) -> Option<Grant> {
        (!list.is_empty()).then(|| list.swap_remove(at as usize % list.len()))
    }

    fn cut(&mut self, whole: Grant, offered: bool) -> Grant {
        let part = Grant { resources: self.part(&whole.resources), ..whole.clone() };
        let rest = whole.resources.checked_sub(&part.resources).unwrap();
        if !rest.is_empty() {
            let list = if offered { &mut self.offers } else { &mut self.uses };
            list.push(Grant { resources: rest, ..whole });
        }
        part
    }

    fn event(&mut self) -> Event {
        let refuse = self.picky && self.dice.throw(2) == 0;
        if let Some(grant) = refuse.then(|| self.offered()).flatten() {
            return Event::Declined { grant, filter_ms: 60_000 * self.dice.throw(2) };
        }
        match self.dice.throw(100) {
            0..=9 => Event::AgentAdded { agent: self.some_agent(), total: self.some_total() },
            10..=11 => Event::AgentChanged { agent: self.some_agent(), total: self.some_total() },
            12..=13 => Event::AgentPaused { agent: self.some_agent() },
            14..=15 => Event::AgentLost { agent: self.some_agent() },
            16..=21 => Event::AgentResumed { agent: self.some_agent() },
            22 => {
                let agent = self.some_agent();
                self.offers.retain(|g| g.agent != agent);
                self.uses.retain(|g| g.agent != agent);
                Event::AgentRemoved { agent }
            }
            23..=30 => {
                let (framework, roles) = (self.some_framework(), self.some_roles(3));
                let suppressed =
                    if self.dice.throw(4) == 0 { roles[..roles.len() / 2].to_vec() } else { vec![] };
                Event::FrameworkAdded { framework, roles, suppressed }
            }
            31..=33 => {
                let (framework, roles) = (self.some_framework(), self.some_roles(4));
                let suppressed = if self.dice.throw(3) == 0 { self.some_roles(1) } else { vec![] };
                Event::FrameworkChanged { framework, roles, suppressed }
            }
            34..=42 => Event::FrameworkActivated { framework: self.some_framework() },
            43..=44 => Event::FrameworkDeactivated { framework: self.some_framework() },
            45 => Event::FrameworkRemoved { framework: self.some_framework() },
            46..=48 => Event::Suppressed { framework: self.some_framework(), roles: self.some_roles(1) },
            49..=53 => Event::Revived { framework: self.some_framework(), roles: self.some_roles(1) },
            54..=65 => {
                let Some(grant) = self.offered() else { return self.event() };
                self.uses.push(grant.clone());
                Event::Launched(grant)
            }
            66..=67 => {
                let (framework, role, agent) = (self.some_framework(), self.some_role(), self.some_agent());
                let whole = self.some_total();
                let grant = Grant { framework, role, agent, resources: self.part(&whole) };
                Event::Used(grant)
            }
            68..=75 => match self.used() {
                Some(grant) => Event::Returned(grant),
                None => self.event(),
            },
            76..=89 => {
                let filter_ms = [0, 0, 5_000, 5_000, 50, 1_000, u64::MAX][self.dice.throw(7) as usize];
                match self.offered() {
                    Some(grant) => Event::Declined { grant, filter_ms },
                    None => self.event(),
                }
            }
            90..=92 => self.offered().map_or_else(|| self.event(), Event::Rescinded),
            93..=95 => self.offered().map_or_else(|| self.event(), Event::Expired),
            96 => {
                // Something that is not held.
                let (framework, role, agent) = (self.some_framework(), self.some_role(), self.some_agent());
                Event::Returned(Grant { framework, role, agent, resources: r("cpus:100;disk:1TiB") })
            }
            _ => {
                let weight_milli = [1_000, 500, 2_000, 3_000, 1, 0][self.dice.throw(6) as usize];
                Event::WeightSet { role: self.some_role(), weight_milli }
            }
        }
    }

    fn pass_time(&mut self) {
        self.now_ms += [0, 0, 1, 16, 100, 1_000, 5_000, 70_000][self.dice.throw(8) as usize];
    }

    /// Told what became of an event.
    fn note(&mut self, event: &Event, taken: bool) {
        match event {
            Event::Used(grant) if taken && !grant.resources.is_empty() => self.uses.push(grant.clone()),
            _ => {}
        }
    }
}

struct Seen {
    grants: u64,
    held_back: u64,
    refused: u64,
}

fn history(seed: u64, steps: usize) -> Seen {
    let policy = Policy { layers_max: usize::MAX, ..Policy::default() };
    let (mut engine, mut reference) = (Allocator::new(policy.clone()), Reference::new(policy));
    let mut dealer = Dealer::new(seed);
    let mut seen = Seen { grants: 0, held_back: 0, refused: 0 };
    for step in 0..steps {
        for _ in 0..=dealer.dice.throw(3) {
            dealer.pass_time();
            let event = dealer.event();
            let at = format!("seed {seed}, step {step}, {event:?}");
            let before = (step % 8 == 0).then(|| books(&engine));
            let answer = engine.apply(dealer.now_ms, &event);
            assert_eq!(answer.is_ok(), reference.apply(dealer.now_ms, &event), "{at}: {answer:?}");
            engine.check().unwrap_or_else(|why| panic!("{at}: {why}"));
            if answer.is_err() {
                seen.refused += 1;
                assert!(before.is_none_or(|before| before == books(&engine)), "{at}: refused but changed");
            }
            dealer.note(&event, answer.is_ok());
        }
        dealer.pass_time();
        let draw = dealer.dice.throw(1 << 30);
        let grants = in_slices(&mut engine, dealer.now_ms, draw, dealer.dice.throw(4) as usize);
        let expected = reference.allocate(dealer.now_ms, draw);
        assert_eq!(grants, expected, "seed {seed}, step {step}, {} ms", dealer.now_ms);
        engine.check().unwrap_or_else(|why| panic!("seed {seed}, step {step}, after the round: {why}"));
        for id in (0..AGENTS).map(agent) {
            assert_eq!(engine.free(id).cloned(), reference.free(id), "seed {seed}, step {step}, {id:?}");
        }
        seen.grants += grants.len() as u64;
        dealer.offers.extend(grants);
    }
    seen.held_back = reference.held_back;
    seen
}

/// Everything that a refused event must leave alone.
fn books(engine: &Allocator) -> String {
    let Allocator { agents, frameworks, active, open, dirty, wheel, .. } = engine;
    format!("{agents:?} {frameworks:?} {active:?} {open:?} {dirty:?} {wheel:?}")
}

/// A round in slices of `budget` agents; 0 for all at once.
fn in_slices(engine: &mut Allocator, now_ms: u64, seed: u64, budget: usize) -> Vec<Grant> {
    if budget == 0 {
        return engine.next(now_ms, seed, usize::MAX);
    }
    let mut grants = engine.next(now_ms, seed, budget);
    while engine.next_wakeup_ms().is_some_and(|at| at <= now_ms) {
        grants.extend(engine.next(now_ms, seed, budget));
    }
    grants
}

#[test]
fn the_engine_agrees_with_the_reference() {
    let mut all = Seen { grants: 0, held_back: 0, refused: 0 };
    for seed in 0..2_000 {
        let seen = history(seed, 40);
        all.grants += seen.grants;
        all.held_back += seen.held_back;
        all.refused += seen.refused;
    }
    // What never happens is not tested.
    assert!(all.grants > 15_000, "{} grants", all.grants);
    assert!(all.held_back > 8_000, "{} held back", all.held_back);
    assert!(all.refused > 5_000, "{} events refused", all.refused);
}

/// With few layers filters are merged, so somebody may be offered what they refused; nothing else may break.
#[test]
fn merged_filters_break_nothing() {
    for seed in 0..300 {
        let mut engine = Allocator::new(Policy { layers_max: 2, ..Policy::default() });
        let mut dealer = Dealer::new(seed);
        for step in 0..80 {
            dealer.pass_time();
            let event = dealer.event();
            let taken = engine.apply(dealer.now_ms, &event).is_ok();
            dealer.note(&event, taken);
            let grants = engine.next(dealer.now_ms, step, usize::MAX);
            engine.check().unwrap_or_else(|why| panic!("seed {seed}, step {step}, {event:?}: {why}"));
            dealer.offers.extend(grants);
        }
    }
}

/// Nothing is granted that is not there, and nothing twice.
#[test]
fn what_is_out_never_exceeds_what_there_is() {
    for seed in 0..300 {
        let mut engine = Allocator::new(Policy::default());
        let mut dealer = Dealer::new(seed);
        for step in 0..80 {
            dealer.pass_time();
            let event = dealer.event();
            // Uses that are forced on an agent, and totals that shrink, may exceed; offers may not.
            if matches!(event, Event::Used(_) | Event::AgentChanged { .. }) {
                continue;
            }
            let taken = engine.apply(dealer.now_ms, &event).is_ok();
            dealer.note(&event, taken);
            dealer.offers.extend(engine.next(dealer.now_ms, step, usize::MAX));
            for at in engine.agents.iter().flatten() {
                let out = dealer.offers.iter().chain(&dealer.uses).filter(|g| g.agent == at.id);
                let sum = out.fold(at.free.clone(), |sum, g| sum.checked_add(&g.resources).unwrap());
                assert_eq!(sum, at.total, "seed {seed}, step {step}, {:?}", at.id);
            }
        }
    }
}
