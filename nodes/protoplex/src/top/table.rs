//! Two looks at the nodes make a table: what each process is, what it uses and how fast it does what.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::roster::Standing;
use super::sample::{Page, Sample, Usage};
use crate::cli::Sort;
use crate::output::{columns, plural};
use crate::state::Condition;
use crate::units::{show_size, show_uptime};

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) overview: Overview,
    pub(super) rows: Vec<Row>,
}

/// The whole cluster, in a line.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Overview {
    pub(super) nodes: usize,
    pub(super) ready: usize,
    /// Percent of one processor.
    pub(super) cpu: f64,
    pub(super) memory_bytes: u64,
    pub(super) connections: u64,
    /// A second.
    pub(super) requests: f64,
    pub(super) keys: u64,
    pub(super) leader: Option<String>,
    /// The term of the seed that leads, be it looked at or not.
    pub(super) term: Option<u64>,
}

/// One process: a node's parent, or a child of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) node: String,
    pub(super) child: Option<u32>,
    pub(super) kind: String,
    /// As in `status`; of one that doesn't answer LOST where the seed has lost it, and UNKNOWN where no seed tells of it.
    pub(super) state: String,
    /// For how long it has not been heard of, where it doesn't answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) silent_ms: Option<u64>,
    pub(super) pid: Option<u32>,
    pub(super) uptime_ms: u64,
    pub(super) restarts: u32,
    /// Percent of one processor, since the look before.
    pub(super) cpu: Option<f64>,
    pub(super) memory_bytes: u64,
    pub(super) files: u64,
    pub(super) connections: Option<u64>,
    /// A second, since the look before.
    pub(super) requests: Option<f64>,
    /// What is particular to its kind.
    pub(super) note: String,
}

/// Between the parts of the overview.
pub(super) const BETWEEN: &str = " · ";

/// The heads of the columns of [`Row::cells`].
pub(super) const HEAD: [&str; 10] =
    ["PROCESS", "STATE", "PID", "UPTIME", "CPU%", "MEMORY", "FILES", "CONN", "REQ/S", ""];

/// Of a node that doesn't answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absence {
    pub(super) standing: Standing,
    /// Since it was heard of last.
    pub(super) time: Duration,
}

/// A node that doesn't answer.
pub(super) fn absent(node: &str, kind: &str, Absence { standing, time }: Absence) -> Row {
    let (state, what) = match standing {
        Standing::Here => ("SILENT", "no answer"),
        Standing::Lost => ("LOST", "gone"),
        Standing::Unknown => ("UNKNOWN", "not heard of"),
    };
    Row {
        node: node.to_owned(),
        kind: kind.to_owned(),
        state: state.to_owned(),
        silent_ms: Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        note: format!("{what} for {}", show_uptime(time)),
        ..Row::default()
    }
}

/// A node's parent, then its children.
pub(super) fn rows(node: &str, kind: &str, now: &Sample, before: Option<&Sample>) -> Vec<Row> {
    let page = &now.page;
    let Page { draining, ready, reason, .. } = page;
    let condition = Condition { answers: true, draining: *draining, ready: *ready, reason };
    let state = condition.word(page.children.iter().map(|child| child.state.as_str()));
    let own = Row { node: node.to_owned(), kind: kind.to_owned(), ..Row::default() };
    let parent = Row {
        state: state.to_owned(),
        pid: Some(page.pid),
        uptime_ms: page.uptime_ms,
        note: if state == "WAITING" { reason.clone() } else { String::new() },
        ..own.clone()
    };
    let before_pid = |child: Option<u32>| {
        let page = &before?.page;
        match child {
            None => Some(page.pid),
            Some(index) => page.children.iter().find(|one| one.index == index)?.pid,
        }
    };
    let children = page.children.iter().map(|child| Row {
        child: Some(child.index),
        state: child.state.clone(),
        pid: child.pid,
        uptime_ms: child.uptime_ms,
        restarts: child.restarts,
        ..own.clone()
    });
    let mut rows: Vec<_> = std::iter::once(parent).chain(children).collect();
    for row in &mut rows {
        let Some(usage) = now.processes.get(&row.child) else { continue };
        // Another process has counters of its own.
        let same = before.filter(|_| before_pid(row.child) == row.pid);
        let past = same.and_then(|before| Some((before.processes.get(&row.child)?, now.at - before.at)));
        row.measure(usage, past);
    }
    rows
}

impl Row {
    fn measure(&mut self, usage: &Usage, past: Option<(&Usage, Duration)>) {
        let rate = |now: f64, before: f64, time: Duration| {
            (!time.is_zero()).then(|| ((now - before) / time.as_secs_f64()).max(0.0))
        };
        self.memory_bytes = usage.memory_bytes;
        self.files = usage.files;
        self.connections = usage.connections;
        if let Some((before, time)) = past {
            self.cpu = rate(usage.cpu_seconds, before.cpu_seconds, time).map(|cores| cores * 100.0);
            self.requests =
                usage.requests.and_then(|now| rate(now, before.requests.unwrap_or_default(), time));
        }
        let notes = [
            Some(std::mem::take(&mut self.note)).filter(|note| !note.is_empty()),
            usage.leads.map(|leads| if leads { "leads" } else { "waits to lead" }.to_owned()),
            // Of a seed that led once, what it knew then.
            usage.keys.filter(|_| usage.leads != Some(false)).map(|keys| plural(keys as usize, "key")),
            usage.subscribers.filter(|count| *count > 0).map(|count| plural(count as usize, "subscriber")),
            (self.restarts > 0).then(|| plural(self.restarts as usize, "restart")),
        ];
        self.note = notes.into_iter().flatten().collect::<Vec<_>>().join(", ");
    }

    /// `proxy-1`, and below it `proxy-1:0`.
    pub(super) fn name(&self) -> String {
        match self.child {
            Some(child) => format!("{}:{child}", self.node),
            None => self.node.clone(),
        }
    }

    /// As a person reads it, below [`HEAD`].
    pub(super) fn cells(&self) -> [String; HEAD.len()] {
        let some = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        let there = self.pid.is_some();
        let if_there = |text: String| if there { text } else { "-".to_owned() };
        [
            self.name(),
            self.state.clone(),
            some(self.pid.map(|pid| pid.to_string())),
            if_there(show_uptime(Duration::from_millis(self.uptime_ms))),
            some(self.cpu.map(|cpu| format!("{cpu:.1}"))),
            if_there(show_size(self.memory_bytes)),
            if_there(self.files.to_string()),
            some(self.connections.map(|count| count.to_string())),
            some(self.requests.map(|rate| format!("{rate:.0}"))),
            self.note.clone(),
        ]
    }
}

impl Overview {
    /// Of all processes, and of so many nodes.
    pub(super) fn of(
        rows: &[Row],
        nodes: usize,
        samples: &BTreeMap<String, Sample>,
        term: Option<u64>,
    ) -> Self {
        let ready = samples.values().filter(|sample| sample.page.ready && !sample.page.draining).count();
        let solo = |sample: &Sample| sample.processes.get(&None).cloned().unwrap_or_default();
        let leader = samples.iter().find(|(_, sample)| solo(sample).leads == Some(true));
        // The sum of none would be -0.
        let sum = |of: fn(&Row) -> Option<f64>| rows.iter().filter_map(of).fold(0.0, |sum, one| sum + one);
        Self {
            nodes,
            ready,
            cpu: sum(|row| row.cpu),
            memory_bytes: rows.iter().map(|row| row.memory_bytes).sum(),
            connections: rows.iter().filter_map(|row| row.connections).sum(),
            requests: sum(|row| row.requests),
            keys: leader.and_then(|(_, sample)| solo(sample).keys).unwrap_or_default(),
            leader: leader.map(|(node, _)| node.clone()),
            term,
        }
    }

    /// In parts, the weightiest first.
    pub(super) fn parts(&self) -> [String; 6] {
        let leader = match (&self.leader, self.term) {
            (Some(leader), _) => format!("{leader} leads, {}", plural(self.keys as usize, "key")),
            (None, Some(term)) => format!("a seed leads, in term {term}"),
            (None, None) => "no seed leads".to_owned(),
        };
        [
            leader,
            format!("{} of {} ready", self.ready, plural(self.nodes, "node")),
            format!("{:.0} req/s", self.requests),
            plural(self.connections as usize, "connection"),
            format!("CPU {:.0} %", self.cpu),
            show_size(self.memory_bytes),
        ]
    }

    /// In a line.
    pub(super) fn text(&self) -> String {
        self.parts().join(BETWEEN)
    }
}

impl Table {
    /// By name children stand below their nodes; by anything else the greatest is first.
    pub(super) fn sort(&mut self, by: Sort, is_reversed: bool) {
        let name = |one: &Row, other: &Row| (&one.node, one.child).cmp(&(&other.node, other.child));
        let number = |of: fn(&Row) -> f64| {
            move |one: &Row, other: &Row| of(other).total_cmp(&of(one)).then_with(|| name(one, other))
        };
        let order: &dyn Fn(&Row, &Row) -> Ordering = match by {
            Sort::Name => &name,
            Sort::Cpu => &number(|row| row.cpu.unwrap_or(-1.0)),
            Sort::Memory => &number(|row| row.memory_bytes as f64),
            Sort::Connections => &number(|row| row.connections.map_or(-1.0, |count| count as f64)),
            Sort::Requests => &number(|row| row.requests.unwrap_or(-1.0)),
        };
        self.rows.sort_by(|one, other| if is_reversed { order(other, one) } else { order(one, other) });
    }

    /// All of it, for a terminal that is not drawn upon.
    pub(super) fn text(&self) -> String {
        let head = HEAD.map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        format!("{}\n\n{}", self.overview.text(), columns(&rows))
    }
}

#[cfg(test)]
mod tests;
