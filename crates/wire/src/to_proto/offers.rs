//! Offers.

use proffer_types::OfferId;

use super::epoch;
use crate::scheduler::v1 as pb;

/// An offer's id.
pub fn offer_id(offer: OfferId) -> pb::OfferId {
    pb::OfferId { epoch: Some(epoch(offer.epoch)), n: offer.n }
}
