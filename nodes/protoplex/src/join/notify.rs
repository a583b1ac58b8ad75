//! Tells the server behind a side-car which keys it has lost, and asks it for those that it shall give up.

use std::time::Duration;

use protoplex_wire::follow::Link;
use protoplex_wire::holder::Lost;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// A server has so long to give up what it is asked for: less than the seed waits for it.
const TIMEOUT: Duration = Duration::from_millis(800);
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
                eprintln!("the server keeps {} keys that it was asked for: {reason}", keys.len());
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

    /// Tells what is the server's no more. One that doesn't hear it finds out by the epochs of requests.
    pub(super) async fn tell_lost(&self, lost: Lost) {
        let message = match lost {
            Lost::Key(key) => json!({ "revoked": { "keys": [{ "key": key }] } }),
            Lost::All => json!({ "lease_lost": {} }),
        };
        if let Err(reason) = self.post(&message).await {
            eprintln!("the server was not told what it has lost: {reason}");
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
