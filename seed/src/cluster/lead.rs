//! What this seed is among the others: it leads, hands over, or knows who does.

use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::proto::LoadRoutesReply;
use protoplex_wire::seeds::Redirect;
use tokio::sync::watch;
use tonic::Status;

use super::Cluster;
use crate::role::Role;

/// What this seed is by its core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lead {
    /// In which it leads, if it does.
    pub(crate) term: Option<u64>,
    /// It waits for members of an earlier term.
    pub(crate) recovering: bool,
    /// Until when it leads, by the last renewal that it has taken.
    pub(crate) until: Option<BootTime>,
}

/// This seed leads until then, and those are its datastores.
#[derive(Clone, Debug, Default)]
pub(crate) struct Renewal {
    pub(crate) term: u64,
    pub(crate) until: BootTime,
    pub(crate) datastores: Vec<String>,
}

impl Cluster {
    /// What this seed is, as it changes.
    pub(crate) fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// The same by the core alone, for whoever keeps the lead.
    pub(crate) fn leading(&self) -> watch::Receiver<Lead> {
        self.leading.subscribe()
    }

    /// Where it is told of renewals.
    pub(crate) fn renewals(&self) -> watch::Sender<Renewal> {
        self.renewals.0.clone()
    }

    /// The answer to a follower that comes now, where it can't be welcomed.
    pub(crate) fn refusal(&self) -> Option<Status> {
        let why = "this seed does not lead";
        self.core.leads().is_none().then(|| Redirect::status(why, self.leader()))
    }

    /// Another seed that leads, where it says how it is reached.
    pub(super) fn leader(&self) -> Option<&Redirect> {
        self.led_by.as_ref().and_then(|(role, _)| role.leader())
    }

    /// Ends the links of all followers, which are told who leads.
    pub(crate) fn close_all(&mut self, why: &'static str) {
        let why = Redirect::status(why, self.leader());
        self.followers.close_all(&why);
    }

    /// This seed leads now, and this is what the datastore holds. False where it is too late for that.
    pub(crate) fn lead(
        &mut self,
        term: u64,
        until: BootTime,
        mut loaded: LoadRoutesReply,
        now: BootTime,
    ) -> bool {
        if now >= until {
            return false;
        }
        let members = std::mem::take(&mut loaded.members);
        tracing::info!(term, members = members.len(), handlers = loaded.handlers.len(), "this seed leads");
        self.led_by = None;
        // They went as this seed led no more, and it may be that others know better what has become of them.
        self.nodes.forget_lost();
        self.nodes.expect(&members);
        self.core.lead(term, until, members, now);
        self.tell_directory();
        self.set_routes(loaded, now);
        // Whoever asked for this looks next.
        self.tell_lead();
        true
    }

    /// The row is another seed's until then, or nobody's; not this one's in any case.
    pub(crate) fn led_by(&mut self, other: Option<Role>, until: BootTime) {
        self.led_by = other.map(|role| (role, until));
        if self.core.leads().is_some() {
            self.core.step_down("another seed leads");
        }
    }

    /// The datastore has granted a newer term since this seed was granted its own.
    pub(crate) fn overtaken(&mut self, newer: u64) {
        if let Some(term) = self.core.leads().filter(|term| *term < newer) {
            tracing::warn!(term, newer, "another seed has led since");
            self.core.step_down("another seed leads");
        }
    }

    // ---- the hand-over ----

    /// Leads no more, but keeps its links; tells its term, and the understudies that are there. Nothing where it doesn't
    /// lead.
    pub(crate) fn begin_hand_over(&mut self) -> Option<(u64, Vec<String>)> {
        let term = self.core.leads()?;
        self.handing_over = true;
        self.core.step_down("the seed hands over");
        Some((term, self.nodes.understudies(&self.myself.node)))
    }

    /// Sends everybody to whoever leads now, if anybody does.
    pub(crate) fn end_hand_over(&mut self, successor: Option<Redirect>) {
        self.handing_over = false;
        self.led_by = successor.map(|leader| {
            let role = Role::Understudy { holder: leader.address.clone(), leader };
            // For as long as this process lives: it is about to end.
            (role, BootTime::now() + Duration::from_secs(3600))
        });
    }

    // ---- what it is told, and tells ----

    /// Before anything else is done, which would find the lead over that was renewed in time.
    pub(super) fn take_renewal(&mut self) {
        // An error can't be: it has a sender itself.
        if self.renewals.1.has_changed().unwrap_or(false) {
            let Renewal { term, until, datastores } = self.renewals.1.borrow_and_update().clone();
            self.know(Vec::new(), datastores);
            self.core.lead_renewed(term, until, BootTime::now());
        }
    }

    pub(super) fn tell_lead(&self) {
        let lead = Lead {
            term: self.core.leads(),
            recovering: self.core.recovering(),
            until: self.core.lead_until(),
        };
        if *self.leading.borrow() != lead {
            self.leading.send_replace(lead);
        }
    }

    /// Tells what this seed is now. One that leads no more has nothing to say to followers: they look for the one that does.
    pub(super) fn take_role(&mut self) {
        let leads = self.core.leads();
        let unchanged = match (&*self.role.borrow(), leads, &self.led_by) {
            (Role::Leading(term), Some(leads), _) => *term == leads,
            (role, None, Some((other, _))) => role == other,
            (Role::Waiting, None, None) => true,
            _ => false,
        };
        if unchanged || self.handing_over {
            return;
        }
        let role = match (leads, &self.led_by) {
            (Some(term), _) => Role::Leading(term),
            (None, Some((role, _))) => role.clone(),
            (None, None) => Role::Waiting,
        };
        tracing::info!("{role}");
        if leads.is_none() {
            self.close_all("this seed leads no more");
        }
        self.role.send_replace(role);
    }
}
