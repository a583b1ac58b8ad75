//! How one that doesn't lead says who does: as metadata of its refusal, and in the leader's row of the datastore.

use tonic::Status;
use tonic::metadata::MetadataMap;

/// Where the seed that leads is reached.
const LEADER: &str = "protoplex-leader";
/// The term in which it leads.
const TERM: &str = "protoplex-term";

/// Who leads, by the word of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Where it is reached.
    pub address: String,
    /// The term in which it leads.
    pub term: u64,
}

impl Redirect {
    /// What a refusal says of who leads.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let address = status.metadata().get(LEADER)?.to_str().ok()?.to_owned();
        Some(Self { address, term: term(status.metadata()).unwrap_or(0) })
    }

    /// The refusal of a seed that does not lead, with who does where it knows.
    #[must_use]
    pub fn status(why: &str, leader: Option<&Self>) -> Status {
        let mut status = Status::unavailable(why);
        if let Some(Self { address, term }) = leader
            && let Ok(address) = address.parse()
        {
            status.metadata_mut().insert(LEADER, address);
            status.metadata_mut().insert(TERM, (*term).into());
        }
        status
    }
}

/// The refusal of a change that a seed of an older term than this wants made.
#[must_use]
pub fn fenced(why: String, newest: u64) -> Status {
    let mut status = Status::failed_precondition(why);
    status.metadata_mut().insert(TERM, newest.into());
    status
}

/// The newer term for which a change was refused by the datastore, if that is why.
#[must_use]
pub fn newer_term(status: &Status) -> Option<u64> {
    term(status.metadata()).filter(|_| status.metadata().get(LEADER).is_none())
}

fn term(metadata: &MetadataMap) -> Option<u64> {
    metadata.get(TERM)?.to_str().ok()?.parse().ok()
}

/// How a seed calls itself in the leader's row: by name and instance, and where it is reached, which may be empty.
#[must_use]
pub fn holder(node: &str, instance: &str, address: &str) -> String {
    if address.is_empty() { format!("{node}/{instance}") } else { format!("{node}/{instance}@{address}") }
}

/// Where the holder of the leader's row is reached, if it says so.
#[must_use]
pub fn address_of(holder: &str) -> Option<&str> {
    holder.rsplit_once('@').map(|(_, address)| address).filter(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_who_leads() {
        let leader = Redirect { address: "10.0.0.2:8050".to_owned(), term: 7 };
        let status = Redirect::status("this seed does not lead", Some(&leader));
        assert_eq!((Redirect::of(&status), newer_term(&status)), (Some(leader), None));
        assert_eq!(Redirect::of(&Redirect::status("none leads", None)), None);
        let fenced = fenced("too late".to_owned(), 8);
        assert_eq!((Redirect::of(&fenced), newer_term(&fenced)), (None, Some(8)));
        let odd = Redirect { address: "a\nb:1".to_owned(), term: 7 };
        assert_eq!(Redirect::of(&Redirect::status("odd", Some(&odd))), None, "what is no header is left out");
    }

    #[test]
    fn a_holder_says_where_it_is_reached() {
        assert_eq!(address_of(&holder("seed-1", "abc", "[::1]:8050")), Some("[::1]:8050"));
        assert_eq!(address_of(&holder("seed-1", "abc", "")), None);
        assert_eq!(address_of("seed-1@"), None);
    }
}
