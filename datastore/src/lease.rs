//! A lease: who holds it, in which term, and until when. Pure, with the time as an argument.
//!
//! | is            | after                                          | who can have it next                        |
//! | ------------- | ---------------------------------------------- | ------------------------------------------- |
//! | held          | a take or a renewal, until its end             | its holder by renewal; its name, anew       |
//! | held          | a restart of the datastore, for one whole life | the same                                    |
//! | over          | its end                                        | anybody, in a new term; no renewal          |
//! | over for good | somebody was told so, a restart in between     | the same                                    |
//! | over for good | its holder has released it                     | the same                                    |

use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::{PeekLeaseReply, ReleaseLeaseRequest, TakeLeaseReply, TakeLeaseRequest};

use crate::store::{StoreError, StoreResult};

/// The longest time to live: so long nobody else can take the lease of a holder that died.
const MAX_TTL: Duration = Duration::from_secs(600);

/// What is kept of a lease over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) holder: String,
    /// Grows with each take.
    pub(crate) term: u64,
    pub(crate) ttl: Duration,
    /// It is over for good, whatever the clock says.
    pub(crate) ended: bool,
}

/// A grant and when it ends, by the clock of this process.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) grant: Grant,
    ends: BootTime,
}

impl Lease {
    /// Counts a grant's time from now: just granted, or read at a start, when nobody knows what was left of it.
    pub(crate) fn from(grant: Grant, now: BootTime) -> Self {
        Self { ends: now + grant.ttl, grant }
    }

    /// How long it is still held; zero where it is over.
    pub(crate) fn left(&self, now: BootTime) -> Duration {
        if self.grant.ended { Duration::ZERO } else { self.ends.since(now) }
    }

    /// What becomes of the lease when it is asked for; `None` where it is not granted.
    pub(crate) fn take(current: Option<&Self>, request: &TakeLeaseRequest, now: BootTime) -> Option<Self> {
        let term = match (current, request.term) {
            (None, 0) => 1,
            (None, _) => return None,
            (Some(lease), 0) => {
                if lease.grant.holder != request.holder && !lease.left(now).is_zero() {
                    return None;
                }
                lease.grant.term + 1
            }
            (Some(Self { grant, .. }), term) if grant.term != term || grant.holder != request.holder => {
                return None;
            }
            // Its end may have been acted on, so an ended lease can't be renewed even where nobody has taken it.
            (Some(lease), _) if lease.left(now).is_zero() => return None,
            (Some(_), term) => term,
        };
        let ttl = Duration::from_millis(request.ttl_ms.into());
        Some(Self::from(Grant { holder: request.holder.clone(), term, ttl, ended: false }, now))
    }
}

/// Refuses a request without names, or with a time to live that can't be meant.
pub(crate) fn check(request: &TakeLeaseRequest) -> StoreResult<()> {
    let ttl = Duration::from_millis(request.ttl_ms.into());
    if request.name.is_empty() || request.holder.is_empty() {
        Err(StoreError::Invalid("a lease needs a name and a holder".to_owned()))
    } else if ttl.is_zero() || ttl > MAX_TTL {
        Err(StoreError::Invalid(format!(
            "ttl_ms is {}: a lease lasts between 1 ms and {} s",
            request.ttl_ms,
            MAX_TTL.as_secs()
        )))
    } else {
        Ok(())
    }
}

/// What becomes of the lease when its holder gives it up; `None` where it isn't this holder's in this term, or is over.
pub(crate) fn released(grant: &Grant, request: &ReleaseLeaseRequest) -> Option<Grant> {
    let theirs = grant.holder == request.holder && grant.term == request.term && !grant.ended;
    theirs.then(|| Grant { ended: true, ..grant.clone() })
}

/// Refuses a change that a seed of this term makes where the lease of seeds was granted in a newer one since.
pub(crate) fn fence(term: u64, newest: Option<u64>) -> StoreResult<()> {
    match newest {
        Some(newest) if term != 0 && term < newest => Err(StoreError::Fenced(newest)),
        _ => Ok(()),
    }
}

/// What is answered to who has asked for a lease.
pub(crate) fn reply(granted: bool, lease: &Lease, now: BootTime) -> TakeLeaseReply {
    TakeLeaseReply {
        granted,
        term: lease.grant.term,
        holder: lease.grant.holder.clone(),
        left_ms: milliseconds(lease.left(now)),
    }
}

/// What is answered to who only looks.
pub(crate) fn peeked(lease: &Lease, now: BootTime) -> PeekLeaseReply {
    let left = lease.left(now);
    let held = !left.is_zero();
    let left_ms = if held { milliseconds(left).saturating_add(1) } else { 0 };
    PeekLeaseReply { held, term: lease.grant.term, holder: lease.grant.holder.clone(), left_ms }
}

/// Whole milliseconds; leases are checked to be far below 2^32.
pub(crate) fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn request(holder: &str, term: u64) -> TakeLeaseRequest {
        TakeLeaseRequest { name: "seed".to_owned(), holder: holder.to_owned(), ttl_ms: 3_000, term }
    }

    fn term(lease: Option<Lease>) -> Option<u64> {
        lease.map(|lease| lease.grant.term)
    }

    #[test]
    fn is_granted_to_one_holder_until_its_end() {
        let start = BootTime::now();
        let lease = Lease::take(None, &request("a", 0), start).unwrap();
        let last = start + (TTL - Duration::from_nanos(1));
        let table = [
            // who asks, with which term, when, and the term that is granted
            ("b", 0, start, None),
            ("b", 0, last, None),
            ("b", 1, start, None),
            ("a", 2, start, None),
            ("a", 1, start, Some(1)),
            ("a", 1, last, Some(1)),
            ("a", 0, start, Some(2)),
            ("a", 1, start + TTL, None),
            ("a", 0, start + TTL, Some(2)),
            ("b", 0, start + TTL, Some(2)),
            ("b", 1, start + TTL, None),
        ];
        for (holder, asked, now, granted) in table {
            let outcome = Lease::take(Some(&lease), &request(holder, asked), now);
            assert_eq!(term(outcome), granted, "{holder} {asked}");
        }
    }

    #[test]
    fn a_renewal_counts_from_itself() {
        let start = BootTime::now();
        let first = Lease::take(None, &request("a", 0), start).unwrap();
        let second = Lease::take(Some(&first), &request("a", 1), start + TTL / 2).unwrap();
        assert_eq!(second.left(start + TTL), TTL / 2);
        assert_eq!(second.left(start + TTL * 2), Duration::ZERO);
    }

    #[test]
    fn an_unknown_lease_cannot_be_renewed() {
        assert!(Lease::take(None, &request("a", 1), BootTime::now()).is_none());
    }

    #[test]
    fn ended_for_good_is_not_revived_by_a_restart() {
        let start = BootTime::now();
        let mut lease = Lease::take(None, &request("a", 0), start).unwrap();
        lease.grant.ended = true;
        let restarted = Lease::from(lease.grant, start + TTL);
        assert!(restarted.left(start + TTL).is_zero());
        assert!(Lease::take(Some(&restarted), &request("a", 1), start + TTL).is_none());
        assert_eq!(term(Lease::take(Some(&restarted), &request("b", 0), start + TTL)), Some(2));
    }

    #[test]
    fn after_a_restart_it_is_held_for_one_whole_life() {
        let start = BootTime::now();
        let grant = Lease::take(None, &request("a", 0), start).unwrap().grant;
        let restarted = Lease::from(grant, start + TTL * 9);
        assert!(Lease::take(Some(&restarted), &request("b", 0), start + TTL * 9).is_none());
        assert_eq!(term(Lease::take(Some(&restarted), &request("a", 1), start + TTL * 9)), Some(1));
        assert_eq!(term(Lease::take(Some(&restarted), &request("b", 0), start + TTL * 10)), Some(2));
    }
}
