//! What the proxy counts. The handles are made when a table is compiled, so a request only adds to them.

use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

const REQUESTS: &str = "protoplex_proxy_requests_total";
const UPSTREAM: &str = "protoplex_proxy_upstream_seconds";
const MISDIRECTED: &str = "protoplex_proxy_misdirected_total";
const LEFT_OUT: &str = "protoplex_proxy_members_left_out_total";
const RETRIES: &str = "protoplex_proxy_retries_total";

/// The meters of one handler.
pub(crate) struct Meters {
    /// 1xx to 5xx.
    classes: [Counter; 5],
    upstream: Histogram,
    /// 421 answers from members that did not own the key.
    pub(crate) misdirected: Counter,
    /// Requests sent to a second member after the first could not be reached, or to an owner asked for anew.
    pub(crate) retries: Counter,
    /// Members that were left out for a while, since they failed again and again.
    pub(crate) left_out: Counter,
}

impl Meters {
    /// Those of the handler of this name.
    pub(crate) fn of_handler(name: &str) -> Self {
        let class = |class: &'static str| counter!(REQUESTS, "handler" => name.to_owned(), "class" => class);
        Self {
            classes: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(class),
            upstream: histogram!(UPSTREAM, "handler" => name.to_owned()),
            misdirected: counter!(MISDIRECTED, "handler" => name.to_owned()),
            retries: counter!(RETRIES, "handler" => name.to_owned()),
            left_out: counter!(LEFT_OUT, "handler" => name.to_owned()),
        }
    }

    /// Counts an answer, whoever made it.
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(class) = self.classes.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            class.increment(1);
        }
    }

    /// Notes the time from sending a request upstream to the head of its answer.
    pub(crate) fn upstream_took(&self, time: Duration) {
        self.upstream.record(time);
    }
}

/// Tells the recorder what the metrics mean. Once a process.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "Requests by handler and class of status; handler \"\" where none matched.");
    describe_histogram!(
        UPSTREAM,
        Unit::Seconds,
        "From sending a request to a member to the head of its answer."
    );
    describe_counter!(
        MISDIRECTED,
        "Answers 421 from members that did not own the key at the epoch that was sent."
    );
    describe_counter!(
        LEFT_OUT,
        "Times that a member was left out for a while, since it failed again and again."
    );
    describe_counter!(
        RETRIES,
        "Requests sent a second time, to another member or to an owner asked for anew."
    );
}
