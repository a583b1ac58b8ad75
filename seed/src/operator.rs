//! The service of an operator's tools: handlers, deployments, explanations, the state of the cluster.

use std::time::Duration;

use protoplex_wire::clock::BootTime;
use protoplex_wire::pattern::HostPattern;
use protoplex_wire::proto::operator_server::Operator;
use protoplex_wire::proto::{
    Build, ClusterStatus, DeployRequest, ExplainRequest, Explanation, Handler, HandlerChange, HandlerList,
    ListHandlersRequest, PutBuildRequest, RemoveHandlerRequest, RemoveStoredHandlerRequest, StatusRequest,
    deploy_request, put_build_request,
};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{Cluster, Handle};
use crate::leader::{Datastore, call, limited, load};
use crate::routes::RouteError;

/// How long a client of a deployment may keep the next asset waiting.
const ASSET_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a change waits for this seed to lead, and between two looks.
const LEADING_TIMEOUT: Duration = Duration::from_secs(3);
const LEADING_PAUSE: Duration = Duration::from_millis(50);
/// Assets between the client and the datastore.
const MAX_WAITING_ASSETS: usize = 2;
/// Attempts to read back what was stored, a quarter of a second apart.
const RELOADS: usize = 20;

pub(crate) struct Console {
    cluster: Handle,
    datastore: Datastore,
    /// One change at a time: each is checked against the outcome of the last.
    changes: Mutex<()>,
}

impl Console {
    pub(crate) fn new(cluster: Handle, datastore: Datastore) -> Self {
        Self { cluster, datastore, changes: Mutex::new(()) }
    }

    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Cluster, BootTime) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.cluster.ask(call).await.ok_or_else(|| Status::unavailable("the seed is ending"))
    }

    /// Changes are for the seed that leads: another one's would not be seen. A seed that has just started, or whose
    /// datastore is slow, is given a moment.
    async fn leading(&self) -> Result<(), Status> {
        let led = async {
            while !self.ask(|cluster, _| cluster.core.leads().is_some()).await? {
                sleep(LEADING_PAUSE).await;
            }
            Ok(())
        };
        let away = || Status::unavailable("this seed does not lead yet (is its datastore there?); try again");
        timeout(LEADING_TIMEOUT, led).await.unwrap_or_else(|_| Err(away()))
    }

    /// Reads back what the datastore holds now, so that every change is seen in the order in which it was stored.
    async fn reload(&self) -> Result<u64, Status> {
        let mut tries = 0;
        let loaded = loop {
            match load(&mut self.datastore.clone()).await {
                Ok(loaded) => break loaded,
                Err(_) if tries < RELOADS => tries += 1,
                Err(status) => {
                    let text = format!(
                        "stored, but in effect only when the seed reads it again: {}",
                        status.message()
                    );
                    return Err(Status::unavailable(text));
                }
            }
            sleep(Duration::from_millis(250)).await;
        };
        self.ask(move |cluster, now| cluster.set_routes(loaded, now)).await
    }
}

#[tonic::async_trait]
impl Operator for Console {
    async fn add_handler(&self, request: Request<Handler>) -> Result<Response<HandlerChange>, Status> {
        self.leading().await?;
        let _turn = self.changes.lock().await;
        let handler = request.into_inner();
        let checked = self.ask(move |cluster, _| cluster.routes.check(handler)).await?;
        let handler = checked.map_err(refusal)?;
        let Handler { name, host, path, .. } = handler.clone();
        call(self.datastore.clone().put_handler(limited(handler))).await?;
        tracing::info!(handler = name, host, path, "a handler was added");
        Ok(Response::new(HandlerChange { table_version: self.reload().await? }))
    }

    async fn remove_handler(
        &self,
        request: Request<RemoveHandlerRequest>,
    ) -> Result<Response<HandlerChange>, Status> {
        self.leading().await?;
        let _turn = self.changes.lock().await;
        let name = request.into_inner().name;
        let request = RemoveStoredHandlerRequest { name: name.clone() };
        call(self.datastore.clone().remove_handler(limited(request))).await?;
        tracing::info!(handler = name, "a handler was removed");
        Ok(Response::new(HandlerChange { table_version: self.reload().await? }))
    }

    async fn list_handlers(&self, _: Request<ListHandlersRequest>) -> Result<Response<HandlerList>, Status> {
        let list = self.ask(|cluster, _| HandlerList {
            table_version: cluster.table_version(),
            handlers: cluster.handlers(),
        });
        Ok(Response::new(list.await?))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let ExplainRequest { pool, key } = request.into_inner();
        Ok(Response::new(self.ask(move |cluster, _| cluster.core.explain(&pool, &key)).await?))
    }

    async fn deploy(&self, request: Request<Streaming<DeployRequest>>) -> Result<Response<Build>, Status> {
        self.leading().await?;
        let mut messages = request.into_inner();
        let Some(deploy_request::Message::Header(header)) = next(&mut messages).await? else {
            return Err(Status::invalid_argument("a deployment begins with its header"));
        };
        HostPattern::parse(&header.host).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let host = header.host.to_ascii_lowercase();
        let (assets, stream) = mpsc::channel(MAX_WAITING_ASSETS);
        let _ = assets.try_send(PutBuildRequest { message: Some(put_build_request::Message::Host(host)) });
        let mut datastore = self.datastore.clone();
        let put = datastore.put_build(ReceiverStream::new(stream));
        let (forwarded, stored) = tokio::join!(forward(messages, assets), put);
        forwarded?;
        let build = stored?.into_inner();
        tracing::info!(
            host = build.host,
            version = build.version,
            assets = build.assets,
            "a build was deployed"
        );
        let _turn = self.changes.lock().await;
        self.reload().await?;
        Ok(Response::new(build))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        Ok(Response::new(self.ask(|cluster, now| cluster.status(now)).await?))
    }
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
        let taken = assets.send(PutBuildRequest { message: Some(message) }).await.is_ok();
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

fn refusal(error: RouteError) -> Status {
    let text = error.to_string();
    match error {
        RouteError::NameTaken(_) | RouteError::Conflict { .. } => Status::already_exists(text),
        RouteError::TooMany => Status::resource_exhausted(text),
        RouteError::Pattern(_) | RouteError::Placement | RouteError::NeedlessKey => {
            Status::invalid_argument(text)
        }
    }
}
