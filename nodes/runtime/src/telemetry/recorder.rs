//! Keeps this process's metrics. Unlike the recorders to be had it needs no upkeep: it grows with the number of series
//! alone, and does nothing unless asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Label, Metadata, SharedString, Unit,
};

use crate::exposition::{Family, Kind, labels};

/// Of one name. Beyond them new ones are not kept: labels must be bounded.
const SERIES: usize = 1_000;

/// Upper bounds of buckets: durations from a tenth of a millisecond to a minute.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];
/// Upper bounds of buckets: sizes from 256 bytes to 1 GiB.
const BYTES: [f64; 12] = [
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262144.0,
    1048576.0,
    4194304.0,
    16777216.0,
    67108864.0,
    268435456.0,
    1073741824.0,
];
/// Upper bounds of buckets: anything else.
const COUNTS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// The metrics of a process. Registering takes a lock, recording on a handle doesn't.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<BTreeMap<String, Registered>>);

#[derive(Debug)]
struct Registered {
    kind: Kind,
    help: String,
    series: HashMap<Key, Arc<Series>>,
}

/// The numbers of one series, as its kind uses them.
#[derive(Debug)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// The bits of a float.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

/// How many values were at most each of the bounds and over the one before; the last count is of those over all.
#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// The bits of a float.
    sum: AtomicU64,
}

impl Buckets {
    fn new(name: &str) -> Self {
        let bounds: &[f64] = match name {
            _ if name.ends_with("_seconds") => &SECONDS,
            _ if name.ends_with("_bytes") => &BYTES,
            _ => &COUNTS,
        };
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        GaugeFn::increment(&self.sum, value);
    }
}

impl Series {
    fn new(kind: Kind, name: &str) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Arc::default()),
            Kind::Gauge => Self::Gauge(Arc::default()),
            Kind::Histogram => Self::Histogram(Arc::new(Buckets::new(name))),
        }
    }

    fn show(&self, key: &Key, family: &mut Family) {
        let pairs: Vec<_> = key.labels().map(|label: &Label| (label.key(), label.value())).collect();
        match self {
            Self::Counter(count) => family.push("", labels(pairs), count.load(Ordering::Relaxed)),
            Self::Gauge(bits) => {
                family.push("", labels(pairs), float(f64::from_bits(bits.load(Ordering::Relaxed))))
            }
            Self::Histogram(buckets) => {
                let mut total = 0;
                let bounds = buckets.bounds.iter().copied().chain([f64::INFINITY]).map(float);
                for (count, bound) in buckets.counts.iter().zip(bounds) {
                    total += count.load(Ordering::Relaxed);
                    family.push(
                        "_bucket",
                        labels(pairs.iter().copied().chain([("le", bound.as_str())])),
                        total,
                    );
                }
                let sum = f64::from_bits(buckets.sum.load(Ordering::Relaxed));
                family.push("_sum", labels(pairs.iter().copied()), float(sum));
                family.push("_count", labels(pairs), total);
            }
        }
    }
}

/// A number as Prometheus writes it.
fn float(value: f64) -> String {
    if value == f64::INFINITY {
        "+Inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-Inf".to_owned()
    } else {
        value.to_string()
    }
}

impl Recorder {
    /// All that was recorded so far.
    pub(super) fn gather(&self) -> Vec<Family> {
        let mut families = Vec::new();
        for (name, registered) in &*self.families() {
            let mut family = Family::new(name, registered.kind, &registered.help);
            for (key, series) in &registered.series {
                series.show(key, &mut family);
            }
            families.push(family);
        }
        families
    }

    fn families(&self) -> MutexGuard<'_, BTreeMap<String, Registered>> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, name: &KeyName, kind: Kind, help: SharedString) {
        let mut families = self.families();
        let family = Registered { kind, help: String::new(), series: HashMap::new() };
        families.entry(name.as_str().to_owned()).or_insert(family).help = help.into_owned();
    }

    /// The series of this key; none where its name is of another kind, or has too many already.
    fn series(&self, key: &Key, kind: Kind) -> Option<Arc<Series>> {
        let mut families = self.families();
        if !families.contains_key(key.name()) {
            let family = Registered { kind, help: String::new(), series: HashMap::new() };
            families.insert(key.name().to_owned(), family);
        }
        let family = families.get_mut(key.name())?;
        if let Some(series) = family.series.get(key) {
            return (family.kind == kind).then(|| Arc::clone(series));
        }
        if family.kind != kind || family.series.len() >= SERIES {
            return None;
        }
        let series = Arc::new(Series::new(kind, key.name()));
        family.series.insert(key.clone(), Arc::clone(&series));
        Some(series)
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Counter, help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Gauge, help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Kind::Histogram, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, Kind::Counter).as_deref() {
            Some(Series::Counter(count)) => Counter::from_arc(Arc::clone(count)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, Kind::Gauge).as_deref() {
            Some(Series::Gauge(bits)) => Gauge::from_arc(Arc::clone(bits)),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, Kind::Histogram).as_deref() {
            Some(Series::Histogram(buckets)) => Histogram::from_arc(Arc::clone(buckets)),
            _ => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests;
