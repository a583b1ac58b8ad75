//! Tells the server behind a side-car which keys it has lost, and asks it for those that it shall give up.

use std::time::Duration;

use protoplex_wire::follow::Link;
use protoplex_wire::holder::Lost;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep};

use crate::output;

/// A server has so long to give up what it is asked for: less than the seed waits for it.
const TIMEOUT: Duration = Duration::from_millis(800);
/// Keys in one message of what is lost.
const MAX_LOST: usize = 1_000;
/// From one batch of a drain to the next.
const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// A key at an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) key: String,
    pub(super) epoch: u64,
}

/// What a server may say of what it was asked for; nothing is: it has given up all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    kept: Vec<Key>,
}

/// Where the server takes notice.
#[derive(Debug, Clone)]
pub(super) struct Notify {
    url: Url,
    client: reqwest::Client,
}

impl Notify {
    pub(super) fn new(url: Url, client: reqwest::Client) -> Self {
        Self { url, client }
    }

    /// Has the server end what it serves of these keys, and gives up those of which it says so.
    pub(super) async fn ask_for(&self, link: &Link, keys: Vec<Key>, idle: bool) {
        if keys.is_empty() {
            return;
        }
        match self.post(&json!({ "yield": { "keys": keys, "idle": idle } })).await {
            Ok(Answer { kept }) => {
                let given_up = keys.into_iter().filter(|key| !kept.contains(key));
                link.release(given_up.map(|Key { key, epoch }| (key, epoch)));
            }
            Err(reason) => {
                output::tell(&format!(
                    "the server keeps {} keys that it was asked for: {reason}",
                    keys.len()
                ));
            }
        }
    }

    /// Asks for all keys, bit by bit over this time: the member gets no others.
    pub(super) async fn ask_for_all(&self, link: &Link, over: Duration) {
        link.drain();
        let until = Instant::now() + over;
        while Instant::now() < until {
            let mut keys: Vec<_> = link.owned().into_iter().map(|(key, epoch)| Key { key, epoch }).collect();
            if keys.is_empty() {
                return;
            }
            let left = until.saturating_duration_since(Instant::now()).max(BATCH_PAUSE);
            let part = BATCH_PAUSE.as_secs_f64() / left.as_secs_f64();
            keys.truncate((keys.len() as f64 * part).ceil() as usize);
            self.ask_for(link, keys, false).await;
            sleep(BATCH_PAUSE).await;
        }
    }

    /// Tells what is the server's no more, in its order, until no more can be lost. One that doesn't hear it finds out by the
    /// epochs of requests.
    pub(super) async fn tell_lost(self, mut lost: UnboundedReceiver<Lost>) {
        while let Some(first) = lost.recv().await {
            let more = std::iter::from_fn(|| lost.try_recv().ok());
            let all: Vec<_> = std::iter::once(first).chain(more).collect();
            for message in messages(&all) {
                if let Err(reason) = self.post(&message).await {
                    output::tell(&format!("the server was not told what it has lost: {reason}"));
                }
            }
        }
    }

    async fn post(&self, message: &Value) -> Result<Answer, String> {
        let request = self.client.post(self.url.clone()).timeout(TIMEOUT);
        let request = request.header(CONTENT_TYPE, "application/json").body(message.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = answer.bytes().await.map_err(|error| error.to_string())?;
        if body.trim_ascii().is_empty() {
            return Ok(Answer::default());
        }
        serde_json::from_slice(&body).map_err(|error| format!("its answer is no JSON with `kept`: {error}"))
    }
}

/// Who has lost all need not hear what it had lost before.
fn messages(lost: &[Lost]) -> Vec<Value> {
    let (mut all, mut keys) = (None, Vec::new());
    for lost in lost {
        match lost {
            Lost::Key { key, epoch } => keys.push(json!({ "key": key, "epoch": epoch })),
            Lost::All { epoch } => {
                all = Some(json!({ "lease_lost": { "epoch": epoch } }));
                keys.clear();
            }
        }
    }
    let revoked = keys.chunks(MAX_LOST).map(|keys| json!({ "revoked": { "keys": keys } }));
    all.into_iter().chain(revoked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_in_its_order_in_few_messages_and_nothing_from_before_all_was() {
        let key = |number: usize| Lost::Key { key: number.to_string(), epoch: number as u64 };
        let all = |epoch| Lost::All { epoch };
        assert!(messages(&[]).is_empty());
        let keys = json!([{"key": "1", "epoch": 1}, {"key": "2", "epoch": 2}]);
        assert_eq!(messages(&[key(1), key(2)]), [json!({"revoked": {"keys": keys}})]);
        let after =
            [json!({"lease_lost": {"epoch": 2}}), json!({"revoked": {"keys": [{"key": "3", "epoch": 3}]}})];
        assert_eq!(messages(&[key(1), all(1), key(2), all(2), key(3)]), after);
        let many: Vec<_> = (0..2 * MAX_LOST + 1).map(key).collect();
        let sizes: Vec<_> =
            messages(&many).iter().map(|it| it["revoked"]["keys"].as_array().unwrap().len()).collect();
        assert_eq!(sizes, [MAX_LOST, MAX_LOST, 1]);
    }
}
