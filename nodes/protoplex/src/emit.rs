//! `protoplex emit`: publishes events from the command line or from standard input.

use std::io::{self, BufRead, Read};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use protoplex_wire::cloud_event::{CloudEvent, EventData, EventError, Extension, MAX_EVENT_BYTES};
use protoplex_wire::events::{Bus, PublishError};
use protoplex_wire::proto::KeptEvent;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cli::{Common, Emit, Usage};
use crate::cluster::{Cluster, TAKEOVER_PATIENCE, is_unclear};
use crate::handler::operator;
use crate::output::{self, print};
use crate::units::show_time;

/// Once lines flow a seed that is away is tried again for so long, for there may be many more; and before for
/// [`TAKEOVER_PATIENCE`].
const FLOW_PATIENCE: Duration = Duration::from_secs(15);
/// Lines that go together, where they come at once.
const BATCH: usize = 256;
/// How long a line waits for those that come with it.
const LULL: Duration = Duration::from_millis(5);
/// Media types with this end are JSON (RFC 6839 section 3.1).
const JSON_SUFFIX: &str = "+json";

/// What became of an event.
#[derive(Serialize)]
struct Row {
    id: String,
    /// 0 where it is published later, or was before.
    position: u64,
    repeated: bool,
    /// Unix time; of one that is published later.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at_ms: Option<i64>,
}

impl Row {
    fn text(&self) -> String {
        match self.due_at_ms {
            _ if self.repeated => format!("{}  known already, not published again", self.id),
            Some(due_at_ms) => format!("{}  is published at {}", self.id, show_time(due_at_ms)),
            None => format!("{}  published at position {}", self.id, self.position),
        }
    }
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Emit) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let bus = cluster.bus().await?;
    let delay = command.delay.unwrap_or_default();
    if command.lines {
        return lines(common, &cluster, &bus, &command).await;
    }
    let event = if command.cloudevent {
        whole(&given(command.topic.as_deref().unwrap_or("-"))?)?
    } else {
        let data = command.payload.as_deref().map(given).transpose()?;
        made(&command, data.as_deref())?
    };
    let rows = publish(&cluster, &bus, vec![event], delay, TAKEOVER_PATIENCE).await?;
    for row in rows {
        print(common.json, &row, Row::text)?;
    }
    Ok(())
}

/// An argument, or standard input where it is `-`.
fn given(argument: &str) -> anyhow::Result<Vec<u8>> {
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    // One more tells that it is too much.
    io::stdin().take(MAX_EVENT_BYTES as u64 + 1).read_to_end(&mut bytes).context("standard input")?;
    check_size(&bytes)?;
    Ok(bytes)
}

/// Refuses what was cut because it is too much: it would be bad JSON for whoever looks at it.
fn check_size(read: &[u8]) -> anyhow::Result<()> {
    if read.len() <= MAX_EVENT_BYTES {
        return Ok(());
    }
    let limit = format!("an event has at most {MAX_EVENT_BYTES} bytes as JSON, and more was read");
    Err(Usage(format!("{limit}: carry large data by reference")).into())
}

/// Publishes each line as it comes; those that come together, together.
async fn lines(common: &Common, cluster: &Cluster, bus: &Bus, command: &Emit) -> anyhow::Result<()> {
    let mut input = read_lines();
    let mut number = 0_usize;
    let mut patience = TAKEOVER_PATIENCE;
    loop {
        let mut batch = Vec::new();
        let mut bad = None;
        while batch.len() < BATCH {
            let next = match batch.is_empty() {
                true => input.recv().await,
                // A line that is late is the first of the next batch.
                false => match timeout(LULL, input.recv()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            let Some(line) = next.transpose().context("standard input")? else { break };
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event = || if command.cloudevent { whole(&line) } else { made(command, Some(&line)) };
            match check_size(line.trim_ascii_end()).and_then(|()| event()) {
                Ok(event) => batch.push(event),
                Err(error) => {
                    let text = format!("line {number} of standard input: {error}");
                    bad = Some(Usage(text));
                    break;
                }
            }
        }
        if batch.is_empty() && bad.is_none() {
            return Ok(());
        }
        let delay = command.delay.unwrap_or_default();
        for row in publish(cluster, bus, batch, delay, patience).await? {
            let text = if common.json { serde_json::to_string(&row)? } else { row.text() };
            output::write(format!("{text}\n").as_bytes())?;
        }
        patience = FLOW_PATIENCE;
        // What came before it is published, and printed so.
        if let Some(bad) = bad {
            return Err(bad.into());
        }
    }
}

/// The lines of standard input, read by a thread of its own, which ends with the process.
fn read_lines() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (lines, to_publish) = mpsc::channel(BATCH);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            // One that is longer is cut here, and refused for its size.
            let read = input.by_ref().take(MAX_EVENT_BYTES as u64 + 2).read_until(b'\n', &mut line);
            match read {
                Ok(0) => return,
                Ok(_) if lines.blocking_send(Ok(line)).is_err() => return,
                Ok(_) => {}
                Err(error) => return drop(lines.blocking_send(Err(error))),
            }
        }
    });
    to_publish
}

async fn publish(
    cluster: &Cluster,
    bus: &Bus,
    events: Vec<CloudEvent>,
    delay: Duration,
    patience: Duration,
) -> anyhow::Result<Vec<Row>> {
    let kept = bus.publish(&events, delay, patience).await.map_err(|error| match error {
        PublishError::Event(error) => misuse(error),
        PublishError::Refused(status) => unsure(cluster.explain(*status), &events),
    })?;
    let row = |(event, kept): (CloudEvent, KeptEvent)| Row {
        id: event.id().to_owned(),
        position: kept.position,
        repeated: kept.repeated,
        due_at_ms: (kept.due_at_ms > 0).then_some(kept.due_at_ms),
    };
    Ok(events.into_iter().zip(kept).map(row).collect())
}

/// Where it is not known whether events are published, says how they are published again: once, whatever happened, for the bus
/// knows them by source and id.
fn unsure(error: anyhow::Error, events: &[CloudEvent]) -> anyhow::Error {
    if !is_unclear(&error) {
        return error;
    }
    error.context(match events {
        [event] => format!(
            "whether the event is published is not known: again, and only once, with --source {:?} --id {}",
            event.source(),
            event.id()
        ),
        events => {
            format!("whether these {} events, or some of them, are published is not known", events.len())
        }
    })
}

fn whole(json: &[u8]) -> anyhow::Result<CloudEvent> {
    CloudEvent::from_json(json).map_err(misuse)
}

/// An event as the flags say, with this data.
fn made(command: &Emit, data: Option<&[u8]>) -> anyhow::Result<CloudEvent> {
    let source = command.source.clone().unwrap_or_else(|| {
        let name: String = operator::name().split_whitespace().collect::<Vec<_>>().join("-");
        format!("/operator/{name}")
    });
    let mut event = CloudEvent::new(source, command.topic.clone().unwrap_or_default());
    if let Some(id) = &command.id {
        event = event.with_id(id);
    }
    if let Some(subject) = &command.subject {
        event = event.with_subject(subject);
    }
    for extension in &command.extension {
        let (name, value) = extension
            .split_once('=')
            .ok_or_else(|| Usage(format!("--extension {extension:?}: write NAME=VALUE")))?;
        event = event.with_extension(name, Extension::Text(value.to_owned()));
    }
    if let Some(data) = data.filter(|data| !data.trim_ascii().is_empty()) {
        let content_type = command.content_type.as_deref().unwrap_or("application/json");
        event = event.with_data(content_type, carried(content_type, data)?);
    }
    // Checked before anything is connected.
    event.to_json().map_err(misuse)?;
    Ok(event)
}

/// JSON as it is, other text as a string, anything else as bytes.
fn carried(content_type: &str, data: &[u8]) -> anyhow::Result<EventData> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type == "application/json" || media_type.ends_with(JSON_SUFFIX) {
        let json: Box<RawValue> = serde_json::from_slice(data.trim_ascii()).map_err(|error| {
            Usage(format!(
                "what the event carries is no JSON: {error}; for text say --content-type text/plain"
            ))
        })?;
        return Ok(EventData::Json(json));
    }
    match std::str::from_utf8(data) {
        Ok(text) => Ok(EventData::json(&text.trim_end_matches('\n'))?),
        Err(_) => Ok(EventData::Binary(data.to_vec())),
    }
}

fn misuse(error: EventError) -> anyhow::Error {
    Usage(error.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carries(content_type: &str, data: &[u8]) -> String {
        let event =
            CloudEvent::new("/test", "a").with_data(content_type, carried(content_type, data).unwrap());
        String::from_utf8(event.to_json().unwrap()).unwrap()
    }

    #[test]
    fn what_was_cut_is_told_to_be_too_much() {
        assert!(check_size(&vec![b' '; MAX_EVENT_BYTES]).is_ok());
        let error = check_size(&vec![b' '; MAX_EVENT_BYTES + 1]).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("by reference"), "{error}");
    }

    #[test]
    fn data_is_json_text_or_bytes() {
        assert!(carries("application/json", b" {\"a\": 1.0}\n").ends_with("\"data\":{\"a\": 1.0}}"));
        assert!(carries("application/problem+json; charset=utf-8", b"1").ends_with("\"data\":1}"));
        assert!(carries("text/plain", b"a \"word\"\n").ends_with("\"data\":\"a \\\"word\\\"\"}"));
        assert!(carries("image/png", b"\xff\x00").ends_with("\"data_base64\":\"/wA=\"}"));
        let error = carried("application/json", b"{\"a\" 1}").unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("line 1 column 6"), "{error}");
    }
}
