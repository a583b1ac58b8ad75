//! The seed link for any language: HTTP and lines of JSON in place of gRPC, on the same port. `docs/registration.md` tells it to
//! its users.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /v1/members` | a member's link: lines of JSON, until it ends |
//! | `POST /v1/members/SESSION` | 204: what the member of that link has said is taken |
//! | `GET /v1/keys/POOL/KEY` | who owns the key, at which epoch |
//! | `POST /v1/keys/POOL/KEY` | the same; a key without an owner is given to one |
//!
//! No rule stands here: what comes is turned into the messages of [`crate::link`], and takes their way.

mod bodies;
mod message;
mod problem;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use protoplex_wire::gate::{Origin, pass_over};
use protoplex_wire::identity::{Kind, Peer};
use protoplex_wire::pattern::check_name;
use protoplex_wire::proto::follow_reply::Message as Told;
use protoplex_wire::proto::{FollowHello, FollowReply, Locate, follow_request, located};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use self::bodies::Bodies;
use self::message::{Asked, Registration, owned, said};
use self::problem::Problem;
use self::session::{Lines, Sessions, say_all};
use crate::cluster::Handle;
use crate::link::{Links, is_key};

/// A registration, with all the keys that it reports: some 150,000. Whoever has more speaks gRPC.
const MAX_REGISTRATION_BYTES: usize = 8 << 20;
/// What a member may say at once: as by gRPC.
const MAX_SAID_BYTES: usize = 2 << 20;
/// A question.
const MAX_QUESTION_BYTES: usize = 64 << 10;
/// How long the seed may take to welcome a member, its row in the datastore included, or to find an owner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for the cluster's task.
const MAX_WAITING_SAID: usize = 64;
/// The type of an answer that goes on, a JSON object a line.
const NDJSON: &str = "application/x-ndjson";

struct Outside {
    links: Arc<Links>,
    cluster: Handle,
    sessions: Sessions,
    bodies: Bodies,
}

/// The routes, to be served beside gRPC, behind its gate.
pub(crate) fn router(links: Arc<Links>, cluster: Handle) -> Router {
    let outside = Outside { links, cluster, sessions: Sessions::default(), bodies: Bodies::default() };
    Router::new()
        .route("/v1/members", post(register))
        .route("/v1/members/{session}", post(take_in))
        .route("/v1/keys/{pool}/{*key}", get(owner).post(locate))
        .route("/v1/{*path}", any(unknown))
        .method_not_allowed_fallback(not_allowed)
        .with_state(Arc::new(outside))
}

// ---- members ----

async fn register(
    State(outside): State<Arc<Outside>>,
    Extension(peer): Extension<Peer>,
    Extension(origin): Extension<Origin>,
    uri: Uri,
    request: Request,
) -> Response {
    match begin(&outside, peer, origin, request).await {
        Ok(lines) => {
            let kind = [(header::CONTENT_TYPE, NDJSON), (header::CACHE_CONTROL, "no-store")];
            (kind, Body::from_stream(lines)).into_response()
        }
        Err(problem) => problem.at(&uri).into_response(),
    }
}

/// Opens a link for the member that is registered, and answers when it is welcomed.
async fn begin(outside: &Outside, peer: Peer, origin: Origin, request: Request) -> Result<Lines, Problem> {
    let body = outside.bodies.read(&peer.name(), request, MAX_REGISTRATION_BYTES).await?;
    let registration = Registration::read(&body).map_err(Problem::malformed)?;
    let (say, heard) = mpsc::channel(MAX_WAITING_SAID);
    let (member, opening) = registration.opening(&peer);
    let name = peer.name();
    let mut told = outside.links.open(peer, origin, session::requests(heard))?;
    say_all(&say, opening).await;
    let welcome = answered(&mut told, |message| match message {
        Told::Welcome(welcome) => Some(welcome),
        _ => None,
    });
    let welcome = welcome.await?;
    let session = outside.sessions.open(name, say);
    let first = message::welcome(session.id(), &member, &welcome);
    Ok(Lines::new(first, told, session))
}

/// The first message that is what was waited for; or why there is none.
async fn answered<T>(
    told: &mut mpsc::Receiver<Result<FollowReply, Status>>,
    wanted: impl Fn(Told) -> Option<T>,
) -> Result<T, Problem> {
    let answer = async {
        while let Some(reply) = told.recv().await {
            if let Some(found) = reply?.message.and_then(&wanted) {
                return Ok(found);
            }
        }
        Err(Status::unavailable("the seed is ending"))
    };
    let silent = |_| Status::unavailable("the seed did not answer in time");
    timeout(ANSWER_TIMEOUT, answer).await.map_err(silent).flatten().map_err(Problem::from)
}

async fn take_in(
    State(outside): State<Arc<Outside>>,
    Extension(peer): Extension<Peer>,
    Path(session): Path<String>,
    uri: Uri,
    request: Request,
) -> Response {
    let taken = async {
        let name = peer.name();
        let body = outside.bodies.read(&name, request, MAX_SAID_BYTES).await?;
        // First: that a link has ended is the more useful answer.
        let say = outside.sessions.find(&name, &session).ok_or_else(Problem::no_session)?;
        let messages = said(&body).map_err(Problem::malformed)?;
        if say_all(&say, messages).await { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::no_session()) }
    };
    taken.await.map_err(|problem: Problem| problem.at(&uri)).into_response()
}

// ---- keys ----

type Named = Result<Path<(String, String)>, PathRejection>;

async fn owner(
    State(outside): State<Arc<Outside>>,
    Extension(peer): Extension<Peer>,
    named: Named,
    uri: Uri,
) -> Response {
    let found = async {
        outside.links.leading()?;
        let (pool, key) = checked(&peer, named, &uri)?;
        let explained = {
            let (pool, key) = (pool.clone(), key.clone());
            outside.cluster.ask(move |cluster, _| cluster.core.explain(&pool, &key, "")).await
        };
        let explained = explained.ok_or_else(|| Status::unavailable("the seed is ending"))?;
        match explained.owner {
            Some(owner) => Ok(Json(owned(&pool, &key, &owner))),
            None if explained.recovering => {
                Err(Status::unavailable("the seed waits for members of this pool to say what they own")
                    .into())
            }
            None => Err(Problem::new(StatusCode::NOT_FOUND, format!("nobody owns {key:?} in pool {pool}"))),
        }
    };
    found.await.map_err(|problem: Problem| problem.at(&uri)).into_response()
}

async fn locate(
    State(outside): State<Arc<Outside>>,
    Extension(peer): Extension<Peer>,
    named: Named,
    uri: Uri,
    request: Request,
) -> Response {
    let found = async {
        let (pool, key) = checked(&peer, named, &uri)?;
        let body = outside.bodies.read(&peer.name(), request, MAX_QUESTION_BYTES).await?;
        let Asked { zone, refuted_epoch } = Asked::read(&body).map_err(Problem::malformed)?;
        let (say, heard) = mpsc::channel(MAX_WAITING_SAID);
        // A follower of its own, for as long as its one question takes.
        let (node, kind) = (peer.node.clone(), Kind::Backend.name().to_owned());
        let hello = FollowHello { node, kind, zone, ..FollowHello::default() };
        let question = Locate { id: 1, pool: pool.clone(), key: key.clone(), refuted_epoch };
        let mut told = outside.links.open(peer, Origin::default(), session::requests(heard))?;
        say_all(&say, vec![follow_request::Message::Hello(hello), follow_request::Message::Locate(question)])
            .await;
        let result = answered(&mut told, |message| match message {
            Told::Located(located) => located.result,
            _ => None,
        });
        match result.await? {
            located::Result::Owner(owner) => Ok(Json(owned(&pool, &key, &owner))),
            located::Result::Unavailable(why) => {
                let wait = Duration::from_millis(why.retry_after_ms.into());
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why.reason).retry_after(wait))
            }
        }
    };
    found.await.map_err(|problem: Problem| problem.at(&uri)).into_response()
}

/// Pool and key of the path, percent-decoded, where whoever asks may know of them.
fn checked(peer: &Peer, named: Named, uri: &Uri) -> Result<(String, String), Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    if !is_encoded(uri.path()) {
        return Err(bad(format!(
            "{} has a % without two hexadecimal digits; one of the key's own is %25",
            uri.path()
        )));
    }
    let Path((pool, key)) = named.map_err(|rejection| bad(rejection.body_text()))?;
    check_name("pool", &pool).map_err(|error| bad(error.to_string()))?;
    if !is_key(&key) {
        return Err(bad(format!("a key has 1 to {} bytes", protoplex_wire::follow::MAX_KEY_BYTES)));
    }
    peer.check_pool(&pool).map_err(|why| Problem::new(StatusCode::FORBIDDEN, why))?;
    Ok((pool, key))
}

/// Whether each % begins a percent-encoded byte (RFC 3986 section 2.1): what is decoded is not taken for something else.
fn is_encoded(path: &str) -> bool {
    let begins =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit));
    path.split('%').skip(1).all(begins)
}

// ---- what else comes ----

async fn unknown(uri: Uri, request: Request) -> Response {
    pass_over(request.into_body()).await;
    let detail = format!(
        "there is nothing at {}: POST /v1/members, POST /v1/members/SESSION, GET or POST /v1/keys/POOL/KEY",
        uri.path()
    );
    Problem::new(StatusCode::NOT_FOUND, detail).into_response()
}

async fn not_allowed(method: Method, uri: Uri, request: Request) -> Response {
    pass_over(request.into_body()).await;
    let detail = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).into_response()
}
