//! A request's way through a live node, step by step.

use std::rc::Rc;
use std::time::SystemTime;

use futures_util::future::try_join_all;
use futures_util::stream::unfold;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use http::request::Parts;
use http::{Method, StatusCode};
use metrics::counter;
use protoplex_http::{Body, Exchange, Handler, Request, Response, upgrade};
use protoplex_wire::follow::Link;
use protoplex_wire::holder::Fence;
use protoplex_wire::identity::Identity;
use tokio::time::Instant;

use crate::channel::Since;
use crate::config::Config;
use crate::cors;
use crate::elsewhere::Elsewhere;
use crate::mercure::{Credential, EARLIEST, LAST_EVENT_ID, PATH, Publish, Subscribe};
use crate::merged::{Follower, Merged, since_each};
use crate::refusal::Refusal;
use crate::registrants::{PROTOCOL, Registrants};
use crate::subscription::{Pace, Seats, Subscription};
use crate::tenure::{Tenures, Use};
use crate::token::{Grant, Nodes, Verifier};
use crate::{PROTOPLEX_EPOCH, PROTOPLEX_KEY};

/// Where registrants connect.
const REGISTRATIONS_PATH: &str = "/.well-known/protoplex/registrations";
/// Where an invalidation is posted.
const INVALIDATE_PATH: &str = "/.well-known/protoplex/invalidate";

/// Serves the requests of one child.
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) link: Link,
    pub(crate) tenures: Tenures,
    verifier: Verifier,
    nodes: Nodes,
    elsewhere: Elsewhere,
    seats: Seats,
    registrants: Rc<Registrants>,
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Preflight { methods: &'static str },
    Subscribe { head_only: bool },
    Publish,
    Register,
    Invalidate,
}

/// What its token lets it do.
struct Caller {
    credential: Credential,
    grant: Grant,
}

impl Handler for Live {
    async fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> Response {
        let origin = request.headers().get(ORIGIN).cloned();
        let mut response = self.answer(request, exchange).await.unwrap_or_else(Refusal::into_response);
        cors::allow(&self.config, origin.as_ref(), response.headers_mut());
        response
    }
}

impl Live {
    /// The identity has the keys of the tokens.
    pub(crate) fn new(config: Config, link: Link, identity: &Identity) -> Self {
        Self {
            tenures: Tenures::new(config.max_channels),
            verifier: Verifier::new(identity.live_key()),
            nodes: Nodes::new(&identity.node_key()),
            elsewhere: Elsewhere::new(link.clone(), &config),
            seats: Seats::new(config.max_subscribers),
            registrants: Rc::default(),
            link,
            config,
        }
    }

    /// The steps.
    async fn answer(&self, request: Request, exchange: &Rc<Exchange>) -> Result<Response, Refusal> {
        let tenure = self.fence(request.headers(), exchange).await?;
        let action = route(request.method(), request.uri().path())?;
        let caller = match action {
            Action::Register | Action::Invalidate => {
                self.authenticate_node(request.headers())?;
                None
            }
            _ => self.authenticate(&request)?,
        };
        match action {
            Action::Preflight { methods } => Ok(cors::preflight(methods)),
            Action::Subscribe { head_only } => {
                let (head, _) = request.into_parts();
                self.subscribe(tenure, &head, caller, head_only).await
            }
            Action::Publish => self.publish(tenure, request, caller).await,
            Action::Register => self.register(tenure, exchange),
            Action::Invalidate => self.invalidate(&request).await,
        }
    }

    /// Only who owns the key at the request's epoch serves it. Keeps the key from being idle while it does.
    async fn fence(&self, headers: &HeaderMap, exchange: &Exchange) -> Result<Use, Refusal> {
        let text = |name: &HeaderName| {
            headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
        };
        let key = text(&PROTOPLEX_KEY).ok_or(Refusal::Unrouted)?;
        let epoch = text(&PROTOPLEX_EPOCH).and_then(|epoch| epoch.parse().ok()).ok_or(Refusal::Unrouted)?;
        exchange.note_key(key);
        if !self.link.admit(key, epoch).await {
            counter!("protoplex_live_misdirected_total").increment(1);
            return Err(Refusal::Misdirected);
        }
        let tenure =
            self.tenures.hold(key, epoch, || self.config.retention(key)).ok_or(Refusal::Busy("channels"))?;
        Ok(tenure.employ())
    }

    /// A token need not be there, but one that is there must hold.
    fn authenticate(&self, request: &Request) -> Result<Option<Caller>, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let Some(credential) = Credential::of(query, request.headers()) else { return Ok(None) };
        let grant = self.verifier.verify(&credential.token).map_err(Refusal::Token)?;
        Ok(Some(Caller { credential, grant }))
    }

    /// What caches hold is a matter between nodes, whatever an app's own tokens allow: a false word here would empty
    /// caches, or keep an invalidation waiting.
    fn authenticate_node(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let credential = Credential::of("", headers).filter(|credential| !credential.from_cookie);
        self.nodes.verify(&credential.ok_or(Refusal::NotANode)?.token).map_err(Refusal::Token)
    }

    async fn subscribe(
        &self,
        tenure: Use,
        head: &Parts,
        caller: Option<Caller>,
        head_only: bool,
    ) -> Result<Response, Refusal> {
        let asked = Subscribe::parse(head.uri.query().unwrap_or_default(), &head.headers)?;
        let topic = &asked.topics[0];
        if *topic != *tenure.key {
            return Err(Refusal::OtherTopic { key: tenure.key.to_string(), topic: topic.clone() });
        }
        let grant = caller.as_ref().map(|caller| &caller.grant);
        if !self.config.anonymous {
            let grant = grant.ok_or(Refusal::NoToken)?;
            covered(&asked.topics, "subscribe", |topic| grant.may_subscribe(topic))?;
        }
        let seat = self.seats.take().ok_or(Refusal::Busy("subscribers"))?;
        let private = grant.is_some_and(|grant| grant.may_subscribe(topic));
        let expires = grant.and_then(|grant| grant.expires_at).and_then(instant_of);
        let pace = Pace { heartbeat: self.config.heartbeat, expires };

        let since = since_each(&asked.since, asked.topics.len());
        let (start, position) = tenure.start(&since[0]);
        let others = self.follow_others(&asked.topics[1..], &since[1..], caller.as_ref()).await?;
        let complete = start.complete && others.iter().all(|(_, complete)| *complete);

        let first = Subscription::new(tenure, seat, start.position, &position, private, pace);
        let body = if head_only {
            Body::empty()
        } else if others.is_empty() {
            Body::stream(unfold(first, async |mut stream| {
                stream.next().await.map(|frame| (Ok(frame), stream))
            }))
        } else {
            let merged = Merged::new(first, position, others.into_iter().map(|(other, _)| other).collect());
            Body::stream(unfold(merged, async |mut stream| {
                stream.next().await.map(|frame| (Ok(frame), stream))
            }))
        };
        Ok(event_stream(body, &asked.since, complete))
    }

    /// Begins to follow the topics that have other owners. Fails with the first that can't be followed.
    async fn follow_others(
        &self,
        topics: &[String],
        since: &[Since],
        caller: Option<&Caller>,
    ) -> Result<Vec<(Follower, bool)>, Refusal> {
        let token = caller.map(|caller| &caller.credential.token);
        try_join_all(topics.iter().zip(since).map(async |(topic, since)| {
            let followed = self.elsewhere.follow(topic, since, token.map(String::as_str)).await;
            let followed = followed.map_err(|error| Refusal::Elsewhere { topic: topic.clone(), error })?;
            let follower = Follower {
                elsewhere: self.elsewhere.clone(),
                topic: topic.clone(),
                token: token.cloned(),
                stream: Some(followed.stream),
                position: followed.position,
            };
            Ok((follower, followed.complete))
        }))
        .await
    }

    async fn publish(
        &self,
        tenure: Use,
        request: Request,
        caller: Option<Caller>,
    ) -> Result<Response, Refusal> {
        let Caller { credential, grant } = caller.ok_or(Refusal::NoToken)?;
        let (head, body) = request.into_parts();
        if credential.from_cookie && !cors::may_use_cookie(&self.config, &head.headers) {
            return Err(Refusal::ForeignOrigin);
        }
        if !is_form(&head.headers) {
            return Err(Refusal::NotAForm);
        }
        let form = body.collect(self.config.max_update_bytes as u64).await.map_err(Refusal::Body)?;
        let Publish { topics, mut update } = Publish::parse(head.uri.query().unwrap_or_default(), &form)?;
        covered(&topics, "publish", |topic| grant.may_publish(topic))?;
        if !topics.iter().any(|topic| **topic == *tenure.key) {
            return Err(Refusal::OtherTopic { key: tenure.key.to_string(), topic: topics[0].clone() });
        }
        if topics.len() > 1 && update.id.is_none() {
            // One update, one id: who follows several of its topics knows it again.
            update.id = Some(random_urn());
        }
        for topic in topics.iter().filter(|topic| ***topic != *tenure.key) {
            let published = self.elsewhere.publish(topic, &update, &credential.token).await;
            published.map_err(|error| Refusal::Elsewhere { topic: topic.clone(), error })?;
        }
        // Time has passed since the fence; from here on none does.
        if tenure.end().is_some() || self.link.check(&tenure.key, tenure.epoch) != Fence::Owned {
            return Err(Refusal::Misdirected);
        }
        let id = tenure.publish(update);
        counter!("protoplex_live_published_total").increment(1);
        let mut response = Response::new(Body::full(id));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Ok(response)
    }

    fn register(&self, shard: Use, exchange: &Rc<Exchange>) -> Result<Response, Refusal> {
        if !self.registrants.has_room() {
            return Err(Refusal::Busy("registrants"));
        }
        let registrants = Rc::clone(&self.registrants);
        let attend = move |connection| async move { registrants.attend(shard, connection).await };
        Ok(upgrade::accept(exchange, PROTOCOL, attend))
    }

    async fn invalidate(&self, request: &Request) -> Result<Response, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let (_, name) = form_urlencoded::parse(query.as_bytes())
            .find(|(field, _)| field == "name")
            .ok_or(Refusal::NoName)?;
        let outcome = self.registrants.invalidate(&name).await;
        let text =
            serde_json::json!({ "registrants": outcome.registrants, "acked": outcome.acked }).to_string();
        let mut response = Response::new(Body::full(text));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

/// Path and method → action.
fn route(method: &Method, path: &str) -> Result<Action, Refusal> {
    let (methods, actions): (_, &[(Method, Action)]) = match path {
        PATH => (
            "GET, HEAD, POST, OPTIONS",
            &[
                (Method::GET, Action::Subscribe { head_only: false }),
                (Method::HEAD, Action::Subscribe { head_only: true }),
                (Method::POST, Action::Publish),
                (Method::OPTIONS, Action::Preflight { methods: "GET, HEAD, POST, OPTIONS" }),
            ],
        ),
        REGISTRATIONS_PATH => ("GET", &[(Method::GET, Action::Register)]),
        INVALIDATE_PATH => ("POST", &[(Method::POST, Action::Invalidate)]),
        _ => return Err(Refusal::NotFound),
    };
    let found = actions.iter().find(|(known, _)| known == method);
    found.map(|(_, action)| *action).ok_or(Refusal::Method { allow: methods })
}

fn covered(topics: &[String], claim: &'static str, covers: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    match topics.iter().find(|topic| !covers(topic)) {
        Some(topic) => Err(Refusal::NotCovered { claim, topic: topic.clone() }),
        None => Ok(()),
    }
}

/// Who asked for a place is told where the stream starts: there, or at the earliest event that there is.
fn event_stream(body: Body, since: &Since, complete: bool) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    let start = match since {
        Since::Now => None,
        Since::Event(id) if complete => HeaderValue::from_bytes(id.as_bytes()).ok(),
        Since::Event(_) | Since::Earliest => Some(HeaderValue::from_static(EARLIEST)),
    };
    headers.extend(start.map(|id| (LAST_EVENT_ID, id)));
    response
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// None: so far away that it does not matter.
fn instant_of(time: SystemTime) -> Option<Instant> {
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now().checked_add(left)
}

/// A random UUID as a URN (RFC 9562, version 4).
fn random_urn() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
