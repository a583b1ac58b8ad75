//! Brings spans to a collector, from a thread of its own: whoever has one to give never waits.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use metrics::{Counter, counter, describe_counter};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter as Otlp, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

use super::{Kind, Sampling, Settings, Span, TelemetryError, Value};

/// Spans that wait; any more are dropped.
const QUEUE: usize = 4096;
/// So many go at once, without waiting for more.
const BATCH: usize = 512;
/// Spans wait for others so long at most.
const INTERVAL: Duration = Duration::from_secs(1);
/// For the collector to take a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is left at the end of a process is given up after so long: less than its parent waits for it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Below the collector's base address (the OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "v1/traces";

const DROPPED: &str = "protoplex_trace_spans_dropped_total";
const EXPORTED: &str = "protoplex_trace_spans_exported_total";

/// The way of this process's spans to the collector.
pub struct Exporter {
    sampling: Sampling,
    spans: SyncSender<Span>,
    shared: Arc<Shared>,
    thread: Thread,
    dropped: Counter,
    finished: Mutex<Receiver<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    ending: AtomicBool,
}

impl Exporter {
    /// Where a collector is configured, the thread that brings it spans.
    pub(super) fn start(
        settings: &Settings,
        node: &str,
        child: u32,
        secret: &[u8],
    ) -> Result<Option<Self>, TelemetryError> {
        let Some(collector) = &settings.otlp else { return Ok(None) };
        describe_counter!(DROPPED, "Spans that were not exported: the collector is away or too slow.");
        describe_counter!(EXPORTED, "Spans that the collector has taken.");
        let failed = |reason: &dyn fmt::Display| TelemetryError::Trace {
            collector: collector.clone(),
            reason: reason.to_string(),
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let (spans, waiting) = sync_channel(QUEUE);
        let (done, finished) = sync_channel(1);
        let (shared, dropped) = (Arc::<Shared>::default(), counter!(DROPPED));
        let courier = Courier {
            otlp: otlp(settings, collector, node, child).map_err(|error| failed(&*error))?,
            collector: collector.clone(),
            scope: InstrumentationScope::builder("protoplex").with_version(env!("CARGO_PKG_VERSION")).build(),
            spans: waiting,
            shared: Arc::clone(&shared),
            is_away: false,
            dropped: dropped.clone(),
            exported: counter!(EXPORTED),
        };
        let thread = thread::Builder::new().name("traces".to_owned());
        let thread = thread.spawn(move || courier.run(&runtime, &done)).map_err(|error| failed(&error))?;
        let (sampling, thread) = (Sampling::of(settings, secret), thread.thread().clone());
        Ok(Some(Self { sampling, spans, shared, thread, dropped, finished: Mutex::new(finished) }))
    }

    /// Which requests are to be exported.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Takes a span, unless too many wait already. Doesn't wait.
    pub fn push(&self, span: Span) {
        // Counted first, so that it can't be taken back before.
        let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if self.spans.try_send(span).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.increment(1);
        } else if waiting == BATCH {
            self.thread.unpark();
        }
    }

    /// Has what waits exported, as far as that is possible within [`FINISH_TIMEOUT`]. Blocking.
    pub(super) fn finish(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.thread.unpark();
        // No code panics while it holds this lock.
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        if finished.recv_timeout(FINISH_TIMEOUT).is_err() {
            warn!("the last spans were not exported in time");
        }
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

/// How spans are written and sent.
fn otlp(
    settings: &Settings,
    collector: &str,
    node: &str,
    child: u32,
) -> Result<Otlp, Box<dyn std::error::Error>> {
    // Connections are not kept: between two batches nobody would look after them.
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(EXPORT_TIMEOUT)
        .pool_max_idle_per_host(0)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut otlp = Otlp::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(format!("{}/{PATH}", collector.trim_end_matches('/')))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_TIMEOUT)
        // The next ones wait meanwhile, and the end of the process does.
        .with_retry_policy(RetryPolicy::disabled())
        .build()?;
    let resource = Resource::builder_empty()
        .with_service_name(settings.service_name.clone())
        .with_attribute(KeyValue::new("service.instance.id", format!("{node}:{child}")))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    otlp.set_resource(&resource);
    Ok(otlp)
}

/// The thread's own part.
struct Courier {
    otlp: Otlp,
    collector: String,
    scope: InstrumentationScope,
    spans: Receiver<Span>,
    shared: Arc<Shared>,
    /// The last batch could not be exported.
    is_away: bool,
    dropped: Counter,
    exported: Counter,
}

impl Courier {
    /// Exports batches until the end is wished for, then what is left.
    fn run(mut self, runtime: &Runtime, done: &SyncSender<()>) {
        loop {
            thread::park_timeout(INTERVAL);
            let ending = self.shared.ending.load(Ordering::Acquire);
            loop {
                let batch: Vec<_> = self.spans.try_iter().take(BATCH).collect();
                if batch.is_empty() {
                    break;
                }
                self.shared.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
                runtime.block_on(self.export(batch));
            }
            if ending {
                // Nobody may wait for it any more.
                let _ = done.try_send(());
                return;
            }
        }
    }

    async fn export(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let batch = batch.into_iter().map(|span| self.data(span)).collect();
        match self.otlp.export(batch).await {
            Ok(()) => {
                self.exported.increment(count);
                if std::mem::take(&mut self.is_away) {
                    info!(collector = self.collector, "spans are exported again");
                }
            }
            Err(error) => {
                self.dropped.increment(count);
                if !std::mem::replace(&mut self.is_away, true) {
                    warn!(collector = self.collector, %error, "spans can't be exported and are dropped");
                }
            }
        }
    }

    fn data(&self, span: Span) -> SpanData {
        let trace = TraceId::from_hex(digits(&span.trace)).unwrap_or(TraceId::INVALID);
        let id = |digits_of: &[u8]| SpanId::from_hex(digits(digits_of)).unwrap_or(SpanId::INVALID);
        let attributes = span.attributes.into_iter().map(|(name, value)| match value {
            Value::Word(word) => KeyValue::new(name, word),
            Value::Text(text) => KeyValue::new(name, text),
            Value::Number(number) => KeyValue::new(name, number),
        });
        SpanData {
            span_context: SpanContext::new(trace, id(&span.id), TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| id(&parent)),
            parent_span_is_remote: span.kind == Kind::Server && span.parent.is_some(),
            span_kind: match span.kind {
                Kind::Server => SpanKind::Server,
                Kind::Client => SpanKind::Client,
            },
            name: span.name.into(),
            start_time: span.start,
            end_time: span.end,
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: if span.failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// Digits are ASCII.
fn digits(id: &[u8]) -> &str {
    str::from_utf8(id).unwrap_or_default()
}

#[cfg(test)]
mod tests;
