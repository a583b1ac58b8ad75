//! The fields that the engine and the relay go by, told by their names once, when a head is read.

use crate::reserved;

/// What a field's name means to whoever passes a message on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing.
    Other,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Te,
    Upgrade,
    Expect,
    Date,
    XRequestId,
    TraceParent,
    TraceState,
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    Forwarded,
    XRealIp,
    /// Tells of the way, too ([`reserved`]): nobody but us may say it.
    Way,
    /// Another spelling of what we write or go by, which some servers take for it.
    Respelt,
    /// Meant for one connection only, whether `Connection` names it or not (RFC 9110 section 7.6.1).
    HopByHop,
}

impl Known {
    /// By a field's name, whatever its case.
    pub(crate) fn of(name: &[u8]) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            9 if is("forwarded") => Self::Forwarded,
            9 if is("x-real-ip") => Self::XRealIp,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            10 if is("tracestate") => Self::TraceState,
            11 if is("traceparent") => Self::TraceParent,
            12 if is("x-request-id") => Self::XRequestId,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::HopByHop,
            15 if is("x-forwarded-for") => Self::XForwardedFor,
            16 if is("x-forwarded-host") => Self::XForwardedHost,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::XForwardedProto,
            18 if is("proxy-authenticate") => Self::HopByHop,
            19 if is("proxy-authorization") => Self::HopByHop,
            _ if reserved::tells_the_way(name) => Self::Way,
            _ if reserved::is_respelt(name) => Self::Respelt,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_by_their_whole() {
        for (name, known) in [
            ("HOST", Known::Host),
            ("Content-length", Known::ContentLength),
            ("content_length", Known::Respelt),
            ("x-forwarded-For", Known::XForwardedFor),
            ("Forwarded", Known::Forwarded),
            ("X-Real-IP", Known::XRealIp),
            ("x_forwarded_for", Known::Way),
            ("x_real_ip", Known::Way),
            ("x-forwarded-port", Known::Way),
            ("Protoplex-Key", Known::Way),
            ("keep-alive", Known::HopByHop),
            ("TraceParent", Known::TraceParent),
            ("tracestate", Known::TraceState),
            ("trace-state", Known::Other),
            ("hosts", Known::Other),
            ("content-lengt", Known::Other),
            ("", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }
}
