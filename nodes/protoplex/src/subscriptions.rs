//! `protoplex subscriptions`: who has subscribed under which name, and how far they have come.

use protoplex_wire::cloud_event::CloudEvent;
use protoplex_wire::proto::{
    DeadEvent, ListDeadEventsRequest, ListSubscriptionsRequest, RemoveSubscriptionRequest, SubscriptionList,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::cli::{Common, Subscriptions};
use crate::cluster::Cluster;
use crate::output::{columns, plural, print};
use crate::units::show_time;

#[derive(Serialize)]
struct List {
    /// "seed" or "nats".
    carrier: String,
    head: u64,
    earliest: u64,
    subscriptions: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    patterns: Vec<String>,
    position: u64,
    subscribers: u32,
    dead: u64,
    created_at_ms: i64,
}

#[derive(Serialize)]
struct DeadRow {
    position: u64,
    attempts: u32,
    died_at_ms: i64,
    event: Option<Box<RawValue>>,
    #[serde(skip)]
    words: [String; 2],
}

/// Runs the command.
pub(crate) async fn run(common: &Common, command: Subscriptions) -> anyhow::Result<()> {
    let cluster = Cluster::find(common)?;
    let mut client = cluster.bus().await?.client();
    match command {
        Subscriptions::List => {
            let list = cluster.answer(client.list_subscriptions(ListSubscriptionsRequest {})).await?;
            print(common.json, &List::from(list), List::text)?;
        }
        Subscriptions::Remove { name } => {
            let request = RemoveSubscriptionRequest { name: name.clone() };
            cluster.answer(client.remove_subscription(request)).await?;
            print(common.json, &serde_json::json!({ "removed": name }), |_| format!("{name}: removed"))?;
        }
        Subscriptions::Dead { name, limit } => {
            let request = ListDeadEventsRequest { subscription: name, limit };
            let dead = cluster.answer(client.list_dead_events(request)).await?.events;
            let rows: Vec<_> = dead.into_iter().map(DeadRow::from).collect();
            print(common.json, &rows, |rows| dead_text(rows))?;
        }
    }
    Ok(())
}

impl From<SubscriptionList> for List {
    fn from(list: SubscriptionList) -> Self {
        let row = |it: protoplex_wire::proto::Subscription| Row {
            name: it.name,
            patterns: it.patterns,
            position: it.position,
            subscribers: it.subscribers,
            dead: it.dead,
            created_at_ms: it.created_at_ms,
        };
        Self {
            carrier: list.carrier,
            head: list.head,
            earliest: list.earliest,
            subscriptions: list.subscriptions.into_iter().map(row).collect(),
        }
    }
}

impl List {
    fn text(&self) -> String {
        let head =
            ["NAME", "PATTERNS", "POSITION", "BEHIND", "SUBSCRIBERS", "DEAD", "SINCE"].map(str::to_owned);
        let cells = self.subscriptions.iter().map(|row| {
            [
                row.name.clone(),
                row.patterns.join(" "),
                row.position.to_string(),
                self.head.saturating_sub(row.position).to_string(),
                row.subscribers.to_string(),
                row.dead.to_string(),
                show_time(row.created_at_ms),
            ]
        });
        let rows: Vec<_> = std::iter::once(head).chain(cells).collect();
        let kept = (self.head + 1).saturating_sub(self.earliest);
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        format!(
            "{}{} kept by {}, positions {} to {}\n",
            columns(&rows),
            plural(kept, "event"),
            self.carrier,
            self.earliest,
            self.head
        )
    }
}

impl From<DeadEvent> for DeadRow {
    fn from(dead: DeadEvent) -> Self {
        let event = CloudEvent::from_json(&dead.event).ok();
        let words = event.map(|event| [event.topic().to_owned(), event.id().to_owned()]).unwrap_or_default();
        let event = String::from_utf8(dead.event).ok().and_then(|text| RawValue::from_string(text).ok());
        Self { position: dead.position, attempts: dead.attempts, died_at_ms: dead.died_at_ms, event, words }
    }
}

fn dead_text(rows: &[DeadRow]) -> String {
    let head = ["POSITION", "ATTEMPTS", "PUT ASIDE", "TYPE", "ID"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let [topic, id] = row.words.clone();
        [row.position.to_string(), row.attempts.to_string(), show_time(row.died_at_ms), topic, id]
    });
    columns(&std::iter::once(head).chain(cells).collect::<Vec<_>>())
}
