//! The rules that a request's framing can break, and the answer to each.

use http::StatusCode;

use crate::problem::Problem;

macro_rules! rules {
    ($($rule:ident $status:ident $kind:literal $detail:literal,)*) => {
        /// A rule of HTTP/1.1 framing that a client has broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Rule { $(#[doc = $detail] $rule,)* }

        impl Rule {
            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$rule => StatusCode::$status,)* }
            }

            /// The rule's name for programs.
            pub(crate) fn kind(self) -> &'static str {
                match self { $(Self::$rule => $kind,)* }
            }

            /// The rule's text for people.
            pub(crate) fn detail(self) -> &'static str {
                match self { $(Self::$rule => $detail,)* }
            }
        }
    };
}

rules! {
    HeadTooLarge REQUEST_HEADER_FIELDS_TOO_LARGE "head-too-large"
        "The request's head, or its trailer section, is longer than this server takes.",
    TooManyHeaders REQUEST_HEADER_FIELDS_TOO_LARGE "too-many-headers"
        "The request has more header or trailer fields than this server takes.",
    HeadTooSlow REQUEST_TIMEOUT "head-too-slow"
        "The request's head did not arrive in time.",
    BodyTooSlow REQUEST_TIMEOUT "body-too-slow"
        "Nothing of the request's body arrived for too long.",
    UnsupportedVersion HTTP_VERSION_NOT_SUPPORTED "unsupported-version"
        "This connection speaks HTTP/1.1 and HTTP/1.0.",
    BadVersion BAD_REQUEST "bad-version"
        "The request line must end with a space and an HTTP version.",
    BadMethod BAD_REQUEST "bad-method"
        "The request line must begin with a method of letters, digits and !#$%&'*+-.^_`|~, followed by one space.",
    BadTarget BAD_REQUEST "bad-target"
        "The request's target is not a path, an http URL, or * with OPTIONS; other characters must be percent-encoded.",
    BadStatus BAD_GATEWAY "bad-status"
        "A status line must be an HTTP version and a status from 100 to 599, followed by one space.",
    BareCr BAD_REQUEST "bare-cr"
        "A carriage return must be followed by a line feed.",
    BareLf BAD_REQUEST "bare-lf"
        "A line must end with a carriage return and a line feed.",
    ObsFold BAD_REQUEST "folded-line"
        "A header line must not begin with a blank.",
    BadFieldName BAD_REQUEST "bad-field-name"
        "A header line must begin with a name of letters, digits and !#$%&'*+-.^_`|~, followed by a colon.",
    SpaceBeforeColon BAD_REQUEST "space-before-colon"
        "There must be no blank between a header's name and its colon.",
    BadFieldValue BAD_REQUEST "bad-field-value"
        "A header's value must not contain control characters.",
    ContentLengthTwice BAD_REQUEST "content-length-twice"
        "A message must not have more than one Content-Length.",
    BadContentLength BAD_REQUEST "bad-content-length"
        "Content-Length must be a decimal number.",
    LengthAndEncoding BAD_REQUEST "content-length-with-transfer-encoding"
        "A message must not have both Content-Length and Transfer-Encoding.",
    BadTransferEncoding BAD_REQUEST "bad-transfer-encoding"
        "Transfer-Encoding must be given once, be exactly \"chunked\", and only in HTTP/1.1.",
    MissingHost BAD_REQUEST "missing-host"
        "An HTTP/1.1 request must have a Host header.",
    HostTwice BAD_REQUEST "host-twice"
        "A request must not have more than one Host header.",
    BadHost BAD_REQUEST "bad-host"
        "Host must be a host name or address, perhaps with a port.",
    BadConnection BAD_REQUEST "bad-connection"
        "Connection must name at most 32 fields, and not Host, Content-Length or Transfer-Encoding.",
    ConnectWithBody BAD_REQUEST "connect-with-body"
        "A CONNECT request must not have a body.",
    BadChunkSize BAD_REQUEST "bad-chunk-size"
        "A chunk must begin with its size in at most 15 hexadecimal digits.",
    BadChunkExtension BAD_REQUEST "bad-chunk-extension"
        "After a chunk's size there may only be short extensions of the form ;name=value, then a line end.",
    ChunkNotEnded BAD_REQUEST "chunk-not-ended"
        "A chunk's data must be followed by a carriage return and a line feed.",
    BadTrailer BAD_REQUEST "bad-trailer"
        "A trailer must not be a field that frames or routes a message, or tells of its way.",
}

impl Rule {
    /// The answer: which rule, for a person and for a program.
    pub(crate) fn problem(self) -> Problem {
        Problem::new(self.status(), self.kind(), self.detail())
    }
}
