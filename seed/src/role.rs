//! What a seed is: it leads, it is the understudy of one that leads, or it waits to lead.

use std::fmt;

use protoplex_wire::seeds::Redirect;
use tonic::Status;

/// The role of this seed among those of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nobody is known to lead, it may be since the datastore can't be reached.
    #[default]
    Waiting,
    /// Another one leads.
    Understudy {
        /// How that one calls itself in the leader's row.
        holder: String,
        /// Where it is, and its term. The address may be empty.
        leader: Redirect,
    },
    /// It leads, in this term.
    Leading(u64),
}

impl Role {
    /// Whether it leads, or could take over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self != Self::Waiting
    }

    /// The term in which it leads, or the answer to what only a seed that leads can do.
    pub(crate) fn term(&self) -> Result<u64, Status> {
        match self {
            Self::Leading(term) => Ok(*term),
            Self::Waiting => {
                Err(Redirect::status("this seed does not lead, and knows of none that does", None))
            }
            Self::Understudy { leader, .. } => {
                let who = match leader.address.as_str() {
                    "" => "another one".to_owned(),
                    address => format!("the one at {address}"),
                };
                Err(Redirect::status(&format!("this seed does not lead: {who} does"), self.leader()))
            }
        }
    }

    /// As [`Self::term`]: nothing where it leads.
    pub(crate) fn refusal(&self) -> Option<Status> {
        self.term().err()
    }

    /// Who else leads, where it says how it is reached.
    pub(crate) fn leader(&self) -> Option<&Redirect> {
        match self {
            Self::Understudy { leader, .. } if !leader.address.is_empty() => Some(leader),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting to lead"),
            Self::Leading(term) => write!(f, "leading, term {term}"),
            Self::Understudy { holder, leader: Redirect { address, term } } => {
                let node = holder.split('/').next().unwrap_or_default();
                let at = if address.is_empty() { String::new() } else { format!(" at {address}") };
                write!(f, "understudy of {node}{at}, term {term}")
            }
        }
    }
}
