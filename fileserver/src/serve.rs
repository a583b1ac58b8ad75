//! The processes of a fileserver: what its parent binds and looks after, what each child runs.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use protoplex_http::public::{self, ServeError};
use protoplex_http::tls::TlsError;
use protoplex_http::upstream::Pool;
use protoplex_http::{AccessLog, Fronts, Listener, Tuning};
use protoplex_runtime::config::{Common, ConfigError, Problems};
use protoplex_runtime::context::{Context, Reconfigured};
use protoplex_runtime::drain::{Drain, Tasks};
use protoplex_runtime::parent::Spec;
use protoplex_wire::follow::{Builds, Follower, Link};
use protoplex_wire::identity::{FILES_POOL, Identity, Kind};
use protoplex_wire::proto::Member;
use tokio::time::{sleep, timeout};
use tracing::error;

use crate::app_files::AppFiles;
use crate::cache::{Cache, sweep};
use crate::config::{Config, Storage};
use crate::credential::Credentials;
use crate::inflate::Inflates;
use crate::progress::Live;
use crate::publish::Publisher;
use crate::registrations::Registrations;
use crate::request::{Fileserver, downloads};
use crate::s3_files::{S3Files, Source};
use crate::staging::Staging;
use crate::storage::Bodies;
use crate::storage::directory::Directory;
use crate::storage::s3::S3;
use crate::upload::{Records, Uploads};
use crate::vhost_files::VhostFiles;

const KIND: &str = "fileserver";
/// What a child goes by as soon as it is told: where it listens is its parent's business.
const ADOPTED: [&str; 8] =
    ["http", "https", "children", "certificate", "proxy_protocol", "trusted_proxies", "limits", "upstream"];
/// The name of a child's own socket.
const OWN: &str = "files";
/// How long a child that starts accepts nothing for want of its app builds.
const FIRST_BUILDS_WAIT: Duration = Duration::from_secs(2);
/// After a build could not be fetched.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

/// The node, for the runtime. Makes the local certificate where one is needed and missing; blocking.
///
/// # Errors
/// The local certificate can't be read or made.
pub fn spec(config: &Config, common: &Common) -> Result<Spec, TlsError> {
    let shared = public::sockets(&config.http, &config.https, &config.certificate, &common.data)?;
    Ok(Spec {
        kind: KIND,
        common: common.clone(),
        children: config.children,
        shared,
        own: vec![(OWN.to_owned(), config.address)],
        connections: config.limits.max_connections as u64,
        child_config: serde_json::json!(config),
        adopted: &ADOPTED,
    })
}

/// What the parent does for all its children: it keeps the disk cache within its size. Never ends.
pub async fn look_after(mut config: Config, common: &Common, mut reconfigured: Reconfigured) {
    loop {
        let sweeping = async {
            match config.storage {
                Storage::Directory => std::future::pending().await,
                Storage::S3 => sweep(common.data.join("cache"), config.cache_max_bytes).await,
            }
        };
        // The first arm never ends; the other is cancel-safe.
        let next = tokio::select! {
            () = sweeping => return,
            next = reconfigured.next() => next,
        };
        match next {
            Ok(next) => config = next,
            Err(error) => error!(%error, "a configuration can't be adopted"),
        }
    }
}

/// Runs one child until it has drained. Ready as soon as the seed knows it.
///
/// # Errors
/// It can't begin to serve; see [`ServeError`].
pub async fn child(context: Context) -> Result<(), ServeError> {
    // First, so that no change is missed.
    let reconfigured = context.reconfigured();
    let config: Config = context.config()?;
    let common = context.common();
    let log = AccessLog::open(&config.access_log, config.access_log_format, common.telemetry.rotation())?;
    let mut problems = Problems::default();
    let fronts = config.fronts(&mut problems);
    let (own, member) = own(&context, &fronts)?;
    let limits = config.limits.resolve("fileserver.limits", &mut problems);
    let pool = Pool::new(config.upstream.resolve("fileserver.upstream", &mut problems));
    problems.finish()?;
    let tls = public::tls(&config.https, &config.certificate, &common.data)?;
    let tuning = Tuning::new(limits, tls, fronts);

    let identity = Identity::of_node(&common.data.join("cluster"), Kind::Fileserver, context.node())?;
    let who = Follower {
        node: context.node().to_owned(),
        kind: KIND.to_owned(),
        zone: common.zone.clone(),
        membership: Some(member.into()),
    };
    let link =
        Link::open(&identity, common.seeds(), who).map_err(|error| ServeError::Seed(error.to_string()))?;

    let (tasks, drain) = (Tasks::default(), context.drain());
    let credentials = Credentials::new(&identity);
    let registrations = Registrations::new(
        link.clone(),
        Rc::clone(&pool),
        Rc::clone(&credentials),
        tasks.clone(),
        drain.clone(),
    );
    let staging = Staging::open(&common.data.join("staging"))?;
    let (bodies, source) = storage(&config, common, &tasks).await?;
    let (live, notices) = Live::new(&format!("/{}/{}", context.node(), context.index()));
    let datastore = link.clone();
    let records = Records::new(context.node(), move || datastore.datastore());
    let uploads = Uploads::new(records, staging.clone(), Rc::new(bodies), live, tasks.clone(), drain.clone());
    let (datastore, told) = (link.clone(), link.clone());
    // The seed tells of every build before it sends its table.
    let known_builds = move || (told.table().version > 0).then(|| told.builds());
    let fileserver = Rc::new(Fileserver {
        app_files: Rc::new(AppFiles::new(known_builds)),
        s3_files: S3Files::new(source, staging, Rc::clone(&registrations)),
        vhost_files: VhostFiles::new(move || datastore.datastore(), registrations),
        uploads: Rc::clone(&uploads),
        inflates: Inflates::default(),
        app_hits: downloads("app"),
    });

    let app_files = Rc::clone(&fileserver.app_files);
    let publisher = Publisher::new(link.clone(), Rc::clone(&pool), credentials, tasks.clone(), drain.clone());
    tasks.spawn(publisher.deliver(notices));
    tasks.spawn(async move { uploads.look_after().await });
    // Requests that wait at the sockets of a child that died should find the app in its successor too.
    let _ = timeout(FIRST_BUILDS_WAIT, first_builds(&link, &app_files)).await;
    tasks.spawn(follow_builds(link.clone(), app_files, drain.clone()));
    tasks.spawn(take_part(context.clone(), link));
    let ports = public::ports(&context).and(own);
    // Both arms are polled in place until serving ends.
    tokio::select! {
        served = protoplex_http::serve(ports, tuning.clone(), log, &context, fileserver) => served?,
        () = public::adopt(reconfigured, |config| adopt(&context, &tuning, &pool, config)) => {}
    }
    tasks.finished().await;
    Ok(())
}

/// Goes by another configuration from here on.
fn adopt(context: &Context, tuning: &Tuning, pool: &Pool, config: Config) -> Result<(), ServeError> {
    let mut problems = Problems::default();
    let limits = config.limits.resolve("fileserver.limits", &mut problems);
    let upstream = config.upstream.resolve("fileserver.upstream", &mut problems);
    let fronts = config.fronts(&mut problems);
    problems.finish()?;
    // The parent has just read it, so that it is in memory.
    let tls = public::tls(&config.https, &config.certificate, &context.common().data)?;
    tuning.change(limits, tls, fronts);
    pool.change(upstream);
    Ok(())
}

/// The child's own socket, and the member that it makes it.
fn own(context: &Context, fronts: &Fronts) -> Result<(Vec<Listener>, Member), ServeError> {
    let own = context.listeners(OWN);
    let address = own.first().ok_or_else(|| io::Error::other("the parent gave no socket"))?.local_addr()?;
    let member = Member {
        id: format!("{}:{}", context.node(), context.index()),
        pool: FILES_POOL.to_owned(),
        address: address.to_string(),
        zone: context.common().zone.clone(),
        instance: context.instance().to_owned(),
    };
    // Proxies of the cluster come there, not balancers.
    let inside = fronts.without_proxy_protocol();
    let listener = |socket| Listener { socket, tls: None, fronts: inside.clone() };
    Ok((own.into_iter().map(listener).collect(), member))
}

/// Where uploads put bodies, and where downloads look for them.
async fn storage(config: &Config, common: &Common, tasks: &Tasks) -> Result<(Bodies, Source), ConfigError> {
    match config.storage {
        Storage::Directory => {
            let directory = Directory::new(common.data.join("files"));
            Ok((Bodies::Directory(directory.clone()), Source::Directory(directory)))
        }
        Storage::S3 => {
            let mut problems = Problems::default();
            let settings = config.s3.resolve(&mut problems);
            problems.finish()?;
            let s3 = S3::new(&settings).await;
            let cache = Cache::new(common.data.join("cache"), s3, tasks.clone());
            Ok((Bodies::S3(cache.clone()), Source::Cache(cache)))
        }
    }
}

/// Ready once the seed knows this child; that the seed goes away later changes nothing. Leaves the pool when the drain
/// starts, so that proxies send nothing more.
async fn take_part(context: Context, link: Link) {
    let mut connection = link.connection();
    let drain = context.drain();
    // Every arm is cancel-safe.
    tokio::select! {
        known = connection.wait_for(|connected| *connected) => context.ready(known.is_ok()),
        () = drain.started() => {}
    }
    drain.started().await;
    link.leave().await;
    context.left();
}

/// Fetches what is current when the child starts: the seed tells of every build before it sends its table.
async fn first_builds(link: &Link, files: &AppFiles) {
    link.table_changed(0).await;
    fetch_builds(link, files, &link.builds()).await;
}

/// Fetches each build that becomes current, and puts it in its predecessor's place once it is here whole.
async fn follow_builds(link: Link, files: Rc<AppFiles>, drain: Drain) {
    let mut seen = 0;
    loop {
        // Every arm is cancel-safe.
        let builds = tokio::select! {
            builds = link.builds_changed(seen) => builds,
            () = drain.started() => return,
        };
        if fetch_builds(&link, &files, &builds).await {
            seen = builds.generation;
        } else {
            sleep(FETCH_PAUSE).await;
        }
    }
}

/// False where a build could not be fetched. Its predecessor is served until it can.
async fn fetch_builds(link: &Link, files: &AppFiles, builds: &Builds) -> bool {
    let mut whole = true;
    for build in files.missing(&builds.current) {
        match link.fetch_build(build.version).await {
            Ok(assets) => {
                tracing::info!(
                    host = build.host,
                    version = build.version,
                    assets = assets.len(),
                    "new app build"
                );
                files.adopt(build, assets);
            }
            Err(error) => {
                tracing::warn!(host = build.host, version = build.version, %error, "an app build can't be fetched yet");
                whole = false;
            }
        }
    }
    files.retain(&builds.current);
    whole
}
