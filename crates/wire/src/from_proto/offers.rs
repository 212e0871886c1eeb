//! Offers.

use std::collections::BTreeSet;

use proffer_types::{AgentId, OfferId};

use super::agents::attributes;
use super::resources::{Attributions, resources};
use super::{epoch, id, role};
use crate::malformed::{Path, Problems};
use crate::scheduler::v1 as pb;
use crate::told::HostOffer;

pub(crate) fn offer_id(offer: Option<pb::OfferId>, at: Path<'_>, problems: &mut Problems) -> Option<OfferId> {
    let Some(offer) = offer else { return problems.invalid(at, "must be given") };
    Some(OfferId { epoch: epoch(offer.epoch, at.field("epoch"), problems)?, n: offer.n })
}

/// Parses offers to be used or given back; `seen` finds those that are given twice in one call.
pub(crate) fn offer_ids(
    ids: Vec<pb::OfferId>,
    at: &Path<'_>,
    seen: &mut BTreeSet<OfferId>,
    problems: &mut Problems,
) -> Option<Vec<OfferId>> {
    if ids.is_empty() {
        return problems.invalid(at.field("offer_ids"), "must not be empty");
    }
    let mut offers = Vec::with_capacity(ids.len());
    let mut whole = Some(());
    for (i, id) in ids.into_iter().enumerate() {
        let at = at.item("offer_ids", i);
        match offer_id(Some(id), at, problems) {
            None => whole = None,
            Some(offer) if !seen.insert(offer) => whole = problems.invalid(at, "is there twice"),
            Some(offer) => offers.push(offer),
        }
    }
    whole.map(|()| offers)
}

pub(crate) fn host_offer(offer: pb::Offer, at: &Path<'_>, problems: &mut Problems) -> Option<HostOffer> {
    Some(HostOffer {
        id: offer_id(offer.id, at.field("id"), problems)?,
        agent: AgentId(id(offer.agent_id, at.field("agent_id"), problems)?),
        role: role(&offer.role, at.field("role"), problems)?,
        resources: resources(offer.resources, at, "resources", Attributions::Allowed, problems)?,
        hostname: offer.hostname,
        attributes: attributes(offer.attributes, at, problems)?,
    })
}
