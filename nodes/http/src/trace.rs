//! The trace that a request is a part of: the client's, or one that begins here (W3C Trace Context, level 1).

use protoplex_runtime::telemetry::trace::{Exporter, Sampling, exporter};

use crate::head::{Fields, Known, RequestHead};

/// Where a request stands in its trace. All ids are kept as they are written: in hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    id: [u8; TRACE_DIGITS],
    /// The client's span; none where the trace begins here.
    parent: Option<[u8; SPAN_DIGITS]>,
    /// All that is random of a request: its first half names our span, its second half the one in which an upstream is
    /// asked, the whole a trace that begins here, and the request where it has no name yet.
    drawn: [u8; TRACE_DIGITS],
    sampled: bool,
}

const TRACE_DIGITS: usize = 32;
const SPAN_DIGITS: usize = 16;
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Version, trace, parent, flags.
const FIELD: &[u8; 55] = b"00-00000000000000000000000000000000-0000000000000000-00";
const TRACE_AT: usize = 3;
const PARENT_AT: usize = 36;
const FLAGS_AT: usize = 53;
/// Of all `tracestate` fields together: as much as everybody must be able to pass on (section 3.3.1.5).
const MAX_STATE_BYTES: usize = 512;

impl Trace {
    /// The trace that a sound `traceparent` names, else a new one.
    pub(crate) fn of(head: &RequestHead) -> Self {
        Self::sampled(head, exporter().map(Exporter::sampling))
    }

    /// Where traces are exported, whether this one is; else that goes on as the client says it.
    fn sampled(head: &RequestHead, sampling: Option<&Sampling>) -> Self {
        let drawn = draw();
        let mut given = head.fields.known(Known::TraceParent);
        let (id, parent, by_parent) = match (given.next().and_then(read), given.next()) {
            (Some((id, parent, sampled)), None) => (id, Some(parent), sampled),
            _ => (drawn, None, false),
        };
        let sampled = sampling.map_or(by_parent, |sampling| sampling.takes(&id, by_parent));
        Self { id, parent, drawn, sampled }
    }

    /// The trace's id, 32 digits.
    pub(crate) fn id(&self) -> &[u8; TRACE_DIGITS] {
        &self.id
    }

    /// The id of our span.
    pub(crate) fn span(&self) -> [u8; SPAN_DIGITS] {
        half(&self.drawn, 0)
    }

    /// The id of the span in which an upstream is asked.
    pub(crate) fn asking_span(&self) -> [u8; SPAN_DIGITS] {
        half(&self.drawn, SPAN_DIGITS)
    }

    /// The id of the client's span.
    pub(crate) fn parent(&self) -> Option<[u8; SPAN_DIGITS]> {
        self.parent
    }

    /// Whether it is exported, by us where we export any.
    pub(crate) fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// 32 digits that no other request has: those of the trace's id, where it begins here.
    pub(crate) fn drawn(&self) -> &[u8; TRACE_DIGITS] {
        &self.drawn
    }

    /// The `traceparent` of a request to an upstream.
    pub(crate) fn traceparent(&self) -> [u8; FIELD.len()] {
        let mut field = *FIELD;
        field[TRACE_AT..][..TRACE_DIGITS].copy_from_slice(&self.id);
        field[PARENT_AT..][..SPAN_DIGITS].copy_from_slice(&self.asking_span());
        field[FLAGS_AT + 1] = DIGITS[usize::from(self.sampled)];
        field
    }

    /// Whether `tracestate` goes on: with the trace that it belongs to, and while it is short.
    pub(crate) fn keeps_state(&self, fields: &Fields) -> bool {
        let states = fields.known(Known::TraceState);
        // With the comma by which the next one may be joined.
        self.parent.is_some() && states.map(|state| state.len() + 1).sum::<usize>() <= MAX_STATE_BYTES + 1
    }
}

/// 32 random digits, neither half of them all zeros.
fn draw() -> [u8; TRACE_DIGITS] {
    let random = rand::random::<u128>() | 1 << 64 | 1;
    let mut digits = [0; TRACE_DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(random.to_be_bytes()) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    digits
}

fn half(digits: &[u8; TRACE_DIGITS], from: usize) -> [u8; SPAN_DIGITS] {
    let mut half = [0; SPAN_DIGITS];
    half.copy_from_slice(&digits[from..from + SPAN_DIGITS]);
    half
}

type Read = ([u8; TRACE_DIGITS], [u8; SPAN_DIGITS], bool);

/// Trace, parent, and whether it is sampled (section 3.2). Of a later version the same four fields are read.
fn read(field: &[u8]) -> Option<Read> {
    let (known, more) = field.split_first_chunk::<{ FIELD.len() }>()?;
    let (version, flags) = (&known[..2], &known[FLAGS_AT..]);
    let ends = more.is_empty() || (version != b"00" && more.starts_with(b"-"));
    let dashes = [TRACE_AT, PARENT_AT, FLAGS_AT].iter().all(|at| known[at - 1] == b'-');
    if !ends || !dashes || version == b"ff" || !is_hex(version) || !is_hex(flags) {
        return None;
    }
    let id = *known[TRACE_AT..].first_chunk().filter(|id| is_id(*id))?;
    let parent = *known[PARENT_AT..].first_chunk().filter(|id| is_id(*id))?;
    // The one flag that there is.
    let sampled = DIGITS.iter().position(|digit| *digit == flags[1]).is_some_and(|bits| bits & 1 == 1);
    Some((id, parent, sampled))
}

fn is_id(digits: &[u8]) -> bool {
    is_hex(digits) && digits.iter().any(|digit| *digit != b'0')
}

fn is_hex(digits: &[u8]) -> bool {
    digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
