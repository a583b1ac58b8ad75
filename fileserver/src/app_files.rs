//! The app's own assets, from memory: one build for each host pattern, replaced as a whole when the seed tells of another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use http::request::Parts;
use protoplex_http::{Answer, Body, RequestHead, Response, ResponseHead};
use protoplex_wire::follow::Builds;
use protoplex_wire::proto::{self, Build};
use sha2::{Digest, Sha256};

use crate::answer::{Offer, Piece, Selection, answer};
use crate::host::VirtualHost;
use crate::negotiate::{Coding, choose_among};
use crate::path::{FilePath, PATH_MAX_BYTES};

/// A page is what a deploy replaces under an unchanged name: it is kept as long as one likes, and asked for by its tag
/// each time, so that a deploy is seen at once and costs a 304 where nothing has changed.
const PAGE: &str = "public, no-cache";
/// Everything else lives for a month at least.
const ASSET: &str = "public, max-age=2592000";
/// A name with the digest of its content never means anything else.
const HASHED_ASSET: &str = "public, max-age=31536000, immutable";
/// From here on, a word of letters and digits mixed in a file's name is taken for a digest.
const DIGEST_MIN_CHARS: usize = 8;

/// The builds of a child.
pub(crate) struct AppFiles {
    held: RefCell<Vec<Rc<Current>>>,
    known: Box<dyn Fn() -> Option<Rc<Builds>>>,
}

/// The build that is current for a host pattern.
struct Current {
    host: String,
    version: u64,
    assets: HashMap<String, Rc<Asset>>,
}

/// One file of a build.
pub(crate) struct Asset {
    content_type: String,
    cache_control: &'static str,
    tag: String,
    modified: SystemTime,
    identity: Bytes,
    coded: Vec<(Coding, Bytes)>,
    /// Those of `coded`.
    codings: Vec<Coding>,
    /// The whole answer in each coding, to a request that asks for nothing special.
    ready: Vec<(Coding, ResponseHead, Bytes)>,
}

impl AppFiles {
    /// No builds yet; `known` are those that the seed has told of, once it has told of all.
    pub(crate) fn new(known: impl Fn() -> Option<Rc<Builds>> + 'static) -> Self {
        Self { held: RefCell::default(), known: Box::new(known) }
    }

    /// The asset of that name in the build whose pattern fits the host best. A folder's is its `index.html`.
    pub(crate) fn find(&self, host: &VirtualHost, path: &FilePath) -> Option<Rc<Asset>> {
        self.named(host, path.as_str())
    }

    fn named(&self, host: &VirtualHost, name: &str) -> Option<Rc<Asset>> {
        let builds = self.held.borrow();
        let build = builds.iter().find(|build| host.matches(&build.host))?;
        match name.ends_with('/') {
            true => build.assets.get(&format!("{name}index.html")),
            false => build.assets.get(name),
        }
        .cloned()
    }

    /// The answer to a plain request for an asset, made when its build came: the same that [`Asset::answer`] makes. None
    /// where there is more to look at: conditions, ranges, a path to be decoded.
    pub(crate) fn at_once(&self, request: &RequestHead) -> Option<Answer> {
        let plain = matches!(*request.method(), Method::GET | Method::HEAD)
            && is_plain(request.path())
            && !request.fields().names().any(is_conditional);
        if !plain {
            return None;
        }
        let asset = self.named(&VirtualHost::parse(request.host()?)?, request.path())?;
        let accepted = request.fields().get_all(&ACCEPT_ENCODING);
        let coding = choose_among(accepted, &asset.codings);
        let (_, head, bytes) = asset.ready.iter().find(|(ready, ..)| *ready == coding)?;
        let body = if *request.method() == Method::HEAD { Body::empty() } else { Body::full(bytes.clone()) };
        Some(Answer { head: head.clone(), body })
    }

    /// Whether a host has an app, be it fetched or not; `None` where nobody has told yet.
    pub(crate) fn has(&self, host: &VirtualHost) -> Option<bool> {
        let builds = (self.known)()?;
        Some(builds.current.iter().any(|build| build.version > 0 && host.matches(&build.host)))
    }

    /// Those of the current builds that are not held here yet.
    pub(crate) fn missing<'a>(&self, current: &'a [Build]) -> Vec<&'a Build> {
        let held = self.held.borrow();
        let is_held =
            |build: &Build| held.iter().any(|held| held.version == build.version && held.host == build.host);
        current.iter().filter(|build| build.version > 0 && !is_held(build)).collect()
    }

    /// Puts a build in the place of the one that its host pattern has: requests see one or the other, never both.
    pub(crate) fn adopt(&self, build: &Build, assets: Vec<proto::Asset>) {
        let modified =
            UNIX_EPOCH + Duration::from_millis(u64::try_from(build.deployed_at_ms).unwrap_or_default());
        let assets =
            assets.into_iter().map(|asset| (asset.path.clone(), Rc::new(Asset::new(asset, modified))));
        let current = Current { host: build.host.clone(), version: build.version, assets: assets.collect() };
        let mut builds = self.held.borrow_mut();
        builds.retain(|held| held.host != build.host);
        builds.push(Rc::new(current));
        // Names before patterns, longer patterns before shorter ones.
        builds.sort_by_key(|build| (build.host.starts_with('*'), std::cmp::Reverse(build.host.len())));
    }

    /// Drops the builds of patterns that have none any more.
    pub(crate) fn retain(&self, current: &[Build]) {
        let has_build = |host: &str| current.iter().any(|build| build.version > 0 && build.host == host);
        self.held.borrow_mut().retain(|held| has_build(&held.host));
    }
}

impl Asset {
    fn new(asset: proto::Asset, modified: SystemTime) -> Self {
        let coded = [(Coding::Brotli, asset.brotli), (Coding::Gzip, asset.gzip)];
        let mut made = Self {
            cache_control: life(&asset.path, &asset.content_type),
            tag: URL_SAFE_NO_PAD.encode(Sha256::digest(&asset.identity)),
            content_type: asset.content_type,
            modified,
            identity: asset.identity.into(),
            coded: coded
                .into_iter()
                .filter(|(_, bytes)| !bytes.is_empty())
                .map(|(c, b)| (c, b.into()))
                .collect(),
            codings: Vec::new(),
            ready: Vec::new(),
        };
        made.codings = made.coded.iter().map(|(coding, _)| *coding).collect();
        made.ready =
            [Coding::Identity].iter().chain(&made.codings).map(|coding| made.whole(*coding)).collect();
        made
    }

    /// The whole answer in a coding.
    fn whole(&self, coding: Coding) -> (Coding, ResponseHead, Bytes) {
        let (mut request, ()) = http::Request::new(()).into_parts();
        if let Some(name) = coding.name() {
            request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(name));
        }
        let (head, _) = self.answer(&request).into_parts();
        let (head, _) = Answer::from(Response::from_parts(head, Body::empty())).into_parts();
        let coded = self.coded.iter().find(|(ready, _)| *ready == coding);
        (coding, head, coded.map_or(&self.identity, |(_, bytes)| bytes).clone())
    }

    /// Answers a GET or HEAD for it.
    pub(crate) fn answer(&self, request: &Parts) -> Response {
        let coded: Vec<_> = self.coded.iter().map(|(coding, bytes)| (*coding, bytes.len() as u64)).collect();
        let offer = Offer {
            tag: &self.tag,
            modified: Some(self.modified),
            content_type: &self.content_type,
            cache_control: self.cache_control,
            size: self.identity.len() as u64,
            coded: &coded,
            seekable: true,
            sandboxed: false,
        };
        let (head, selection) = answer(&request.method, &request.headers, &offer);
        head.map(|()| self.body(selection))
    }

    fn body(&self, selection: Selection) -> Body {
        match selection {
            Selection::Nothing => Body::empty(),
            Selection::Whole(coding) => {
                let ready = self.coded.iter().find(|(ready, _)| *ready == coding);
                Body::full(ready.map_or(&self.identity, |(_, bytes)| bytes).clone())
            }
            Selection::Pieces(pieces) => match &pieces[..] {
                [Piece::Span(span)] => Body::full(self.slice(span)),
                several => {
                    let pieces = several.iter().map(|piece| match piece {
                        Piece::Text(text) => text.clone(),
                        Piece::Span(span) => self.slice(span),
                    });
                    Body::full(pieces.collect::<Vec<_>>().concat())
                }
            },
        }
    }

    fn slice(&self, span: &std::ops::Range<u64>) -> Bytes {
        let within = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(self.identity.len());
        self.identity.slice(within(span.start)..within(span.end))
    }
}

/// How long clients and caches on the way may keep an asset.
fn life(path: &str, content_type: &str) -> &'static str {
    if content_type.starts_with("text/html") {
        return PAGE;
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.split(['.', '-', '_']).skip(1).any(is_digest) { HASHED_ASSET } else { ASSET }
}

fn is_digest(word: &str) -> bool {
    word.len() >= DIGEST_MIN_CHARS
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && word.bytes().any(|byte| byte.is_ascii_digit())
        && word.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// Whether a path is the name that it stands for: nothing to decode, no segment that begins with a dot.
fn is_plain(path: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    path.starts_with('/')
        && path.len() <= PATH_MAX_BYTES
        && path.bytes().all(unreserved)
        && !path.contains("/.")
}

/// Whether a field makes a request one for something else than the whole (RFC 9110 sections 13.1 and 14.2).
fn is_conditional(name: &[u8]) -> bool {
    let starts =
        |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    starts(b"if-") || starts(b"range")
}

#[cfg(test)]
mod tests;
