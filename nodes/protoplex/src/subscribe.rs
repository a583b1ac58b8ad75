//! `protoplex subscribe`: prints events as they come, or runs a command for each.

use std::error::Error;
use std::io::{self, Write};
use std::process::{ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use protoplex_wire::cloud_event::{CloudEvent, EventData};
use protoplex_wire::events::{Notice, Subscriber, Subscription};
use protoplex_wire::proto::EventDelivery;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::signal;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Code;

use crate::cli::{Common, Subscribe, Usage};
use crate::cluster::Cluster;
use crate::output::{harmless, tell};
use crate::units::show_time;

/// How long a seed is looked for at first; later it is for ever.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events on the way at once; one where a command is run for it, so that others of the group have theirs.
const WINDOW: u32 = 256;
/// Wait before an event comes again whose command has failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Subscribe) -> anyhow::Result<ExitCode> {
    let Subscribe { patterns, group, durable, from, count, exec } = command;
    let cluster = Cluster::find(common)?;
    let exclusive = durable.is_some();
    let subscription = Subscription {
        patterns,
        name: group.or(durable).unwrap_or_default(),
        exclusive,
        start: from,
        // No more than are wanted: what is given back has been out all the same.
        window: match count {
            _ if exec.is_some() => 1,
            Some(count) => u32::try_from(count).unwrap_or(WINDOW).clamp(1, WINDOW),
            None => WINDOW,
        },
    };
    // Told here, where the seed would tell it later.
    for pattern in &subscription.patterns {
        pattern.parse::<protoplex_wire::topic::TopicPattern>().map_err(|error| Usage(error.to_string()))?;
    }
    if !subscription.name.is_empty() {
        protoplex_wire::events::check_name(&subscription.name).map_err(Usage)?;
    }
    let mut subscriber = cluster.bus().await?.subscribe(subscription);
    match subscriber.connect(Instant::now() + PATIENCE).await {
        // A seed has said so: NATS is away, or nobody leads. That passes.
        Err(status) if status.code() == Code::Unavailable && status.source().is_none() => {
            tell(&format!("protoplex: waiting: {}", status.message()));
        }
        connected => connected.map_err(|status| cluster.explain(*status))?,
    }
    let follow = follow(common, &cluster, &mut subscriber, exec.as_deref(), count);
    tokio::select! {
        followed = follow => followed?,
        interrupted = signal::ctrl_c() => interrupted?,
    }
    subscriber.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Until there were so many, or nobody reads them any more.
async fn follow(
    common: &Common,
    cluster: &Cluster,
    subscriber: &mut Subscriber,
    exec: Option<&str>,
    count: Option<u64>,
) -> anyhow::Result<()> {
    let printer = Printer::start();
    let mut done = 0;
    while count.is_none_or(|count| done < count) {
        let notice = subscriber.next().await.map_err(|status| cluster.explain(*status))?;
        let delivery = match notice {
            Notice::Event(delivery) => delivery,
            Notice::Lost(lost) => {
                tell(&format!(
                    "protoplex: positions {} to {} are kept no longer: events may be missing",
                    lost.first, lost.last
                ));
                continue;
            }
            Notice::Away(reason) => {
                tell(&format!("protoplex: the seed is away ({reason}); trying again"));
                continue;
            }
        };
        if let Some(exec) = exec {
            if !carry_out(exec, &delivery).await? {
                subscriber.nack(&delivery, RETRY).await;
                continue;
            }
        } else {
            let line = if common.json { json(&delivery) } else { text(&delivery) };
            if !printer.print(line).await? {
                return Ok(());
            }
        }
        subscriber.ack(&delivery).await;
        done += 1;
    }
    Ok(())
}

/// A thread that writes to standard output: whoever reads it slowly holds up neither the link nor Ctrl-C. It ends with the
/// process.
struct Printer {
    lines: mpsc::Sender<(String, oneshot::Sender<io::Result<()>>)>,
}

impl Printer {
    fn start() -> Self {
        let (lines, to_print) = mpsc::channel::<(String, oneshot::Sender<_>)>();
        thread::spawn(move || {
            for (line, printed) in to_print {
                let mut out = io::stdout().lock();
                let written = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
                let _ = printed.send(written);
            }
        });
        Self { lines }
    }

    /// `false` where nobody reads it.
    async fn print(&self, line: String) -> io::Result<bool> {
        let (printed, is_printed) = oneshot::channel();
        let _ = self.lines.send((line, printed));
        match is_printed.await.map_err(io::Error::other).flatten() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true),
        }
    }
}

fn json(delivery: &EventDelivery) -> String {
    // A line break in JSON is between its parts: none is in a string.
    let event = String::from_utf8_lossy(&delivery.event).replace(['\n', '\r'], " ");
    format!("{{\"position\":{},\"attempt\":{},\"event\":{event}}}", delivery.position, delivery.attempt)
}

fn text(delivery: &EventDelivery) -> String {
    let mut parts = vec![delivery.position.to_string(), show_time(delivery.kept_at_ms)];
    match CloudEvent::from_json(&delivery.event) {
        Ok(event) => {
            parts.push(event.topic().to_owned());
            parts.extend(event.subject().map(str::to_owned));
            match event.data() {
                EventData::None => {}
                EventData::Json(data) => parts.push(data.get().to_owned()),
                EventData::Binary(bytes) => parts.push(format!("({} bytes)", bytes.len())),
            }
        }
        Err(_) => parts.push(String::from_utf8_lossy(&delivery.event).into_owned()),
    }
    if delivery.attempt > 1 {
        parts.push(format!("(attempt {})", delivery.attempt));
    }
    harmless(&parts.join("  "))
}

/// Whether the command has succeeded with the event. What it has not read is its own affair.
async fn carry_out(exec: &str, delivery: &EventDelivery) -> anyhow::Result<bool> {
    let mut child = Command::new("sh")
        .args(["-c", exec])
        .stdin(Stdio::piped())
        .env("PROTOPLEX_EVENT_POSITION", delivery.position.to_string())
        .env("PROTOPLEX_EVENT_ATTEMPT", delivery.attempt.to_string())
        .kill_on_drop(true)
        .spawn()
        .context("sh can't be run")?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(&delivery.event).await;
        let _ = stdin.write_all(b"\n").await;
    }
    let status = child.wait().await?;
    if !status.success() {
        let (position, attempt) = (delivery.position, delivery.attempt);
        tell(&format!("protoplex: the command failed for position {position}, attempt {attempt}: {status}"));
    }
    Ok(status.success())
}
