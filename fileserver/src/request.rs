//! A request's way through a fileserver, step by step.

use std::rc::Rc;

use http::header::{ALLOW, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use metrics::{Counter, counter};
use protoplex_http::{Answer, Body, Exchange, Request, Response, Service};

use crate::answer::{Offer, answer};
use crate::app_files::AppFiles;
use crate::content::Content;
use crate::host::VirtualHost;
use crate::inflate::Inflates;
use crate::negotiate::Coding;
use crate::object::Encoding;
use crate::path::FilePath;
use crate::reference::Reference;
use crate::refusal::{ALLOWED, Refusal};
use crate::s3_files::S3Files;
use crate::storage::StorageError;
use crate::stored::StoredBody;
use crate::upload::{Uploads, is_upload};
use crate::vhost_files::{Found, Site, VhostFiles};

/// A reference means the same bytes for ever.
const REFERENCE_LIFE: &str = "public, max-age=31536000, immutable";
/// A path of a site may get another content, but seldom does.
const SITE_LIFE: &str = "public, max-age=2592000";
/// While nobody has told whether the host has an app, or whether a site is still what it was.
const UNSURE_LIFE: &str = "no-store";
/// As much of a reference as its SHA-256 takes tells it from all others.
const TAG_CHARS: usize = 43;

/// Serves the requests of one child.
pub(crate) struct Fileserver {
    pub(crate) app_files: Rc<AppFiles>,
    pub(crate) s3_files: S3Files,
    pub(crate) vhost_files: VhostFiles,
    pub(crate) uploads: Rc<Uploads>,
    pub(crate) inflates: Inflates,
    pub(crate) app_hits: Counter,
}

impl Service for Fileserver {
    async fn answer(&self, exchange: &Rc<Exchange>, body: Body) -> Answer {
        if let Some(answer) = self.app_files.at_once(&exchange.head) {
            self.app_hits.increment(1);
            return answer;
        }
        // Boxed, so that what is at hand need not make room for all that an upload takes.
        Box::pin(self.handle(exchange.request(body), exchange)).await.into()
    }
}

impl Fileserver {
    async fn handle(&self, request: Request, exchange: &Rc<Exchange>) -> Response {
        let (head, body) = request.into_parts();
        if is_upload(&head) {
            return self.uploads.handle(Request::from_parts(head, body), exchange).await;
        }
        self.download(&head).await.unwrap_or_else(|refusal| {
            if refusal.is_ours() {
                tracing::warn!(request_id = &*exchange.request_id, path = head.uri.path(), error = %refusal, "a download failed");
            }
            refusal.problem().into_response()
        })
    }
}

impl Fileserver {
    /// The steps.
    async fn download(&self, head: &Parts) -> Result<Response, Refusal> {
        match head.method {
            Method::GET | Method::HEAD => {}
            Method::OPTIONS => return Ok(options()),
            ref other => return Err(Refusal::Method(other.clone())),
        }
        let path = FilePath::parse(head.uri.path())?;
        let host = VirtualHost::of(head).ok_or(Refusal::Host)?;
        if let Some(asset) = self.app_files.find(&host, &path) {
            count("app");
            return Ok(asset.answer(head));
        }
        if let Some(reference) = reference(&path)
            && let Some(response) = self.by_reference(head, &reference).await?
        {
            return Ok(response);
        }
        match self.vhost_files.find(&host, &path).await? {
            Found::Now(Some(site)) => self.by_site(head, &host, &site, SITE_LIFE).await,
            Found::Before(site) => self.by_site(head, &host, &site, UNSURE_LIFE).await,
            Found::Now(None) => Err(Refusal::NotFound { host, path }),
        }
    }

    async fn by_reference(&self, head: &Parts, reference: &Reference) -> Result<Option<Response>, Refusal> {
        count("reference");
        let body = match self.s3_files.open(reference).await {
            Err(StorageError::NotFound) => return Ok(None),
            body => body?,
        };
        let content_type = body.meta().content_type.clone();
        let offer = Offer {
            tag: &reference[..TAG_CHARS],
            modified: None,
            content_type: &content_type,
            cache_control: REFERENCE_LIFE,
            size: body.meta().size,
            coded: &coded(&body),
            seekable: body.meta().encoding == Encoding::Identity,
            // References are shown on every host.
            sandboxed: true,
        };
        self.send(head, &offer, body).await.map(Some)
    }

    async fn by_site(
        &self,
        head: &Parts,
        host: &VirtualHost,
        site: &Site,
        life: &'static str,
    ) -> Result<Response, Refusal> {
        count("site");
        let body = match self.s3_files.open(&site.reference).await {
            Err(StorageError::NotFound) if site.stored => return Err(Refusal::Missing),
            Err(StorageError::NotFound) => return Err(Refusal::Underway),
            body => body?,
        };
        let has_app = self.app_files.has(host);
        let offer = Offer {
            tag: &site.reference[..TAG_CHARS],
            modified: Some(site.modified),
            content_type: &site.content_type,
            cache_control: if has_app.is_some() { life } else { UNSURE_LIFE },
            size: body.meta().size,
            coded: &coded(&body),
            seekable: body.meta().encoding == Encoding::Identity,
            // A host without an app is a site of its own, made of what is uploaded to it; a host with one is the app's,
            // and who may upload there is its guest.
            sandboxed: has_app != Some(false),
        };
        self.send(head, &offer, body).await
    }

    async fn send(&self, head: &Parts, offer: &Offer<'_>, body: StoredBody) -> Result<Response, Refusal> {
        let (answer, selection) = answer(&head.method, &head.headers, offer);
        let content = Content::new(body, selection, &self.inflates).await?.ok_or(Refusal::Busy)?;
        Ok(answer.map(|()| content.into_body()))
    }
}

/// `/{reference}`, and nothing else.
fn reference(path: &FilePath) -> Option<Reference> {
    path.as_str().strip_prefix('/')?.parse().ok()
}

/// The codings besides identity that a stored body can be sent in as it is.
fn coded(body: &StoredBody) -> Vec<(Coding, u64)> {
    match body.meta().encoding {
        Encoding::Identity => Vec::new(),
        Encoding::Gzip => vec![(Coding::Gzip, body.meta().stored_size)],
    }
}

fn options() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, ALLOWED);
    response.headers_mut().insert("accept-ranges", HeaderValue::from_static("bytes"));
    response
}

fn count(handler: &'static str) {
    downloads(handler).increment(1);
}

/// Counts what a handler serves.
pub(crate) fn downloads(handler: &'static str) -> Counter {
    counter!("protoplex_fileserver_downloads_total", "handler" => handler)
}

#[cfg(test)]
mod tests;
