//! The keys that have the most requests, of all followers together.

use std::collections::HashMap;
use std::time::Duration;

use metrics::gauge;
use protoplex_wire::clock::BootTime;
use protoplex_wire::proto;

use crate::ownership::LinkId;

/// What a follower said counts for so long.
const LIFE: Duration = Duration::from_secs(30);
/// The keys that are shown.
const SHOWN: usize = 32;

/// The metric shows so many, by their rank.
const MEASURED: usize = 10;
/// How often the metric is brought up to date.
const MEASURE_PAUSE: Duration = Duration::from_secs(5);

/// What each follower said last.
#[derive(Default)]
pub(crate) struct HotKeys {
    reports: HashMap<LinkId, (BootTime, proto::HotKeys)>,
    measured: BootTime,
}

/// One key, and the requests for it.
#[derive(Debug, PartialEq)]
pub(crate) struct HotKey {
    pub(crate) pool: String,
    pub(crate) key: String,
    pub(crate) requests_per_second: f64,
}

impl HotKeys {
    pub(crate) fn told(&mut self, link: LinkId, report: proto::HotKeys, now: BootTime) {
        self.reports.insert(link, (now, report));
    }

    pub(crate) fn forget(&mut self, link: LinkId) {
        self.reports.remove(&link);
    }

    /// Sets the metric, where that is due: keys have no names there, since those may be any.
    pub(crate) fn measure(&mut self, now: BootTime) {
        if now < self.measured + MEASURE_PAUSE {
            return;
        }
        self.measured = now;
        let mut rates = self.list(now).into_iter().map(|hot| hot.requests_per_second);
        for rank in 1..=MEASURED {
            let rate = rates.next().unwrap_or_default();
            gauge!("protoplex_seed_hot_key_requests_per_second", "rank" => rank.to_string()).set(rate);
        }
    }

    /// The hottest first.
    pub(crate) fn list(&self, now: BootTime) -> Vec<HotKey> {
        let mut rates: HashMap<(&str, &str), f64> = HashMap::new();
        let recent = self.reports.values().filter(|(at, _)| now.since(*at) < LIFE);
        for (_, report) in recent.filter(|(_, report)| report.period_ms > 0) {
            for hot in &report.keys {
                let rate = hot.requests as f64 * 1000.0 / f64::from(report.period_ms);
                *rates.entry((&hot.pool, &hot.key)).or_default() += rate;
            }
        }
        let hot = |((pool, key), rate): ((&str, &str), f64)| HotKey {
            pool: pool.to_owned(),
            key: key.to_owned(),
            requests_per_second: rate,
        };
        let mut keys: Vec<_> = rates.into_iter().map(hot).collect();
        keys.sort_by(|a, b| {
            let names = || (&a.pool, &a.key).cmp(&(&b.pool, &b.key));
            b.requests_per_second.total_cmp(&a.requests_per_second).then_with(names)
        });
        keys.truncate(SHOWN);
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(period_ms: u32, keys: &[(&str, u64)]) -> proto::HotKeys {
        let hot = |&(key, requests): &(&str, u64)| proto::HotKey {
            pool: "rooms".to_owned(),
            key: key.to_owned(),
            requests,
        };
        proto::HotKeys { period_ms, keys: keys.iter().map(hot).collect() }
    }

    #[test]
    fn what_all_followers_say_is_one_list_and_old_words_count_no_more() {
        let at = |seconds| BootTime::ZERO + Duration::from_secs(seconds);
        let mut hot = HotKeys::default();
        hot.told(1, report(10_000, &[("a", 100), ("b", 300)]), at(0));
        hot.told(2, report(5_000, &[("a", 200)]), at(10));
        hot.told(3, report(0, &[("c", 1_000_000)]), at(10));
        let rates = |hot: &HotKeys, now| {
            let keys = hot.list(now).into_iter();
            keys.map(|hot| (hot.key, hot.requests_per_second)).collect::<Vec<_>>()
        };
        assert_eq!(rates(&hot, at(11)), [("a".to_owned(), 50.0), ("b".to_owned(), 30.0)]);
        assert_eq!(rates(&hot, at(30)), [("a".to_owned(), 40.0)]);
        hot.forget(2);
        assert_eq!(rates(&hot, at(30)), []);
    }
}
