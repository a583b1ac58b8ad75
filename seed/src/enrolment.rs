//! Who gets a certificate, and who is refused although it has one.
//!
//! A join token is taken by the seed that leads alone, which knows who is there. A certificate is renewed by any seed, for
//! the name and the key of the one that is shown, so that it needs neither the datastore nor a leader.

mod complaints;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Extension, Router};
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::gate::Gate;
use protoplex_wire::identity::{
    Certificate, Identity, IdentityError, Kind, LOCAL_OPERATOR, Peer, is_public_key,
};
use protoplex_wire::join_token::{JoinToken, key_sha256, parse_presented};
use protoplex_wire::pattern::check_name;
use protoplex_wire::proto::enrolment_server::Enrolment;
use protoplex_wire::proto::{
    ChangeRevocationReply, CreateJoinTokenReply, CreateJoinTokenRequest, Credentials, EnrolRequest,
    JoinRefusal, ListRevocationsRequest, RedeemJoinTokenReply, RedeemJoinTokenRequest, RenewRequest,
    Revocation,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use self::complaints::Complaints;
use crate::cluster::Handle;
use crate::datastores::{Datastores, call, limited};
use crate::leader::led;
use crate::role::Role;

/// How often it is looked who is revoked.
const REVOKED_INTERVAL: Duration = Duration::from_secs(1);
const PEM_CHAIN: &str = "application/pem-certificate-chain";
/// What the names of operators begin with ([`Peer::name`]).
const OPERATORS: &str = "operator/";
/// Longest life of a join token.
const MAX_TOKEN_LIFE_S: u32 = 366 * 24 * 3600;

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct Registrar {
    identity: Identity,
    /// The name of this seed.
    node: String,
    cluster: Handle,
    datastores: Arc<Datastores>,
    role: watch::Receiver<Role>,
    gate: Gate,
    complaints: Arc<Complaints>,
}

impl Registrar {
    pub(crate) fn new(
        identity: &Identity,
        node: &str,
        cluster: Handle,
        datastores: Arc<Datastores>,
        role: watch::Receiver<Role>,
        gate: Gate,
    ) -> Self {
        Self {
            identity: identity.clone(),
            node: node.to_owned(),
            cluster,
            datastores,
            role,
            gate,
            complaints: Arc::default(),
        }
    }

    /// Keeps the gate up to date with the datastore. Never ends.
    pub(crate) async fn watch_revoked(self) {
        loop {
            // Where the datastore can't say, those that are known stay revoked.
            if let Err(status) = self.look().await {
                tracing::debug!(reason = status.message(), "who is revoked is not known anew");
            }
            sleep(REVOKED_INTERVAL).await;
        }
    }

    async fn look(&self) -> Result<(), Status> {
        let mut datastore = self.datastores.client();
        let listed = call(datastore.list_revocations(limited(ListRevocationsRequest {}))).await?;
        let names = listed.revocations.into_iter().map(|revocation| revocation.name);
        self.gate.revoke(names.collect::<BTreeSet<_>>());
        Ok(())
    }

    /// Revokes a name, or readmits it, for this caller: from when this returns on this seed goes by it, the others within
    /// a second. Only of the seed that leads, whose term stands in it.
    pub(crate) async fn change_revocation(
        &self,
        wanted: Revocation,
        caller: &Peer,
    ) -> Result<ChangeRevocationReply, Status> {
        if wanted.revoked {
            check_revocable(&wanted.name, &self.node, caller)?;
        }
        let (name, revoked, who) = (wanted.name.clone(), wanted.revoked, wanted.operator.clone());
        // Then it is still here.
        let here = self.is_here(&name).await?;
        if wanted.only_known && !here && self.known_as(&name).await.is_none() {
            return Err(Status::not_found(format!(
                "nobody of the name {name:?} has been here since this seed leads: nothing was changed"
            )));
        }
        let mut datastore = self.datastores.client();
        led(&self.cluster, datastore.change_revocation(limited(wanted))).await?;
        tracing::warn!(name, revoked, operator = who, "who may be in the cluster has changed");
        self.look().await?;
        Ok(ChangeRevocationReply { here })
    }

    /// Makes a join token, of which the datastore keeps a digest. Only of the seed that leads, in this term.
    pub(crate) async fn create_token(
        &self,
        wanted: CreateJoinTokenRequest,
        term: u64,
    ) -> Result<CreateJoinTokenReply, Status> {
        let CreateJoinTokenRequest { kind, pools, uses, life_s, operator } = wanted;
        if !(1..=MAX_TOKEN_LIFE_S).contains(&life_s) {
            return Err(Status::invalid_argument(format!(
                "a join token lives for 1 s to {MAX_TOKEN_LIFE_S} s, a year"
            )));
        }
        if !self.identity.has_authority() {
            return Err(no_authority());
        }
        let token = JoinToken::draw(self.identity.fingerprint());
        let expires_at_ms = unix_ms_now().saturating_add(i64::from(life_s) * 1000);
        let kept = protoplex_wire::proto::JoinToken {
            id: token.id().to_owned(),
            secret_sha256: token.secret_sha256().to_vec(),
            kind,
            pools,
            uses,
            expires_at_ms,
            created_by: operator,
            term,
            ..Default::default()
        };
        tracing::info!(id = kept.id, kind = kept.kind, operator = kept.created_by, "a join token is made");
        led(&self.cluster, self.datastores.client().put_join_token(limited(kept))).await?;
        Ok(CreateJoinTokenReply { token: token.to_string(), id: token.id().to_owned(), expires_at_ms })
    }

    /// Whether a node or a server of this name is here.
    async fn is_here(&self, node: &str) -> Result<bool, Status> {
        let wanted = node.to_owned();
        let here = self.cluster.ask(move |cluster, _| cluster.has_node(&wanted)).await;
        here.ok_or_else(|| Status::unavailable("the seed is ending"))
    }

    /// As what a name is known, be its owner here or away.
    async fn known_as(&self, node: &str) -> Option<Kind> {
        let name = node.to_owned();
        self.cluster.ask(move |cluster, _| cluster.nodes.known_as(&name)).await.flatten()
    }

    /// Refuses a name that somebody who is here has, or that is known as that of another kind.
    async fn check_free(&self, node: &str, kind: Kind) -> Result<(), Status> {
        if self.is_here(node).await? {
            return Err(Status::already_exists(format!(
                "the name {node:?} is taken by one that is here: give this one another name, or drain that one first"
            )));
        }
        match self.known_as(node).await {
            Some(known_as) if known_as != kind && kind != Kind::Operator => {
                Err(of_another_kind(node, known_as.one()))
            }
            _ => Ok(()),
        }
    }

    /// Takes a use of a token, or looks at it alone; an error where it opens nothing.
    async fn redeem(&self, request: RedeemJoinTokenRequest) -> Result<RedeemJoinTokenReply, Status> {
        let RedeemJoinTokenRequest { id, kind, node, .. } = request.clone();
        let mut datastore = self.datastores.client();
        let redeemed = led(&self.cluster, datastore.redeem_join_token(limited(request))).await?;
        let Some(refusal) = refusal(&id, &kind, &node, &redeemed) else { return Ok(redeemed) };
        if let Some(untold) = self.complaints.tell(Instant::now()) {
            tracing::warn!(id, node, kind, reason = refusal.message(), untold, "a join token was refused");
        }
        Err(refusal)
    }

    fn sign(&self, peer: &Peer, public_key: &[u8]) -> Result<Credentials, Status> {
        issued(self.identity.sign(peer, public_key, None))
    }

    /// The next certificate of whoever shows this one.
    fn renewed(&self, shown: &Certificate) -> Result<Credentials, Status> {
        issued(self.identity.sign_next(shown))
    }
}

fn issued(signed: Option<Result<Credentials, IdentityError>>) -> Result<Credentials, Status> {
    signed.ok_or_else(no_authority)?.map_err(|error| Status::internal(error.to_string()))
}

fn no_authority() -> Status {
    Status::failed_precondition("this seed has no ca.key: have it join with a token for a seed")
}

/// `POST /v1/certificate` for who speaks plain HTTP: a new certificate for the name and the key of the one that is shown, as
/// PEM with the authority's behind it (RFC 8555 section 9.1).
pub(crate) fn over_http(registrar: Registrar) -> Router {
    let renew = async |State(registrar): State<Registrar>, Extension(shown): Extension<Arc<Certificate>>| {
        match registrar.renewed(&shown) {
            Ok(issued) => ([(CONTENT_TYPE, PEM_CHAIN)], issued.certificate).into_response(),
            Err(status) => (StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()).into_response(),
        }
    };
    Router::new().route("/v1/certificate", post(renew)).with_state(registrar)
}

#[tonic::async_trait]
impl Enrolment for Registrar {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Credentials>, Status> {
        let term = self.role.borrow().term()?;
        let EnrolRequest { token, kind, node, public_key } = request.into_inner();
        check_name("node", &node).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let kind: Kind = kind.parse().map_err(Status::invalid_argument)?;
        if !is_public_key(&public_key) {
            return Err(Status::invalid_argument("the public key is no uncompressed point of P-256"));
        }
        let (id, digest) =
            parse_presented(&token).ok_or_else(|| Status::unauthenticated("this is no join token"))?;
        if kind == Kind::Operator && node == LOCAL_OPERATOR {
            return Err(Status::invalid_argument(IdentityError::Local.to_string()));
        }
        // An operator's name and a node's are two.
        let subject = if kind == Kind::Operator { format!("{kind}/{node}") } else { node.clone() };
        let redeem = RedeemJoinTokenRequest {
            id: id.to_owned(),
            secret_sha256: digest.to_vec(),
            kind: kind.name().to_owned(),
            node: subject.clone(),
            key_sha256: key_sha256(&public_key).to_vec(),
            term,
            peek: true,
        };
        // Whoever has no token that counts learns nothing of names.
        self.redeem(redeem.clone()).await?;
        self.check_free(&node, kind).await?;
        if self.gate.is_revoked(&subject) {
            return Err(Status::permission_denied(format!(
                "{subject} is revoked; an operator may readmit it"
            )));
        }
        let redeemed = self.redeem(RedeemJoinTokenRequest { peek: false, ..redeem }).await?;
        let kind: Kind = redeemed.kind.parse().map_err(Status::internal)?;
        let peer = Peer { cluster: self.identity.cluster(), kind, node, pools: redeemed.pools };
        let issued = self.sign(&peer, &public_key)?;
        tracing::info!(id, name = peer.name(), kind = peer.kind.name(), "enrolled with a join token");
        Ok(Response::new(issued))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Credentials>, Status> {
        let shown = request.extensions().get::<Arc<Certificate>>();
        let shown =
            shown.ok_or_else(|| Status::unauthenticated("no certificate of this cluster was shown"))?;
        let issued = self.renewed(shown)?;
        tracing::debug!(name = shown.peer.name(), "a certificate is renewed");
        // Its owner has them.
        let known = Credentials {
            secret: String::new(),
            live_key: String::new(),
            authority_key: String::new(),
            ..issued
        };
        Ok(Response::new(known))
    }
}

/// Refuses to revoke what is no name, and whom nobody could readmit: without the seed that leads there is no cluster, and without an operator
/// nobody who commands.
fn check_revocable(name: &str, leader: &str, caller: &Peer) -> Result<(), Status> {
    let own = name.strip_prefix(OPERATORS).unwrap_or(name);
    check_name("name", own).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let why = if name == leader {
        format!("{name} is the seed that leads: hand over to another one first (protoplex drain {name})")
    } else if name.strip_prefix(OPERATORS) == Some(LOCAL_OPERATOR) {
        format!("{name} is whoever has cluster/ca.key, and could be anybody: take that key from them instead")
    } else if name == caller.name() {
        format!("{name} is your own name: another operator may revoke it")
    } else {
        return Ok(());
    };
    Err(Status::failed_precondition(format!("{why}. Nothing was changed")))
}

/// One of this kind, in a sentence.
fn one(kind: &str) -> String {
    kind.parse::<Kind>().map_or_else(|_| format!("a {kind:?}"), |kind| kind.one().to_owned())
}

/// Names stay of their kind while those who have them are away: they would find themselves kept out.
fn of_another_kind(node: &str, one: &str) -> Status {
    Status::already_exists(format!("the name {node:?} is that of {one}: give this one another name"))
}

/// What whoever has come with a token is told, where it opens nothing.
fn refusal(id: &str, wanted: &str, node: &str, redeemed: &RedeemJoinTokenReply) -> Option<Status> {
    let another = "ask for another one (`protoplex join-token create`)";
    match redeemed.refusal() {
        JoinRefusal::None => None,
        JoinRefusal::Unknown => Some(Status::unauthenticated(format!(
            "the join token {id} is unknown here, or its secret is wrong: {another}"
        ))),
        JoinRefusal::Revoked => {
            Some(Status::unauthenticated(format!("the join token {id} was revoked: {another}")))
        }
        JoinRefusal::Expired => {
            let ago_s = (unix_ms_now() - redeemed.expires_at_ms).max(0) / 1000;
            Some(Status::unauthenticated(format!("the join token {id} has expired {ago_s} s ago: {another}")))
        }
        JoinRefusal::WrongKind => Some(Status::permission_denied(format!(
            "the join token {id} is for {}, not for {}",
            one(&redeemed.kind),
            one(wanted)
        ))),
        JoinRefusal::OtherKind => Some(of_another_kind(node, &one(&redeemed.known_as))),
        JoinRefusal::UsedUp => Some(Status::unauthenticated(format!(
            "the join token {id} is used up: it was for {}; {another}",
            match redeemed.uses {
                1 => "one name".to_owned(),
                many => format!("{many} names"),
            }
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_revokes_whom_nobody_could_readmit() {
        let ada =
            Peer { cluster: "c".to_owned(), kind: Kind::Operator, node: "ada".to_owned(), pools: Vec::new() };
        for (name, why) in [
            ("seed-1", Some("hand over to another one first (protoplex drain seed-1). Nothing was changed")),
            ("operator/local", Some("whoever has cluster/ca.key")),
            ("operator/ada", Some("your own name")),
            ("seed-2", None),
            ("ada", None),
            ("local", None),
            ("operator/eve", None),
            ("no name", Some("use 1 to")),
            ("operator/", Some("use 1 to")),
            ("proxy/1", Some("use 1 to")),
        ] {
            let refused = check_revocable(name, "seed-1", &ada).err();
            let told = refused.as_ref().map(Status::message);
            assert!(told.is_some() == why.is_some(), "{name}: {told:?}");
            assert!(told.unwrap_or_default().contains(why.unwrap_or_default()), "{name}: {told:?}");
        }
    }
}
