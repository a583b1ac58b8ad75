//! The service of an operator's tools: handlers, deployments, explanations, the state of the cluster.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::gate::caller;
use protoplex_wire::identity::{LOCAL_OPERATOR, Peer};
use protoplex_wire::pattern::HostPattern;
use protoplex_wire::proto::operator_server::Operator;
use protoplex_wire::proto::{
    Build, ChangeHandlersRequest, ChangeRevocationReply, ClusterStatus, CreateJoinTokenReply,
    CreateJoinTokenRequest, DeployRequest, ExplainRequest, Explanation, Handler, HandlerChanges,
    HandlerHistoryReply, HandlerHistoryRequest, HandlerList, HandlersAtReply, HandlersAtRequest,
    HandlersChanged, HotKeyList, JoinTokenList, ListHandlersRequest, ListHotKeysRequest,
    ListJoinTokensRequest, ListRevocationsRequest, PutBuildRequest, Revocation, RevocationList,
    RevokeJoinTokenReply, RevokeJoinTokenRequest, StatusRequest, deploy_request, put_build_request,
};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::cluster::{Cluster, Handle};
use crate::datastores::{Datastores, call, limited};
use crate::enrolment::Registrar;
use crate::handlers::{self, HandlerError, Plan};
use crate::leader::{fenced, led, load};
use crate::role::Role;

/// How long a client of a deployment may keep the next asset waiting.
const ASSET_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a change waits for this seed to lead, or to know who does.
const LEADING_TIMEOUT: Duration = Duration::from_secs(3);
/// Assets between the client and the datastore.
const MAX_WAITING_ASSETS: usize = 2;
/// How long a change of handlers may take: thousands of them at once are more than other calls.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// What somebody says of themselves, as far as it is told. History takes 255 bytes.
const MAX_CLAIM_BYTES: usize = 200;
/// How long what was stored is read back, again and again: with the change less than a command waits.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(4);
const RELOAD_PAUSE: Duration = Duration::from_millis(250);
/// When it is looked what has become of a change whose outcome was lost: at once, and when it has had its time.
const SETTLE_PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// Clones share all of it.
#[derive(Clone)]
pub(crate) struct Console {
    cluster: Handle,
    datastores: Arc<Datastores>,
    role: watch::Receiver<Role>,
    registrar: Registrar,
    /// One change at a time: each is checked against the outcome of the last.
    changes: Arc<Mutex<()>>,
}

impl Console {
    pub(crate) fn new(
        cluster: Handle,
        datastores: Arc<Datastores>,
        role: watch::Receiver<Role>,
        registrar: Registrar,
    ) -> Self {
        Self { cluster, datastores, role, registrar, changes: Arc::default() }
    }

    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Cluster, BootTime) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.cluster.ask(call).await.ok_or_else(|| Status::unavailable("the seed is ending"))
    }

    /// Changes are for the seed that leads: another one's would not be seen. Tells its term. A seed that has just started,
    /// or whose datastore is slow, is given a moment; one that knows who leads says so at once.
    async fn leading(&self) -> Result<u64, Status> {
        let mut role = self.role.clone();
        let away = || Status::unavailable(self.datastores.not_leading());
        let known = timeout(LEADING_TIMEOUT, role.wait_for(Role::is_ready)).await.map_err(|_| away())?;
        match &*known.map_err(|_| Status::unavailable("the seed is ending"))? {
            Role::Leading(term) => Ok(*term),
            other => Err(other.refusal().unwrap_or_else(away)),
        }
    }

    /// What this seed knows of others is old where another one leads.
    fn not_led(&self) -> Result<(), Status> {
        match &*self.role.borrow() {
            role @ Role::Understudy { .. } => role.refusal().map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// Plans the change of handlers by what is there now, and has it stored.
    async fn change(&self, changes: HandlerChanges) -> Result<HandlersChanged, Status> {
        let term = self.leading().await?;
        let _turn = self.changes.lock().await;
        let mut reloaded = false;
        loop {
            let (routes, table_version) =
                self.ask(|cluster, _| (cluster.routes.clone(), cluster.table_version())).await?;
            // Here and not in the cluster's task: thousands of handlers take a while, and keys are asked for meanwhile.
            let plan = handlers::plan(&routes.handlers, routes.version, changes.clone()).map_err(refusal)?;
            let now = HandlersChanged { table_version, version: routes.version, changed: !plan.is_empty() };
            if plan.is_empty() || changes.dry_run {
                return Ok(now);
            }
            match self.store(&changes.operator, plan, now.version, term).await {
                Err(status) if fenced(&status, &self.cluster).await => {
                    return Err(Status::unavailable("another seed leads since a moment ago; try again"));
                }
                // The datastore knows of a change that this seed has not heard of: the rules are asked about that table.
                Err(status) if status.code() == Code::FailedPrecondition && !reloaded => {
                    reloaded = true;
                    self.reload(term).await?;
                }
                done => return done,
            }
        }
    }

    /// Has a checked change stored, and pushed. Where the datastore's answer was lost, looks what became of it.
    async fn store(
        &self,
        operator: &str,
        plan: Plan,
        base: u64,
        term: u64,
    ) -> Result<HandlersChanged, Status> {
        let Plan { put, remove, what, after } = plan;
        let operator = operator.to_owned();
        let request =
            ChangeHandlersRequest { base, put, remove, operator: operator.clone(), what: what.clone(), term };
        let mut datastore = self.datastores.client();
        let mut request = Request::new(request);
        request.set_timeout(CHANGE_TIMEOUT);
        let late = |_| Err(Status::deadline_exceeded("the datastore does not answer"));
        let stored = timeout(CHANGE_TIMEOUT, datastore.change_handlers(request)).await.unwrap_or_else(late);
        let unclear = match stored {
            Ok(_) => None,
            Err(status) if is_unclear(&status) => Some(status),
            Err(status) => return Err(status),
        };
        let table_version = self.reload(term).await?;
        let (version, now) =
            self.ask(|cluster, _| (cluster.routes.version, cluster.routes.handlers.clone())).await?;
        if let Some(status) = unclear
            && (version != base + 1 || !alike(&now, &after))
        {
            // One that is late may yet make the change.
            let late = matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable);
            let gone = || {
                format!("the datastore failed before the change was made ({}); try again", status.message())
            };
            if !late {
                return Err(Status::internal(gone()));
            }
            self.settle(term);
            return Err(Status::deadline_exceeded(status.message()));
        }
        tracing::info!(operator, version, what, "the handlers were changed");
        Ok(HandlersChanged { table_version, version, changed: true })
    }

    /// Reads back what the datastore holds now, so that every change is seen in the order in which it was stored. What can't
    /// be read now is read later.
    async fn reload(&self, term: u64) -> Result<u64, Status> {
        let mut why = "the datastore does not answer".to_owned();
        let loaded = timeout(RELOAD_TIMEOUT, async {
            loop {
                match load(&self.datastores).await {
                    Ok(loaded) => return loaded,
                    Err(status) => status.message().clone_into(&mut why),
                }
                sleep(RELOAD_PAUSE).await;
            }
        });
        let Ok(loaded) = loaded.await else {
            self.settle(term);
            let text = format!("perhaps stored, and in effect as soon as the seed can read it again: {why}");
            return Err(Status::deadline_exceeded(text));
        };
        self.ask(move |cluster, now| cluster.set_routes(loaded, now)).await
    }

    /// Has what became of a change that nobody could tell of reach the proxies, for as long as this term lasts. The datastore
    /// may make it after all, some time later: so it is looked for several times.
    fn settle(&self, term: u64) {
        let console = self.clone();
        tokio::spawn(async move {
            for pause in SETTLE_PAUSES {
                sleep(pause).await;
                while !console.is_settled(term).await {
                    sleep(RELOAD_PAUSE).await;
                }
            }
        });
    }

    /// Goes by what the datastore holds, where that is something else; says whether that could be read, or is no longer this
    /// seed's affair.
    async fn is_settled(&self, term: u64) -> bool {
        let _turn = self.changes.lock().await;
        if *self.role.borrow() != Role::Leading(term) {
            return true;
        }
        let Ok(loaded) = load(&self.datastores).await else { return false };
        let adopt = move |cluster: &mut Cluster, now| {
            if loaded.table_version != cluster.routes.version || loaded.builds != cluster.routes.builds {
                cluster.set_routes(loaded, now);
            }
        };
        drop(self.ask(adopt).await);
        true
    }
}

#[tonic::async_trait]
impl Operator for Console {
    async fn change_handlers(
        &self,
        request: Request<HandlerChanges>,
    ) -> Result<Response<HandlersChanged>, Status> {
        let (console, caller) = (self.clone(), caller(&request)?);
        let changes = request.into_inner();
        let changes = HandlerChanges { operator: author(&caller, &changes.operator), ..changes };
        // Goes on where its caller goes away: what was stored has to reach the proxies.
        let change = tokio::spawn(async move { console.change(changes).await });
        change.await.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }

    async fn list_handlers(&self, _: Request<ListHandlersRequest>) -> Result<Response<HandlerList>, Status> {
        self.not_led()?;
        let mut list = self.ask(|cluster, _| cluster.handlers()).await?;
        // A seed that has just started knows none yet, which is something else than that there are none.
        if list.version == 0 {
            self.leading().await?;
            list = self.ask(|cluster, _| cluster.handlers()).await?;
        }
        Ok(Response::new(list))
    }

    async fn handler_history(
        &self,
        request: Request<HandlerHistoryRequest>,
    ) -> Result<Response<HandlerHistoryReply>, Status> {
        let request = limited(request.into_inner());
        Ok(Response::new(call(self.datastores.client().handler_history(request)).await?))
    }

    async fn handlers_at(
        &self,
        request: Request<HandlersAtRequest>,
    ) -> Result<Response<HandlersAtReply>, Status> {
        let request = limited(request.into_inner());
        Ok(Response::new(call(self.datastores.client().handlers_at(request)).await?))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        self.not_led()?;
        let ExplainRequest { pool, key, zone } = request.into_inner();
        Ok(Response::new(self.ask(move |cluster, _| cluster.core.explain(&pool, &key, &zone)).await?))
    }

    async fn deploy(&self, request: Request<Streaming<DeployRequest>>) -> Result<Response<Build>, Status> {
        let term = self.leading().await?;
        let mut messages = request.into_inner();
        let Some(deploy_request::Message::Header(header)) = next(&mut messages).await? else {
            return Err(Status::invalid_argument("a deployment begins with its header"));
        };
        HostPattern::parse(&header.host).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let host = header.host.to_ascii_lowercase();
        let (assets, stream) = mpsc::channel(MAX_WAITING_ASSETS);
        let _ =
            assets.try_send(PutBuildRequest { message: Some(put_build_request::Message::Host(host)), term });
        let mut datastore = self.datastores.client();
        let put = datastore.put_build(ReceiverStream::new(stream));
        let (forwarded, stored) = tokio::join!(forward(messages, assets), put);
        forwarded?;
        let build = match stored {
            Ok(build) => build.into_inner(),
            Err(status) if fenced(&status, &self.cluster).await => {
                return Err(Status::unavailable("another seed leads since a moment ago: deploy again"));
            }
            Err(status) if is_unclear(&status) => {
                self.settle(term);
                return Err(Status::deadline_exceeded(status.message()));
            }
            Err(status) => return Err(status),
        };
        tracing::info!(
            host = build.host,
            version = build.version,
            assets = build.assets,
            "a build was deployed"
        );
        let _turn = self.changes.lock().await;
        self.reload(term).await?;
        Ok(Response::new(build))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        let mut status = self.ask(|cluster, now| cluster.status(now)).await?;
        if !status.leading {
            let refusal = Some(&*self.role.borrow()).filter(|role| role.is_ready()).and_then(Role::refusal);
            status.not_leading =
                refusal.map_or_else(|| self.datastores.not_leading(), |refusal| refusal.message().to_owned());
        }
        Ok(Response::new(status))
    }

    async fn list_hot_keys(&self, _: Request<ListHotKeysRequest>) -> Result<Response<HotKeyList>, Status> {
        Ok(Response::new(self.ask(|cluster, now| cluster.list_hot_keys(now)).await?))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenReply>, Status> {
        let term = self.leading().await?;
        let (caller, wanted) = (caller(&request)?, request.into_inner());
        let wanted = CreateJoinTokenRequest { operator: author(&caller, &wanted.operator), ..wanted };
        Ok(Response::new(self.registrar.create_token(wanted, term).await?))
    }

    async fn list_join_tokens(
        &self,
        request: Request<ListJoinTokensRequest>,
    ) -> Result<Response<JoinTokenList>, Status> {
        self.leading().await?;
        let mut datastore = self.datastores.client();
        Ok(Response::new(call(datastore.list_join_tokens(limited(request.into_inner()))).await?))
    }

    async fn revoke_join_token(
        &self,
        request: Request<RevokeJoinTokenRequest>,
    ) -> Result<Response<RevokeJoinTokenReply>, Status> {
        let request = RevokeJoinTokenRequest { term: self.leading().await?, ..request.into_inner() };
        let mut datastore = self.datastores.client();
        Ok(Response::new(led(&self.cluster, datastore.revoke_join_token(limited(request))).await?))
    }

    async fn change_revocation(
        &self,
        request: Request<Revocation>,
    ) -> Result<Response<ChangeRevocationReply>, Status> {
        let term = self.leading().await?;
        let (caller, wanted) = (caller(&request)?, request.into_inner());
        let wanted = Revocation { operator: author(&caller, &wanted.operator), term, ..wanted };
        Ok(Response::new(self.registrar.change_revocation(wanted, &caller).await?))
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<RevocationList>, Status> {
        self.leading().await?;
        let mut datastore = self.datastores.client();
        Ok(Response::new(call(datastore.list_revocations(limited(request.into_inner()))).await?))
    }
}

/// Who is told to have made a change: the name that the certificate is for. Whoever has the authority's key may be one of
/// many: their own word stands beside it.
fn author(caller: &Peer, claimed: &str) -> String {
    let claimed = claimed[..claimed.floor_char_boundary(MAX_CLAIM_BYTES)].trim();
    if caller.node != LOCAL_OPERATOR || claimed.is_empty() {
        return caller.node.clone();
    }
    format!("{} (says {claimed})", caller.node)
}

/// Hands the assets on as they come, and the end only if the client has sent it: without it the datastore keeps nothing.
async fn forward(
    mut messages: Streaming<DeployRequest>,
    assets: mpsc::Sender<PutBuildRequest>,
) -> Result<(), Status> {
    loop {
        let (message, last) = match next(&mut messages).await? {
            Some(deploy_request::Message::Asset(asset)) => (put_build_request::Message::Asset(asset), false),
            Some(deploy_request::Message::End(end)) => (put_build_request::Message::End(end), true),
            Some(deploy_request::Message::Header(_)) => {
                return Err(Status::invalid_argument("a deployment has one header"));
            }
            None => {
                return Err(Status::invalid_argument(
                    "the deployment was cut before its end: nothing is deployed",
                ));
            }
        };
        let taken = assets.send(PutBuildRequest { message: Some(message), term: 0 }).await.is_ok();
        // Where it takes no more, the datastore has answered already.
        if last || !taken {
            return Ok(());
        }
    }
}

async fn next(messages: &mut Streaming<DeployRequest>) -> Result<Option<deploy_request::Message>, Status> {
    let silent = |_| Status::deadline_exceeded(format!("no asset came for {} s", ASSET_TIMEOUT.as_secs()));
    let request = timeout(ASSET_TIMEOUT, messages.message()).await.map_err(silent)??;
    let empty = || Status::invalid_argument("a message is neither header nor asset nor end");
    request.map(|request| request.message.ok_or_else(empty)).transpose()
}

/// Whether a call that failed so may have been carried out all the same.
fn is_unclear(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented
    )
}

/// The same handlers, in whatever order and since whichever version.
fn alike(one: &[Handler], other: &[Handler]) -> bool {
    let sorted = |handlers: &[Handler]| {
        let mut handlers: Vec<_> = handlers.iter().map(|it| Handler { since: 0, ..it.clone() }).collect();
        handlers.sort_by(|a, b| a.name.cmp(&b.name));
        handlers
    };
    sorted(one) == sorted(other)
}

fn refusal(error: HandlerError) -> Status {
    let text = error.to_string();
    match error {
        HandlerError::NameTaken(_) | HandlerError::Conflict { .. } => Status::already_exists(text),
        HandlerError::Unknown(_) => Status::not_found(text),
        HandlerError::TooMany(_) => Status::resource_exhausted(text),
        HandlerError::Moved { .. } => Status::aborted(text),
        HandlerError::Pattern(_)
        | HandlerError::Placement
        | HandlerError::NeedlessKey
        | HandlerError::Twice(_)
        | HandlerError::Words(_) => Status::invalid_argument(text),
    }
}

#[cfg(test)]
mod tests {
    use protoplex_wire::identity::Kind;

    use super::*;

    #[test]
    fn whoever_has_a_certificate_is_told_by_its_name() {
        let of = |node: &str| Peer {
            cluster: "c".to_owned(),
            kind: Kind::Operator,
            node: node.to_owned(),
            pools: Vec::new(),
        };
        assert_eq!(author(&of("ada"), "bob"), "ada");
        assert_eq!(author(&of("local"), "bob@edge-1"), "local (says bob@edge-1)");
        assert_eq!(author(&of("local"), " "), "local");
        assert!(author(&of("local"), &"ä".repeat(200)).len() < 255);
    }
}
