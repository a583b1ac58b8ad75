//! What a node and its processes have measured, with what the kernel says of them.

use futures_util::future::join_all;

use super::{Body, Node};
use crate::exposition::{Exposition, Family, Kind, Measure};
use crate::seeds;
use crate::supervisor::Status;
use crate::{procfs, telemetry};

impl Node {
    /// The text of `/metrics`: what every process recorded, and what the kernel says of it.
    pub(crate) async fn metrics(&self) -> String {
        self.exposition().await.render()
    }

    /// The same as values: all whose names begin with one of these, or without any all.
    pub(crate) async fn measures(&self, prefixes: &[&str]) -> Vec<Measure> {
        self.exposition().await.measures(prefixes)
    }

    async fn exposition(&self) -> Exposition {
        let mut exposition = Exposition::default();
        exposition.add(telemetry::gather(), None);
        exposition.add(process_families(std::process::id()), None);
        let mut ready = Family::new("protoplex_node_ready", Kind::Gauge, "Whether the node takes traffic.");
        ready.push("", String::new(), u8::from(self.is_ready()));
        let mut drained = Family::new(
            "protoplex_node_drained_total",
            Kind::Counter,
            "What became of the work of children that were ended, and of their connections.",
        );
        for (what, count) in self.drained().iter() {
            drained.push("", format!("what=\"{what}\""), count);
        }
        exposition.add(vec![ready, drained], None);
        if let Some(standing) = &self.seeds {
            exposition.add(seeds::families(&standing.borrow()), None);
        }
        let processes = match &self.body {
            Body::Children(children) => children.processes(),
            Body::Solo(_) => Vec::new(),
        };
        let answers = join_all(processes.iter().map(|process| process.metrics())).await;
        let statuses = processes.iter().map(|process| process.now());
        for (index, (answer, status)) in answers.into_iter().zip(statuses).enumerate() {
            let child = Some(index as u32);
            exposition.add(answer, child);
            exposition.add(status.pid.map(process_families).unwrap_or_default(), child);
            exposition.add(life_families(&status), child);
        }
        exposition
    }
}

fn process_families(pid: u32) -> Vec<Family> {
    let Some(usage) = procfs::usage(pid) else {
        return Vec::new();
    };
    let memory =
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", usage.resident_bytes.to_string());
    let files = ("process_open_fds", Kind::Gauge, "Open file descriptors.", usage.open_files.to_string());
    let cpu =
        ("process_cpu_seconds_total", Kind::Counter, "Processor time used.", usage.cpu_seconds.to_string());
    families([memory, files, cpu])
}

fn life_families(status: &Status) -> Vec<Family> {
    let restarts = (
        "protoplex_child_restarts_total",
        Kind::Counter,
        "Times a child was started again.",
        status.restarts.to_string(),
    );
    let ready = (
        "protoplex_child_ready",
        Kind::Gauge,
        "Whether a child can serve.",
        u8::from(status.ready).to_string(),
    );
    families([restarts, ready])
}

fn families<const N: usize>(numbers: [(&str, Kind, &str, String); N]) -> Vec<Family> {
    let family = |(name, kind, help, value): (&str, Kind, &str, String)| {
        let mut family = Family::new(name, kind, help);
        family.push("", String::new(), value);
        family
    };
    numbers.into_iter().map(family).collect()
}
