//! The routing table that the seed pushed, compiled: immutable, looked up without a lock, swapped whole.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use matchit::{Match, Params, Router};
use protoplex_wire::pattern::{HostPattern, KeyTemplate, MAX_KEY_BYTES, PathPattern, PatternError};
use protoplex_wire::proto;
use thiserror::Error;

use crate::meters::Meters;
use crate::placement::Member;

/// Every handler and every pool, of one version.
#[derive(Default)]
pub struct Table {
    /// Grows with every change that the seed makes; 0 before the first table came.
    pub version: u64,
    /// By host pattern: `example.com`, `.example.com` for what is below it, and the empty text for every host.
    hosts: HashMap<Box<str>, Router<Rc<Handler>>>,
    pools: HashMap<Box<str>, Rc<Pool>>,
}

/// A rule that an operator made: which requests go to which pool, and what their key is.
pub struct Handler {
    /// Unique in the table.
    pub name: Box<str>,
    /// Who answers.
    pub pool: Rc<Pool>,
    /// How one of the pool is chosen.
    pub placement: Placement,
    /// What it has done.
    pub(crate) meters: Meters,
}

/// How a handler chooses the member, and the key that it goes by.
pub enum Placement {
    /// The one owner of the key, whom the seed knows.
    Owned(KeyTemplate),
    /// The member that the key's hash falls on.
    Hash(KeyTemplate),
    /// One of the least busy.
    Spread,
}

/// Servers that can answer the same requests.
pub struct Pool {
    /// Unique in the table.
    pub name: Box<str>,
    /// Those whose lease lasts.
    pub members: Vec<Rc<Member>>,
}

/// A handler that is not in force, since the seed let something pass that this version doesn't understand.
#[derive(Debug, Error)]
#[error("handler {name:?} is not in force: {fault}")]
pub struct Unusable {
    name: String,
    fault: Fault,
}

#[derive(Debug, Error)]
enum Fault {
    #[error(transparent)]
    Conflict(#[from] matchit::InsertError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("its placement is unknown to this version")]
    Placement,
}

impl Placement {
    /// How long a key may be. One without an owner nobody keeps, and what it is made of has limits of its own.
    pub fn max_key_bytes(&self) -> usize {
        match self {
            Self::Owned(_) => MAX_KEY_BYTES,
            Self::Hash(_) | Self::Spread => usize::MAX,
        }
    }
}

impl Table {
    /// Compiles what the seed sent. Members that were in `before` keep their count of requests.
    pub fn compile(sent: &proto::Table, before: &Self) -> (Self, Vec<Unusable>) {
        let mut table = Self { version: sent.version, ..Self::default() };
        for pool in &sent.pools {
            let members = members(pool, before.pools.get(pool.name.as_str()));
            let pool = Rc::new(Pool { name: pool.name.as_str().into(), members });
            table.pools.insert(pool.name.clone(), pool);
        }
        // Plain paths first, since a catch-all takes the path above it only where no other handler has that.
        let (rests, plain): (Vec<_>, Vec<_>) =
            sent.handlers.iter().partition(|handler| handler.path.contains("{*"));
        let mut unusable = Vec::new();
        for handler in plain.into_iter().chain(rests) {
            if let Err(fault) = table.insert(handler) {
                unusable.push(Unusable { name: handler.name.clone(), fault });
            }
        }
        (table, unusable)
    }

    /// The handler of a request and what its path captured: the host itself before `*.suffix`, the longest suffix
    /// first, before `*`; under one host pattern matchit's order, where plain text goes before captures.
    ///
    /// `host` is as [`host`] gives it, `path` percent-encoded as it was sent.
    pub fn find<'t, 'p>(&'t self, host: &str, path: &'p str) -> Option<(&'t Rc<Handler>, Params<'t, 'p>)> {
        let parents = host.match_indices('.').map(|(dot, _)| &host[dot..]);
        let patterns = [host].into_iter().chain(parents).chain([""]);
        patterns
            .filter_map(|pattern| self.hosts.get(pattern))
            .find_map(|paths| paths.at(path).ok())
            .map(|Match { value, params }| (value, params))
    }

    fn insert(&mut self, sent: &proto::Handler) -> Result<(), Fault> {
        let host = match HostPattern::parse(&sent.host)? {
            HostPattern::Exact(host) | HostPattern::Below(host) => host,
            HostPattern::Any => String::new(),
        };
        let path = PathPattern::parse(&sent.path)?;
        let placement = match sent.placement() {
            proto::Placement::Owned => Placement::Owned(KeyTemplate::parse(&sent.key, &path)?),
            proto::Placement::Hash => Placement::Hash(KeyTemplate::parse(&sent.key, &path)?),
            proto::Placement::Spread => Placement::Spread,
            proto::Placement::Unspecified => return Err(Fault::Placement),
        };
        // A pool without a member need not be in what the seed sent.
        let empty = || Rc::new(Pool { name: sent.pool.as_str().into(), members: Vec::new() });
        let pool = Rc::clone(self.pools.entry(sent.pool.as_str().into()).or_insert_with(empty));
        let meters = Meters::of_handler(&sent.name);
        let handler = Rc::new(Handler { name: sent.name.as_str().into(), pool, placement, meters });
        let paths = self.hosts.entry(host.into()).or_default();
        paths.insert(path.as_str(), Rc::clone(&handler))?;
        if let Some((above, _)) = path.as_str().rsplit_once("{*") {
            // `/files/{*rest}` catches `/files/` too. A conflict means that another handler has it already.
            let _ = paths.insert(above, handler);
        }
        Ok(())
    }
}

/// The host that a request is for: lower case, without port and final dot (RFC 9110, 7.2); empty where an HTTP/1.0
/// client names none, `None` where what it says is no host.
pub fn host(header: Option<&str>) -> Option<Cow<'_, str>> {
    let Some(text) = header else { return Some(Cow::Borrowed("")) };
    let name = match text.strip_prefix('[') {
        Some(ipv6) => &text[..ipv6.find(']')? + 2],
        None => text.split(':').next()?,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[:]".contains(&byte);
    match name.bytes().all(known) && !name.is_empty() && !name.starts_with('.') {
        true if name.bytes().any(|byte| byte.is_ascii_uppercase()) => Some(name.to_ascii_lowercase().into()),
        true => Some(name.into()),
        false => None,
    }
}

fn members(sent: &proto::Pool, before: Option<&Rc<Pool>>) -> Vec<Rc<Member>> {
    let known = |id: &str, address: SocketAddr| {
        before?.members.iter().find(|member| *member.id == *id && member.address == address).cloned()
    };
    sent.members
        .iter()
        .filter_map(|member| {
            let address = member.address.parse().ok()?;
            Some(known(&member.id, address).unwrap_or_else(|| Rc::new(Member::new(&member.id, address))))
        })
        .collect()
}

#[cfg(test)]
mod tests;
