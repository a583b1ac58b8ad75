//! A request's way through the proxy, step by step.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use matchit::Params;
use protoplex_http::upstream::{AskError, Pool, SendErrorKind};
use protoplex_http::{Answer, Body, Exchange, RequestHead, Service, clock, forwarded, upgrade};
use protoplex_wire::follow::Link;
use protoplex_wire::pattern::{KeyTemplate, MAX_KEY_BYTES};
use protoplex_wire::proto;
use tracing::{info, warn};

use crate::health;
use crate::hot_keys::HotKeys;
use crate::key::{self, Facts};
use crate::meters::Meters;
use crate::placement::{self, Member, Outstanding};
use crate::refusal::Refusal;
use crate::replay::Replay;
use crate::table::{self, Placement, Table, Unusable};
use crate::target;

/// The longest form that is read for the sake of a key, in bytes.
const MAX_FORM_BYTES: u64 = 64 * 1_024;
/// How often an owner is asked for one request: the cached one, then the one that the seed names anew.
const OWNERS_ASKED: usize = 2;

const PROTOPLEX_KEY: HeaderName = HeaderName::from_static("protoplex-key");
const PROTOPLEX_EPOCH: HeaderName = HeaderName::from_static("protoplex-epoch");
/// By it an owner says that its 421 denies the key. Any other 421 is an answer like others.
const PROTOPLEX_MISDIRECTED: HeaderName = HeaderName::from_static("protoplex-misdirected");

/// Answers requests by passing them on, each to the member that its handler and key choose.
pub(crate) struct Relay {
    link: Link,
    table: RefCell<Rc<Table>>,
    upstream: Rc<Pool>,
    hot_keys: RefCell<HotKeys>,
    tunnel_idle_timeout: Cell<Duration>,
    /// Of requests that no handler matched.
    unmatched: Meters,
}

/// What the table says of a request.
struct Matched<'t, 'r> {
    handler: &'t table::Handler,
    captures: Params<'t, 'r>,
    host: Cow<'r, str>,
}

impl Relay {
    /// A relay that refuses everything until it [adopts](Self::adopt) a table.
    pub(crate) fn new(link: Link, upstream: Rc<Pool>, tunnel_idle_timeout: Duration) -> Self {
        let unmatched = Meters::of_handler("");
        let tunnel_idle_timeout = Cell::new(tunnel_idle_timeout);
        let hot_keys = RefCell::new(HotKeys::new(clock::now()));
        Self { link, table: RefCell::default(), upstream, hot_keys, tunnel_idle_timeout, unmatched }
    }

    /// From now on this counts, for tunnels to come.
    pub(crate) fn change(&self, tunnel_idle_timeout: Duration) {
        self.tunnel_idle_timeout.set(tunnel_idle_timeout);
    }

    /// The owned keys that had the most requests since this was called last.
    pub(crate) fn hot_keys(&self) -> proto::HotKeys {
        self.hot_keys.borrow_mut().report(clock::now())
    }

    /// Routes by this table from the next request on. Returns what of it can't be used.
    pub(crate) fn adopt(&self, sent: &proto::Table) -> Vec<Unusable> {
        let (table, unusable) = Table::compile(sent, &self.table.borrow());
        self.table.replace(Rc::new(table));
        unusable
    }
}

impl Service for Relay {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        let table = Rc::clone(&self.table.borrow());
        let matched = match find(&table, &exchange.head) {
            Ok(matched) => matched,
            Err(refusal) => {
                self.unmatched.answered(refusal.status());
                return refusal.into_answer();
            }
        };
        let handler = matched.handler;
        let answer = match read_key(matched, body, exchange).await {
            Ok((key, body)) => self.relay(handler, &key, body, exchange).await,
            Err(refusal) => Err(refusal),
        };
        let answer = answer.unwrap_or_else(Refusal::into_answer);
        handler.meters.answered(answer.head.status());
        answer
    }
}

impl Relay {
    /// What follows once handler and key are known: the head is prepared, a member is chosen and asked, and its answer
    /// is handed back. `key` is empty where the handler has none.
    async fn relay(
        &self,
        handler: &table::Handler,
        key: &str,
        body: Body,
        exchange: &Rc<Exchange>,
    ) -> Result<Answer, Refusal> {
        let head = prepare(exchange, key);
        let members = &handler.pool.members;
        let answer = match handler.placement {
            Placement::Owned(_) => self.ask_owner(handler, key, head, body, exchange).await?,
            Placement::Hash(_) => {
                let choose =
                    |tried: Option<&Rc<Member>>| placement::hash(members, key, tried, clock::recent());
                self.ask_member(handler, choose, &head, body, exchange).await?
            }
            Placement::Spread => {
                let choose = |tried: Option<&Rc<Member>>| {
                    placement::spread(members, &mut rand::rng(), tried, clock::recent())
                };
                self.ask_member(handler, choose, &head, body, exchange).await?
            }
        };
        self.hand_back(answer, exchange)
    }

    /// Sends the request to the key's owner, and once more to the one that the seed names when the first denies it.
    async fn ask_owner(
        &self,
        handler: &table::Handler,
        key: &str,
        mut head: RequestHead,
        body: Body,
        exchange: &Rc<Exchange>,
    ) -> Result<Answer, Refusal> {
        let pool = &*handler.pool.name;
        self.hot_keys.borrow_mut().note(pool, key);
        let replay = Replay::new(body);
        for asked in 0..OWNERS_ASKED {
            let owner = self.link.locate(pool, key).await?;
            let body = replay.send().ok_or(Refusal::Moving)?;
            head.set(&PROTOPLEX_EPOCH, &owner.epoch.into());
            if asked > 0 {
                handler.meters.retries.increment(1);
            }
            match self.send(handler, &owner.member, owner.address, &head, body, exchange).await {
                Ok(answer) if denies_ownership(&answer) => {
                    handler.meters.misdirected.increment(1);
                    self.link.refute(pool, key, owner.epoch);
                }
                Ok(answer) => {
                    replay.settle();
                    let recalled = Rc::downgrade(exchange);
                    let moved = move || recalled.upgrade().into_iter().for_each(|exchange| exchange.recall());
                    exchange.hold(self.link.employ(pool, key, &owner, moved));
                    return Ok(answer);
                }
                Err(error) if is_unreachable(&error.kind) => {
                    self.link.refute(pool, key, owner.epoch);
                    return Err(Refusal::OwnerAway);
                }
                Err(error) => return Err(refusal(error.kind)),
            }
        }
        Err(Refusal::Moving)
    }

    /// Sends the request to a chosen member, and to another one where it could not be sent to the first.
    async fn ask_member<'t>(
        &self,
        handler: &'t table::Handler,
        choose: impl Fn(Option<&Rc<Member>>) -> Option<&'t Rc<Member>>,
        head: &RequestHead,
        mut body: Body,
        exchange: &Exchange,
    ) -> Result<Answer, Refusal> {
        let mut tried = None;
        loop {
            let Some(member) = choose(tried) else {
                return Err(match tried {
                    None => Refusal::NoMember(handler.pool.name.clone()),
                    Some(_) => Refusal::Unreachable,
                });
            };
            let outstanding = Outstanding::at(member);
            member.health.chosen(clock::recent());
            match self.send(handler, &member.id, member.address, head, body, exchange).await {
                Ok(answer) => {
                    if member.health.answered(clock::recent()) {
                        info!(member = &*member.id, "the member answers, and gets requests again");
                    }
                    exchange.hold(outstanding);
                    return Ok(answer);
                }
                Err(AskError { unsent: Some(unsent), kind, .. }) if tried.is_none() => {
                    note_failure(handler, member, &kind);
                    handler.meters.retries.increment(1);
                    tried = Some(member);
                    body = unsent;
                }
                Err(error) => {
                    note_failure(handler, member, &error.kind);
                    return Err(refusal(error.kind));
                }
            }
        }
    }

    /// One question to one member.
    async fn send(
        &self,
        handler: &table::Handler,
        member: &str,
        address: SocketAddr,
        head: &RequestHead,
        body: Body,
        exchange: &Exchange,
    ) -> Result<Answer, AskError> {
        exchange.note_upstream(member);
        let sent = clock::now();
        let answer = self.upstream.ask(address, head, body, Some(exchange)).await;
        match &answer {
            // The head of the answer has just been read.
            Ok(_) => handler.meters.upstream_took(clock::recent() - sent),
            Err(error) => {
                let request_id = &*exchange.request_id;
                warn!(member, %address, request_id, reason = %error.kind, "no answer from a member");
            }
        }
        answer
    }

    /// Prepares the answer's head for the client; its body streams by itself.
    fn hand_back(&self, mut answer: Answer, exchange: &Rc<Exchange>) -> Result<Answer, Refusal> {
        forwarded::answer_head(&mut answer.head);
        answer.head.remove(&PROTOPLEX_MISDIRECTED);
        match answer.head.status() {
            StatusCode::SWITCHING_PROTOCOLS if exchange.head.asks_upgrade() => {
                Ok(upgrade::relay_answer(exchange, answer, self.tunnel_idle_timeout.get()))
            }
            StatusCode::SWITCHING_PROTOCOLS => Err(Refusal::BadAnswer),
            _ => Ok(answer),
        }
    }
}

/// The handler of the request's host and path. It is matched by the very bytes that the member gets.
fn find<'t, 'r>(table: &'t Table, head: &'r RequestHead) -> Result<Matched<'t, 'r>, Refusal> {
    target::check(head.path())?;
    if table.version == 0 {
        return Err(Refusal::NoTable);
    }
    let host = table::host(head.host()).ok_or(Refusal::MalformedHost)?;
    let (handler, captures) = table.find(&host, head.path()).ok_or(Refusal::NoHandler)?;
    Ok(Matched { handler, captures, host })
}

/// The request's key, empty where the handler wants none, and its body, which may have been read for it.
async fn read_key(
    matched: Matched<'_, '_>,
    body: Body,
    exchange: &Exchange,
) -> Result<(String, Body), Refusal> {
    let head = &exchange.head;
    let placement = &matched.handler.placement;
    let template = match placement {
        Placement::Owned(template) | Placement::Hash(template) => template,
        Placement::Spread => return Ok((String::new(), body)),
    };
    let (form, body) = read_form(template, head, body).await?;
    let facts = Facts {
        host: &matched.host,
        path: head.path(),
        captures: &matched.captures,
        query: head.query().unwrap_or_default(),
        form: &form,
        headers: head.fields(),
        client_ip: exchange.client_ip(),
    };
    let key = key::key(template, &facts, placement.max_key_bytes())?;
    exchange.note_key(&key);
    Ok((key, body))
}

/// The form in the body where the key may come from there, and the body to be sent on.
async fn read_form(template: &KeyTemplate, head: &RequestHead, body: Body) -> Result<(Bytes, Body), Refusal> {
    let content_type =
        head.fields().get(&CONTENT_TYPE).and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !key::reads_form(template) || !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok((Bytes::new(), body));
    }
    let form = body.collect(MAX_FORM_BYTES).await?;
    Ok((form.clone(), Body::full(form)))
}

/// Makes of the client's head the one that a member gets.
fn prepare(exchange: &Exchange, key: &str) -> RequestHead {
    let mut head = forwarded::request_head(exchange);
    // A key is such that a header can carry it; that is what its own checks are for. One that is only hashed may be too
    // long for a member's own limits.
    if (1..=MAX_KEY_BYTES).contains(&key.len())
        && let Ok(value) = HeaderValue::from_bytes(key.as_bytes())
    {
        head.set(&PROTOPLEX_KEY, &value);
    }
    head
}

fn denies_ownership(answer: &Answer) -> bool {
    answer.head.status() == StatusCode::MISDIRECTED_REQUEST && answer.head.contains(&PROTOPLEX_MISDIRECTED)
}

/// A member that fails again and again is left out for a while.
fn note_failure(handler: &table::Handler, member: &Member, kind: &SendErrorKind) {
    if matches!(kind, SendErrorKind::RequestBody(_)) {
        // The client's fault.
        return;
    }
    if let Some(out) = health::failed(&handler.pool.members, member, clock::now()) {
        handler.meters.left_out.increment(1);
        let out_ms = out.as_millis() as u64;
        warn!(
            member = &*member.id,
            pool = &*handler.pool.name,
            out_ms,
            "the member fails, and gets no requests for a while"
        );
    }
}

fn is_unreachable(kind: &SendErrorKind) -> bool {
    matches!(kind, SendErrorKind::Connect { .. } | SendErrorKind::ConnectTimeout { .. })
}

fn refusal(kind: SendErrorKind) -> Refusal {
    match kind {
        SendErrorKind::Connect { .. } | SendErrorKind::ConnectTimeout { .. } => Refusal::Unreachable,
        SendErrorKind::Closed { .. } | SendErrorKind::Protocol { .. } => Refusal::BadAnswer,
        SendErrorKind::FirstByteTimeout { .. } => Refusal::TooSlow,
        SendErrorKind::RequestBody(error) => Refusal::Body(error),
    }
}

#[cfg(test)]
mod tests;
