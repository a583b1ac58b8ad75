//! An upload whose whole body is the file: `curl -T`, `curl --data-binary`, `fetch` with a Blob.

use std::rc::Rc;

use http::request::Parts;
use protoplex_http::{Body, Scheme};

use super::Uploads;
use super::answer::Answer;
use super::intent::Intent;
use super::refusal::Refusal;

impl Uploads {
    pub(super) async fn raw(
        self: &Rc<Self>,
        head: &Parts,
        mut body: Body,
        scheme: Scheme,
    ) -> Result<Answer, Refusal> {
        let intent = Intent::of(head, scheme)?;
        let _admission = self.admit(&intent.sender, &intent.path, intent.declared).await?;
        self.upload(intent, async || Some(body.chunk().await?.map_err(Refusal::Body))).await
    }
}
