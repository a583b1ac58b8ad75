//! `protoplex up`: a whole cluster on this machine, every node a process of its own.

mod last_words;
mod welcome;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use protoplex_runtime::signals::{self, ReloadSignals, StopSignals, UpgradeSignals};
use protoplex_runtime::start::StartError;
use protoplex_runtime::supervisor::{Policy, Process, Program, State, Status};
use protoplex_runtime::{parent, running, telemetry, upgrade};
use protoplex_wire::identity::Identity;
use protoplex_wire::proto::HandlerChanges;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{interval, sleep, timeout};
use tonic::Code;

use self::welcome::Welcome;
use crate::cli::{Common, TokenCreate, Up, Usage};
use crate::cluster::Cluster;
use crate::command::{self, Verb};
use crate::handler::first;
use crate::node::Kind;
use crate::nodes::Target;
use crate::settings::Settings;
use crate::status::local;
use crate::{demo, deploy, output, token};

/// A node that isn't ready by then has a problem that its log tells.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// What a node may take for its end beyond its own drain.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the front page is waited for, and between two looks.
const SERVED_TIMEOUT: Duration = Duration::from_secs(1);
const SERVED_PAUSE: Duration = Duration::from_millis(20);
/// What the token that `up` prints is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
const TOKEN_MAX_BYTES: u64 = 64 << 30;
/// Below this path it lets files be uploaded.
const FILES: &str = "/files/";

/// A node that isn't ready by then says what it waits for.
const WAIT_TOLD: Duration = Duration::from_secs(3);
/// How often one that has died too often is started again.
const RETRY_INTERVAL: Duration = Duration::from_secs(15);

/// How often it is looked whether the terminal is still there.
const TERMINAL_INTERVAL: Duration = Duration::from_secs(1);

/// In the folder of logs.
const LOG: &str = "protoplex.log";

/// In the order in which they start.
const KINDS: [Kind; 5] = [Kind::Datastore, Kind::Seed, Kind::Live, Kind::Fileserver, Kind::Proxy];
/// In the order in which they end, so that each still finds what it needs. A live node ends with the proxy: only it can
/// end the streams that the proxy relays, which by themselves never do.
const ENDS: [&[Kind]; 4] =
    [&[Kind::Proxy, Kind::Live], &[Kind::Fileserver], &[Kind::Seed], &[Kind::Datastore]];

/// Runs the command until Ctrl-C or SIGTERM.
pub(crate) fn run(common: &Common, command: Up) -> anyhow::Result<ExitCode> {
    let mut common = common.clone();
    common.set.extend(command.settings());
    let settings = Settings::load_over(&Up::defaults(), &common)?;
    if !settings.seed_addresses.iter().any(|seed| reaches(seed, settings.own_seed)) {
        return Err(Usage(format!(
            "`up` runs a seed of its own, at {}, and its nodes would look for one at {}: leave seed_address and --seed \
             out, or let it listen there with seed.listen",
            settings.own_seed,
            settings.seed_addresses.join(", ")
        ))
        .into());
    }
    settings.assume_account()?;
    let _claim = running::claim(&settings.data, "cluster").map_err(StartError::from)?;
    let specs: Vec<_> = KINDS
        .into_iter()
        .map(|kind| kind.spec(&settings, &settings.common(kind, None)?))
        .collect::<Result<_, _>>()?;
    parent::probe(&specs)?;
    Identity::open_or_create(&settings.data.join("cluster"))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let terminal = Terminal::here();
    runtime.block_on(async {
        let mut stop = StopSignals::take()?;
        let (reloads, upgrades) = (ReloadSignals::take()?, UpgradeSignals::take()?);
        let nodes = Nodes::start(&common, &settings)?;
        let outcome = tokio::select! {
            outcome = nodes.serve(&common, &settings, terminal) => outcome,
            () = nodes.pass_on(reloads, terminal) => Ok(ExitCode::SUCCESS),
            () = nodes.upgrade(&common, upgrades) => Ok(ExitCode::SUCCESS),
            _ = stop.next() => {
                let patience = settings.drain.drain_timeout().as_secs();
                output::tell(&format!(
                    "\nDraining: what is under way has up to {patience} s. Ctrl-C again ends everything at once."
                ));
                Ok(ExitCode::SUCCESS)
            }
        };
        nodes.drain(&mut stop).await;
        outcome
    })
}

struct Nodes {
    nodes: Vec<(Kind, Process)>,
    /// The folder.
    logs: PathBuf,
    /// The file in it that all nodes write to.
    log: PathBuf,
    /// Where in it what is said since the start begins.
    log_begin: u64,
}

impl Nodes {
    fn start(common: &Common, settings: &Settings) -> anyhow::Result<Self> {
        let executable = upgrade::executable();
        let logs = settings.data.join("log");
        std::fs::create_dir_all(&logs).with_context(|| format!("{}", logs.display()))?;
        let log = logs.join(LOG);
        let log_begin = std::fs::metadata(&log).map_or(0, |log| log.len());
        // Who was started and who died is told among the nodes' own lines.
        let own = telemetry::Settings { file: Some(log.clone()), ..settings.log.clone() };
        telemetry::start(&own, "up", None)?;
        let policy =
            || Policy::new(settings.drain.drain_grace() + settings.drain.drain_timeout() + END_TIMEOUT);
        let nodes = KINDS.map(|kind| {
            let arguments = arguments(kind, common, settings, &logs);
            (kind, Process::start(Program::node(&kind.node(), executable.clone(), arguments), policy()))
        });
        Ok(Self { nodes: nodes.into(), log, logs, log_begin })
    }

    /// Has every node read its configuration anew at each SIGHUP, and starts those that don't run. Returns
    /// where that says that the terminal which `up` was started in is closed.
    async fn pass_on(&self, mut reloads: ReloadSignals, mut terminal: Terminal) {
        let mut looks = interval(TERMINAL_INTERVAL);
        let mut was_closed = false;
        loop {
            // Each arm is cancel-safe.
            tokio::select! {
                () = reloads.next() => {}
                _ = looks.tick() => {
                    // Without a signal it was meant to go on by itself (`disown`).
                    terminal.existed &= !was_closed;
                    was_closed = terminal.is_closed();
                    continue;
                }
            }
            if terminal.is_closed() {
                return;
            }
            for (_, process) in &self.nodes {
                // One that was told to drain may be gone for whoever told it, and not yet for this process.
                if matches!(process.status().borrow().state, State::Fatal | State::Stopping | State::Exited) {
                    process.run_again();
                    continue;
                }
                let pid = process.status().borrow().pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
                // It fails where the node has ended just now; the next one starts anew anyway.
                let _ = pid.map(|pid| kill_process(pid, Signal::HUP));
            }
        }
    }

    /// Has one node after the other go on as another program at each SIGUSR2, as `protoplex upgrade` does: the first that
    /// can't is the last. Never ends.
    async fn upgrade(&self, common: &Common, mut upgrades: UpgradeSignals) {
        loop {
            upgrades.next().await;
            let running = self.nodes.iter().filter(|(_, process)| process.status().borrow().state.is_up());
            let all: Vec<_> = running.map(|(kind, _)| Target { node: kind.node(), child: None }).collect();
            match command::carry_out(common, Verb::Upgrade, &all).await {
                Ok(rows) => rows.iter().for_each(|row| output::tell(&row.to_string())),
                Err(error) => output::tell(&format!("protoplex: no upgrade: {}", output::whole(&error))),
            }
        }
    }

    /// Tells what there is once all runs, and returns when nothing runs any more, or when the terminal closes that it
    /// tells this to. The others go on without a node that has died too often: they are made to.
    async fn serve(
        &self,
        common: &Common,
        settings: &Settings,
        terminal: Terminal,
    ) -> anyhow::Result<ExitCode> {
        let text = self.introduce(common, settings).await?;
        match output::write(text.as_bytes()) {
            // SIGHUP will say the same, but may come later.
            Err(_) if terminal.is_closed() => return Ok(ExitCode::SUCCESS),
            written => written?,
        }
        tokio::select! {
            given_up = self.nothing_runs() => Ok(given_up),
            never = self.see_to_the_ended() => match never {},
        }
    }

    /// Returns when every node was drained by an operator, or has died too often.
    async fn nothing_runs(&self) -> ExitCode {
        loop {
            // One that was given up may be started again while others are waited for.
            futures_util::future::join_all(self.nodes.iter().map(|(_, process)| process.ended())).await;
            let states: Vec<_> =
                self.nodes.iter().map(|(_, process)| process.status().borrow().state).collect();
            if !states.iter().all(|state| state.is_final()) {
                continue;
            }
            return if states.contains(&State::Fatal) {
                output::tell("protoplex: every node was drained or died too often: nothing is left to run");
                ExitCode::FAILURE
            } else {
                output::tell("protoplex: every node was drained, so there is nothing left to run");
                ExitCode::SUCCESS
            };
        }
    }

    /// Waits until all nodes are ready, makes what a first start lacks, and tells what there is to try.
    async fn introduce(&self, common: &Common, settings: &Settings) -> anyhow::Result<String> {
        tokio::select! {
            ready = self.ready() => ready?,
            never = self.tell_of_the_waiting(common) => match never {},
        }
        let cluster = Cluster::find(common)?;
        furnish(&cluster).await?;
        let nodes = running::list(&settings.data)?;
        let welcome = Welcome { data: &settings.data, logs: &self.logs, nodes: &nodes };
        served(&welcome.http()).await;
        let wanted = TokenCreate {
            host: "*".to_owned(),
            path: FILES.to_owned(),
            max_size: TOKEN_MAX_BYTES,
            quota: None,
            uses: None,
            expires: TOKEN_LIFE,
        };
        let token = token::create(&cluster, wanted).await?;
        Ok(welcome.text(&token.token, common.json)?)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        for (kind, process) in &self.nodes {
            let mut status = process.status();
            let waited =
                timeout(READY_TIMEOUT, status.wait_for(|status| status.ready || status.state.is_final()))
                    .await;
            if !waited.is_ok_and(|status| status.is_ok_and(|status| status.ready)) {
                let node = kind.node();
                let said = last_words::of(&node, &self.log, self.log_begin);
                let said = said.map_or_else(String::new, |said| format!(": {said}"));
                bail!("{node} did not become ready{said}\nThe log has more: {}", self.log.display());
            }
        }
        Ok(())
    }

    /// Says what nodes wait for that are not ready yet, whenever that changes. Never ends.
    async fn tell_of_the_waiting(&self, common: &Common) -> Infallible {
        let mut told = String::new();
        loop {
            sleep(WAIT_TOLD).await;
            let late = self.nodes.iter().find(|(_, process)| !process.status().borrow().ready);
            let Some((kind, _)) = late else { continue };
            let node = kind.node();
            if let Some(reason) = local::reason(common, &node).await {
                let text = format!("protoplex: waiting for {node}: {reason}");
                if is_news(&text, &told) {
                    output::tell(&text);
                    told = text;
                }
            }
        }
    }

    /// Says so of each node that was drained or has died too often, how it is started again, and when it runs again. One
    /// that has died is tried again now and then, for what it died of may pass: a full disk, a port that was taken. Never
    /// ends.
    async fn see_to_the_ended(&self) -> Infallible {
        let told = self.nodes.iter().map(|(kind, process)| async move {
            let mut status = process.status();
            let (node, up, log) = (kind.node(), std::process::id(), self.log.display());
            let again = format!("kill -HUP {up}");
            loop {
                let is_over = |status: &Status| matches!(status.state, State::Fatal | State::Exited);
                // An error means that its keeper is gone.
                let Ok(mut state) = status.wait_for(is_over).await.map(|status| status.state) else { return };
                let mut told = None;
                loop {
                    if told != Some(state) {
                        output::tell(&match state {
                            State::Exited => {
                                format!("protoplex: {node} was drained. Start it again: {again}")
                            }
                            _ => format!(
                                "protoplex: {node} died too often; the others go on without it. The log says why: {log}. \
                                 It is tried again every {} s, and at once by {again}",
                                RETRY_INTERVAL.as_secs()
                            ),
                        });
                        told = Some(state);
                    }
                    // One that was drained and is started again may die too often, too.
                    let is_news = |status: &Status| status.ready || is_over(status) && status.state != state;
                    let news = async { status.wait_for(is_news).await.map(|status| (status.ready, status.state)) };
                    match timeout(RETRY_INTERVAL, news).await {
                        Ok(Err(_)) => return,
                        Ok(Ok((true, _))) => break,
                        Ok(Ok((false, now))) => state = now,
                        Err(_) if process.status().borrow().state == State::Fatal => process.begin().await,
                        Err(_) => {}
                    }
                }
                output::tell(&format!("protoplex: {node} runs again"));
            }
        });
        futures_util::future::join_all(told).await;
        std::future::pending().await
    }

    async fn drain(&self, stop: &mut StopSignals) {
        let in_order = async {
            for kinds in ENDS {
                let together: Vec<_> = self.nodes.iter().filter(|(kind, _)| kinds.contains(kind)).collect();
                together.iter().for_each(|(_, process)| process.drain());
                futures_util::future::join_all(together.iter().map(|(_, process)| process.ended())).await;
            }
        };
        tokio::select! {
            () = in_order => {}
            _ = stop.next() => {
                for (_, process) in &self.nodes {
                    process.end();
                }
                for (_, process) in &self.nodes {
                    process.ended().await;
                }
            }
        }
    }
}

/// The terminal that this process was started in, and is to end with, if any.
#[derive(Clone, Copy)]
struct Terminal {
    existed: bool,
}

impl Terminal {
    fn here() -> Self {
        Self { existed: Self::opens() && !signals::outlives_terminal() }
    }

    fn is_closed(self) -> bool {
        self.existed && !Self::opens()
    }

    fn opens() -> bool {
        File::open("/dev/tty").is_ok()
    }
}

fn arguments(kind: Kind, common: &Common, settings: &Settings, logs: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec![kind.name().into(), "--data".into(), settings.data.clone().into()];
    if let Some(config) = &common.config {
        arguments.extend(["--config".into(), config.into()]);
    }
    let log = |name: &str| toml::Value::String(logs.join(name).display().to_string());
    // One for all of them: what happened is read in one place, in order of time.
    let node_log = format!("log.file={}", log(LOG));
    let access_log = format!("{}.access_log={{ file = {} }}", kind.name(), log("access.log"));
    // Of the nodes with public ports only the proxy meets every request.
    let logs = [node_log].into_iter().chain((kind == Kind::Proxy).then_some(access_log));
    // What holds for this command's nodes unless the file says otherwise, the file being read again by each node.
    let children = settings.children(kind).map(|n| format!("{}.children={n}", kind.name()));
    let set = logs.chain(children).chain(common.set.iter().map(|(key, value)| format!("{key}={value}")));
    arguments.extend(set.flat_map(|setting| ["--set".into(), setting.into()]));
    if let Some(level) = &common.log_level {
        arguments.extend(["--log-level".into(), level.into()]);
    }
    arguments
}

/// Whether a reason is another one than the last: that some seconds have passed makes it none.
fn is_news(text: &str, told: &str) -> bool {
    let is_number = |word: &&str| word.bytes().all(|byte| byte.is_ascii_digit());
    let but_numbers =
        |text: &str| text.split(' ').filter(|word| !is_number(word)).collect::<Vec<_>>().join(" ");
    but_numbers(text) != but_numbers(told)
}

/// Whether this address, in whatever words, is that of a seed of this machine that listens there.
fn reaches(address: &str, own: SocketAddr) -> bool {
    // Only an address of this machine can be bound.
    let is_here = |ip| TcpListener::bind((ip, 0)).is_ok();
    let mut resolved = address.to_socket_addrs().into_iter().flatten();
    resolved.any(|found| found == own || (found.port() == own.port() && is_here(found.ip())))
}

/// Gives a new cluster its handlers (channels to live nodes, everything else to fileservers) and the demo app. What an
/// operator has changed since stays changed.
async fn furnish(cluster: &Cluster) -> anyhow::Result<()> {
    // The demo is deployed last, so a start that was broken off is taken up again.
    if !cluster.status().await?.builds.is_empty() {
        return Ok(());
    }
    let mut operator = cluster.operator().await?;
    for first in first::handlers() {
        let who = "protoplex up".to_owned();
        let added = HandlerChanges { add: vec![first], operator: who, ..HandlerChanges::default() };
        match operator.change_handlers(added).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            added => drop(added.map_err(|s| cluster.explain(s))?),
        }
    }
    let assets = tokio::task::spawn_blocking(demo::assets).await??;
    deploy::send(operator, "*", assets).await.map_err(|s| cluster.explain(s))?;
    Ok(())
}

/// Waits until the front page is there, so that the first command to copy works at once. An app of the operator's own
/// may have none.
async fn served(http: &str) {
    let asked = async {
        while !reqwest::get(format!("{http}/")).await.is_ok_and(|answer| answer.status().is_success()) {
            sleep(SERVED_PAUSE).await;
        }
    };
    let _ = timeout(SERVED_TIMEOUT, asked).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_time_passes_is_no_news() {
        let waiting =
            |seconds| format!("protoplex: waiting for seed-1: for {seconds} s no datastore has answered");
        assert!(is_news(&waiting(9), ""));
        assert!(!is_news(&waiting(12), &waiting(9)));
        let of = |address: &str| format!("protoplex: waiting for seed-1: its datastore at {address}: away");
        assert!(is_news(&of("10.0.0.2:8051"), &of("10.0.0.1:8051")));
        assert!(is_news("protoplex: waiting for live-1: it has not joined a seed", &waiting(9)));
    }
}
