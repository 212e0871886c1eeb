//! Offers: made from the allocator's grants, taken back when something ends them.

use std::collections::BTreeMap;

use proffer_allocator::Event;
use proffer_registry::Registry;
use proffer_types::event::FrameworkEvent;
use proffer_types::{AgentId, FrameworkId, Offer, OfferId};

use crate::timers::Timer;
use crate::{Broker, Effect, OFFER_BUDGET, grant};

/// An outstanding offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOffer {
    /// What is held out to whom.
    pub offer: Offer,
    /// When it was made, in cluster time (milliseconds).
    pub made_at: u64,
    /// When it is taken back.
    pub(crate) expires_at: u64,
}

impl Broker {
    /// Offers what can be offered now.
    pub(crate) fn make_offers(&mut self, registry: &Registry) {
        self.rounds += 1;
        let seed = self.epoch.term.rotate_left(32) ^ self.rounds;
        let grants = self.allocator.next(self.now, seed, OFFER_BUDGET);
        if grants.is_empty() {
            return;
        }
        let mut events: BTreeMap<FrameworkId, Vec<Offer>> = BTreeMap::new();
        for granted in grants {
            // A framework or agent may have gone by a command that the allocator heard of, never the other way round.
            if registry.agent(granted.agent).is_none() || !self.subscribers.contains_key(&granted.framework) {
                self.tell(Event::Rescinded(granted));
                continue;
            }
            self.offers_made += 1;
            let id = OfferId { epoch: self.epoch, n: self.offers_made };
            let expires_at = self.now + self.settings.offer_timeout_ms;
            let offer = Offer {
                id,
                framework: granted.framework,
                role: granted.role,
                agent: granted.agent,
                resources: granted.resources,
            };
            events.entry(offer.framework).or_default().push(offer.clone());
            self.offers.insert(id, LiveOffer { offer, made_at: self.now, expires_at });
            self.at(expires_at, Timer::Offer(id));
        }
        for (framework, offers) in events {
            let connection = self.subscribers[&framework].connection;
            self.effects.push(Effect::ToFramework { connection, event: FrameworkEvent::Offers(offers) });
        }
    }

    /// Takes an offer out of the live ones.
    pub(crate) fn remove_offer(&mut self, id: OfferId) -> Option<LiveOffer> {
        let live = self.offers.remove(&id)?;
        self.timers.remove(&(live.expires_at, Timer::Offer(id)));
        Some(live)
    }

    pub(crate) fn expire_offer(&mut self, id: OfferId) {
        let Some(live) = self.remove_offer(id) else { return };
        self.tell(Event::Expired(granted(&live.offer)));
        self.rescind_event(live.offer.framework, vec![id]);
    }

    /// Takes back every offer that `which` names, telling their frameworks.
    pub(crate) fn rescind(&mut self, mut which: impl FnMut(&Offer) -> bool) {
        let ids: Vec<OfferId> =
            self.offers.values().filter(|o| which(&o.offer)).map(|o| o.offer.id).collect();
        let mut events: BTreeMap<FrameworkId, Vec<OfferId>> = BTreeMap::new();
        for id in ids {
            if let Some(live) = self.remove_offer(id) {
                self.tell(Event::Rescinded(granted(&live.offer)));
                events.entry(live.offer.framework).or_default().push(id);
            }
        }
        for (framework, ids) in events {
            self.rescind_event(framework, ids);
        }
    }

    pub(crate) fn rescind_of_agent(&mut self, agent: AgentId) {
        self.rescind(|offer| offer.agent == agent);
    }

    pub(crate) fn rescind_of_framework(&mut self, framework: FrameworkId) {
        self.rescind(|offer| offer.framework == framework);
    }

    fn rescind_event(&mut self, framework: FrameworkId, ids: Vec<OfferId>) {
        if let Some(subscriber) = self.subscribers.get(&framework) {
            let connection = subscriber.connection;
            self.effects.push(Effect::ToFramework { connection, event: FrameworkEvent::Rescind(ids) });
        }
    }

    /// Gives offers that an Accept had in its hands back, without filter.
    pub(crate) fn give_back(&mut self, offers: impl IntoIterator<Item = LiveOffer>) {
        for live in offers {
            self.tell(Event::Rescinded(granted(&live.offer)));
        }
    }
}

pub(crate) fn granted(offer: &Offer) -> proffer_allocator::Grant {
    grant(offer.framework, &offer.role, offer.agent, &offer.resources)
}
