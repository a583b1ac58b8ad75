//! The messages of the link in JSON, each an object of one field that is its name: `{"renew":{"sequence":7}}`.

use protoplex_runtime::config::wording::plain;
use protoplex_wire::clock::BootTime;
use protoplex_wire::follow::Follower;
use protoplex_wire::identity::{Kind, Peer, new_instance};
use protoplex_wire::proto::follow_reply::Message as Told;
use protoplex_wire::proto::follow_request::Message as Said;
use protoplex_wire::proto::{
    self, Draining, FollowHello, FollowWelcome, Leave, Member, OwnedKey, Owner, Released, Renew,
};
use protoplex_wire::seeds::Redirect;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tonic::Status;

use crate::link::MAX_CAPACITY;

/// A key at the epoch at which it is owned.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
    epoch: u64,
}

impl From<Key> for OwnedKey {
    fn from(Key { key, epoch }: Key) -> Self {
        Self { key, epoch }
    }
}

impl From<OwnedKey> for Key {
    fn from(OwnedKey { key, epoch }: OwnedKey) -> Self {
        Self { key, epoch }
    }
}

fn to_wire(keys: Vec<Key>) -> Vec<OwnedKey> {
    keys.into_iter().map(Into::into).collect()
}

fn from_wire(keys: Vec<OwnedKey>) -> Vec<Key> {
    keys.into_iter().map(Into::into).collect()
}

// ---- what a member says ----

/// A member's hello, with all that it owns.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registration {
    pool: String,
    address: String,
    id: Option<String>,
    #[serde(default)]
    zone: String,
    instance: Option<String>,
    incarnation: Option<u64>,
    attempt: Option<u64>,
    capacity: Option<u32>,
    #[serde(default)]
    movable: bool,
    #[serde(default)]
    owned: Vec<Key>,
}

impl Registration {
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let read: Self = parse(body)?;
        match read.capacity {
            Some(0) => Err(format!("a member's capacity is from 1 to {MAX_CAPACITY}")),
            _ => Ok(read),
        }
    }

    /// Who joins, and what its link begins with. A backend's members are known by its name; an operator's by any.
    pub(super) fn opening(self, peer: &Peer) -> (Member, Vec<Said>) {
        let Self { pool, address, id, zone, instance, owned, .. } = self;
        let enrolled = (peer.kind == Kind::Backend).then_some(&peer.node);
        let id = id.unwrap_or_else(|| format!("{}/{address}", enrolled.unwrap_or(&pool)));
        let instance = instance.unwrap_or_else(new_instance);
        let member = Member { id, pool, address, zone, instance };
        let Follower { node, kind, zone, .. } = Follower::of_backend(member.clone().into());
        let node = enrolled.cloned().unwrap_or(node);
        // Whoever sends one hello after the other needs no numbers: they grow by themselves.
        let now = BootTime::now().nanos();
        let hello = FollowHello {
            node,
            kind,
            zone,
            since: None,
            member: Some(member.clone()),
            incarnation: self.incarnation.unwrap_or(now),
            attempt: self.attempt.unwrap_or(now),
            // Nothing said is a capacity of 1.
            capacity: self.capacity.unwrap_or_default(),
            yields: self.movable,
        };
        let owned = proto::Owned { keys: to_wire(owned), last: true };
        (member, vec![Said::Hello(hello), Said::Owned(owned)])
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Renew {
        sequence: u64,
    },
    Released {
        #[serde(default)]
        keys: Vec<Key>,
        #[serde(default)]
        kept: Vec<Key>,
    },
    Draining {},
    Leave {},
}

impl From<Line> for Said {
    fn from(line: Line) -> Self {
        match line {
            Line::Renew { sequence } => Self::Renew(Renew { sequence }),
            Line::Released { keys, kept } => {
                Self::Released(Released { keys: to_wire(keys), kept: to_wire(kept) })
            }
            Line::Draining {} => Self::Draining(Draining {}),
            Line::Leave {} => Self::Leave(Leave {}),
        }
    }
}

/// What a member says, a line each: all of it, or what is wrong with one.
pub(super) fn said(body: &[u8]) -> Result<Vec<Said>, String> {
    let lines = body.split(|byte| *byte == b'\n').enumerate();
    let filled = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let read = |(index, line)| {
        parse::<Line>(line).map(Said::from).map_err(|error| format!("line {}: {error}", index + 1))
    };
    let said = filled.map(read).collect::<Result<Vec<_>, _>>()?;
    if said.is_empty() { Err("nothing is said: one JSON object a line".to_owned()) } else { Ok(said) }
}

/// A question for a key's owner. An empty body asks, too.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    /// Of who asks.
    pub(super) zone: String,
    /// The epoch that the key's owner answered with 421.
    pub(super) refuted_epoch: u64,
}

impl Asked {
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        if body.is_empty() { Ok(Self::default()) } else { parse(body) }
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    // Serde would take a list, too, for fields without names.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err("a JSON object is expected".to_owned());
    }
    serde_json::from_slice(text).map_err(|error| plain(&error.to_string()))
}

// ---- what it is told ----

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer<'a> {
    Welcome { session: &'a str, id: &'a str, instance: &'a str, term: u64, lease_ms: u32, heartbeat_ms: u32 },
    Seeds { addresses: Vec<String> },
    Assigned(Key),
    Revoked { keys: Vec<Key> },
    Yield { keys: Vec<Key>, idle: bool },
    Renewed { sequence: u64 },
    LeaseLost {},
    Closed { reason: &'a str, leader: Option<String> },
}

impl Answer<'_> {
    fn line(&self) -> String {
        // Only texts and numbers: nothing that JSON can't say.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// The first line: which session this is, and by which times it lives.
pub(super) fn welcome(session: &str, member: &Member, welcome: &FollowWelcome) -> String {
    let FollowWelcome { position, lease_ms, heartbeat_ms } = *welcome;
    let term = position.map_or(0, |position| position.term);
    Answer::Welcome { session, id: &member.id, instance: &member.instance, term, lease_ms, heartbeat_ms }
        .line()
}

/// A message as a line; nothing for what only those need who send requests to owners.
pub(super) fn told(message: Told) -> Option<String> {
    let line = match message {
        Told::Directory(it) => Answer::Seeds { addresses: it.seeds },
        Told::Assigned(it) => Answer::Assigned(Key { key: it.key, epoch: it.epoch }),
        Told::Revoked(it) => Answer::Revoked { keys: from_wire(it.keys) },
        Told::Yield(it) => Answer::Yield { keys: from_wire(it.keys), idle: it.idle },
        Told::Renewed(it) => Answer::Renewed { sequence: it.sequence },
        Told::LeaseLost(_) => Answer::LeaseLost {},
        Told::Welcome(_)
        | Told::Table(_)
        | Told::Located(_)
        | Told::Invalidate(_)
        | Told::MemberGone(_)
        | Told::ResetOwners(_)
        | Told::Build(_)
        | Told::Known(_) => return None,
    };
    Some(line.line())
}

/// The last line: why the link ends, and who leads now, where that is why.
pub(super) fn closed(why: &Status) -> String {
    let leader = Redirect::of(why).map(|leader| leader.address);
    Answer::Closed { reason: why.message(), leader }.line()
}

/// A key's owner, for a tool that asks.
pub(super) fn owned(pool: &str, key: &str, owner: &Owner) -> Value {
    let Owner { member, address, epoch, .. } = owner;
    json!({ "pool": pool, "key": key, "member": member, "address": address, "epoch": epoch })
}
