//! What a node says of its link to the seeds: on its status page, in its metrics, and to who asks whether it is ready.
//!
//! A node goes on with what it knows while no seed leads, for as long as that takes, so it stays ready; but it says so. Only
//! one that a seed refuses, and that none has ever welcomed, is not ready.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protoplex_wire::clock::BootTime;
use protoplex_wire::join::Standing;
use serde::Serialize;

use crate::exposition::{Family, Kind};

/// As operators see it.
#[derive(Debug, Serialize)]
pub(crate) struct SeedPage {
    /// Whether a seed is reached, be it one that leads or not.
    reached: bool,
    /// Whether one is reached that leads.
    leads: bool,
    /// Where it is, or was last.
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    /// The term in which it leads, or led.
    term: u64,
    /// Since when none has led as far as this node knows: Unix time.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_ms: Option<u64>,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl SeedPage {
    pub(crate) fn new(standing: &Standing) -> Self {
        let lost = lost(standing);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // For people only: by the clock on the wall.
        let since = lost.and_then(|lost| SystemTime::now().checked_sub(lost));
        let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        Self {
            reached: standing.reached,
            leads: lost.is_none(),
            address: standing.seed.clone(),
            term: standing.term,
            lost_since_ms: since.map(millis),
            lost_ms: lost.map(millis),
            reason: if lost.is_some() { standing.why.clone() } else { String::new() },
        }
    }
}

fn lost(standing: &Standing) -> Option<Duration> {
    standing.lost_since.map(|since| BootTime::now().since(since))
}

/// For who asks whether the node is ready, in a line; nothing where a seed leads.
pub(crate) fn in_words(standing: &Standing) -> Option<String> {
    let seconds = lost(standing)?.as_secs();
    Some(if standing.is_stranger() {
        format!("refused by the seed: {}", standing.refusal)
    } else if !standing.refusal.is_empty() {
        format!("for {seconds} s refused by the seed: {}: going on with what is known", standing.refusal)
    } else if standing.reached {
        format!("for {seconds} s no seed has led: going on with what is known")
    } else {
        format!("for {seconds} s no seed has been reachable: going on with what is known")
    })
}

pub(crate) fn families(standing: &Standing) -> Vec<Family> {
    let lost = lost(standing);
    let family = |name, help, value: String| {
        let mut family = Family::new(name, Kind::Gauge, help);
        family.push("", String::new(), value);
        family
    };
    vec![
        family(
            "protoplex_seed_reachable",
            "Whether the node reaches a seed that leads.",
            u8::from(lost.is_none()).to_string(),
        ),
        family(
            "protoplex_seed_lost_seconds",
            "For how long the node has reached no seed that leads.",
            lost.unwrap_or_default().as_secs_f64().to_string(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_for_how_long_none_has_led_and_nothing_where_one_does() {
        let lost = Standing {
            why: "refused".to_owned(),
            ..Standing::new(BootTime::now() - Duration::from_secs(90))
        };
        assert_eq!(
            in_words(&lost).unwrap(),
            "for 90 s no seed has been reachable: going on with what is known"
        );
        let page = SeedPage::new(&lost);
        assert!(!page.leads && page.lost_ms.unwrap() >= 90_000 && page.reason == "refused");
        let idle = Standing { reached: true, idle: true, ..lost.clone() };
        assert!(in_words(&idle).unwrap().contains("no seed has led"));
        let led = Standing { reached: true, lost_since: None, welcomed: true, ..lost.clone() };
        assert_eq!(in_words(&led), None);
        let page = serde_json::json!(SeedPage::new(&led));
        assert_eq!(page, serde_json::json!({ "reached": true, "leads": true, "term": 0 }));

        let refused = Standing { refusal: "the name is taken".to_owned(), ..lost };
        assert!(refused.is_stranger());
        assert_eq!(in_words(&refused).unwrap(), "refused by the seed: the name is taken");
        let revoked = Standing { welcomed: true, ..refused };
        assert!(!revoked.is_stranger(), "it goes on with what it knows");
        assert_eq!(
            in_words(&revoked).unwrap(),
            "for 90 s refused by the seed: the name is taken: going on with what is known"
        );
    }
}
