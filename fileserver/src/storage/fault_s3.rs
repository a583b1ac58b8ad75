//! The kit's S3 server as this crate's tests use it: with settings and clients.

use std::ops::Deref;
use std::path::Path;

pub(crate) use protoplex_testkit::s3::Fault;
use protoplex_testkit::s3::{self, ACCESS_KEY, BUCKET, SECRET_KEY};

use super::s3::{RawS3, S3};

pub(crate) struct FaultS3(s3::FaultS3);

impl Deref for FaultS3 {
    type Target = s3::FaultS3;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FaultS3 {
    /// Serves a bucket in `folder`.
    pub(crate) fn start(folder: &Path) -> Self {
        Self(s3::FaultS3::start(folder))
    }

    /// Settings, to be changed before they are resolved. They have no key prefix: s3s-fs makes file
    /// names of keys, and one of a multipart upload would become too long.
    pub(crate) fn settings(&self) -> RawS3 {
        RawS3 {
            bucket: BUCKET.into(),
            region: "us-east-1".into(),
            endpoint: self.endpoint(),
            path_style: true,
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            max_attempts: 2,
            ..RawS3::default()
        }
    }

    /// A client with [`FaultS3::settings`].
    pub(crate) async fn client(&self) -> S3 {
        client(self.settings()).await
    }

    /// A client that soon takes a slow server for one that never answers.
    pub(crate) async fn hasty_client(&self) -> S3 {
        client(RawS3 { read_timeout_ms: 500, body_idle_timeout_ms: 500, ..self.settings() }).await
    }
}

async fn client(settings: RawS3) -> S3 {
    let mut problems = protoplex_runtime::config::Problems::default();
    let settings = settings.resolve(&mut problems);
    problems.finish().unwrap();
    S3::new(&settings).await
}
