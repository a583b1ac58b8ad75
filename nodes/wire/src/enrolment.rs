//! How somebody comes to a certificate: with a join token once, then with the one that it has.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::identity::{
    self, Dial, Fingerprint, Identity, IdentityError, Kind, check_cluster, check_own, fingerprint, keep,
    own_key, provider,
};
use crate::join_token::JoinToken;
use crate::pattern::check_name;
use crate::proto::enrolment_client::EnrolmentClient;
use crate::proto::{Credentials, EnrolRequest, RenewRequest};
use crate::seeds::{Search, Seeds};

/// How long a seed may take for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Sleeps are cut to this, as tokio's clock stands still while the machine is suspended and a certificate's end doesn't.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// A renewal that fails is tried so often again, at least, before the certificate ends.
const RETRIES: u32 = 20;
/// A failure is told at least this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(10);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// No seed that leads can be reached; it may be worth trying again.
    #[error("no seed that leads can be reached at {seeds}: {why}")]
    Away {
        /// Where they were looked for.
        seeds: String,
        /// What the last one said, or the system.
        why: String,
    },
    /// A seed says no.
    #[error("{0}")]
    Refused(String),
    /// What it has issued can't be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Who wants to join.
pub struct Newcomer<'a> {
    /// What it wants to be, for which the token has to be.
    pub kind: Kind,
    /// Its name.
    pub node: &'a str,
    /// Where what all of the cluster share is written.
    pub shared: &'a Path,
    /// Where its certificate and its key are.
    pub own: &'a Path,
}

impl Newcomer<'_> {
    /// Takes the token to whichever of the seeds leads, once each, and keeps what comes back.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub async fn enrol(&self, token: &JoinToken, seeds: &Seeds) -> Result<Credentials, EnrolError> {
        check_name("node", self.node).map_err(|error| EnrolError::Refused(error.to_string()))?;
        // Before the token is used.
        check_cluster(self.shared, &token.fingerprint)?;
        if self.own == self.shared {
            check_own(self.own)?;
        }
        let (_, public_key) = own_key(self.own)?;
        let request = EnrolRequest {
            token: token.presented(),
            kind: self.kind.name().to_owned(),
            node: self.node.to_owned(),
            public_key,
        };
        let tls = pinned(token.fingerprint);
        let dial = |seed: &str| {
            identity::channel(Dial { address: seed.to_owned(), tls: tls.clone(), credential: None })
        };
        let issued = ask(seeds, "token", |seed| {
            let (channel, request) = (dial(seed), request.clone());
            async move { Ok(EnrolmentClient::new(channel?).enrol(request).await) }
        });
        let issued = issued.await?;
        let authority = identity::authority_der(&issued.authority);
        if authority.is_none_or(|authority| fingerprint(&authority) != token.fingerprint) {
            return Err(EnrolError::Refused("the seed has sent another authority than its own".to_owned()));
        }
        keep(self.shared, self.own, &issued)?;
        Ok(issued)
    }
}

/// Has the certificate of this identity, which was read from `own`, replaced once.
///
/// # Errors
/// See [`EnrolError`].
pub async fn renew(identity: &Identity, own: &Path, seeds: &Seeds) -> Result<Credentials, EnrolError> {
    if let Some(expired) = identity.expired() {
        return Err(expired.into());
    }
    let issued = ask(seeds, "certificate", |seed| {
        let channel = identity.channel(seed);
        async move { Ok(EnrolmentClient::new(channel?).renew(RenewRequest {}).await) }
    });
    let issued = issued.await?;
    // What is shared it has already.
    let certificate = Credentials { certificate: issued.certificate.clone(), ..Credentials::default() };
    keep(own, own, &certificate)?;
    identity.refresh()?;
    Ok(issued)
}

/// Replaces the certificate of this identity, which was read from `own`, again and again: around two thirds of its life,
/// and then with growing pauses until it succeeds. Never ends. One that makes its own has nothing to do.
pub async fn keep_renewed(identity: Identity, own: &Path, seeds: Seeds) {
    let mut backoff = Backoff::default();
    let (mut earlier, mut complained) = (rand::random::<f64>(), None::<SystemTime>);
    loop {
        let now = SystemTime::now();
        let Some(due) = identity.renewal_due(earlier, now) else { return std::future::pending().await };
        if let Ok(left) = due.duration_since(now)
            && !left.is_zero()
        {
            sleep(left.min(LONGEST_SLEEP)).await;
            continue;
        }
        match renew(&identity, own, &seeds).await {
            Ok(issued) => {
                backoff.reset();
                (earlier, complained) = (rand::random(), None);
                info!(expires_at_ms = issued.expires_at_ms, "the certificate was renewed");
            }
            Err(error) => {
                let now = SystemTime::now();
                let said = complained.and_then(|then| now.duration_since(then).ok());
                if said.is_none_or(|since| since >= COMPLAINT_INTERVAL) {
                    complained = Some(now);
                    warn!(%error, "the certificate can't be renewed, trying again");
                } else {
                    debug!(%error, "the certificate can't be renewed, trying again");
                }
                let left = identity.certificate().not_after.duration_since(now).unwrap_or_default();
                // One that doesn't count yet is missed already.
                let pause = if identity.not_yet().is_some() { LONGEST_SLEEP } else { left / RETRIES };
                sleep(backoff.next_delay().max(pause)).await;
            }
        }
    }
}

/// Asks one seed after the other, until one says yes, or no. That all are of another cluster than `what` is a no, too.
async fn ask<C, A>(seeds: &Seeds, what: &str, call: C) -> Result<Credentials, EnrolError>
where
    C: Fn(&str) -> A,
    A: Future<Output = Result<Result<tonic::Response<Credentials>, Status>, tonic::transport::Error>>,
{
    let mut search = Search::new(seeds.remembered());
    search.begin(&seeds.resolve().await);
    let (mut why, mut foreign) = (None, None);
    while let Some(seed) = search.next_seed() {
        let answer = match timeout(CALL_TIMEOUT, call(&seed)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(Status::deadline_exceeded("it does not answer")),
        };
        match answer {
            Ok(issued) => return Ok(issued.into_inner()),
            Err(status) => {
                if let Some(redirect) = crate::seeds::Redirect::of(&status) {
                    search.redirected(&redirect.address);
                }
                if identity::is_foreign(&status) {
                    foreign = Some(seed);
                    search.unanswered();
                    continue;
                }
                let is_away = [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Cancelled];
                if !is_away.contains(&status.code()) {
                    return Err(EnrolError::Refused(status.message().to_owned()));
                }
                why = Some(told(&status));
                search.unanswered();
            }
        }
    }
    let foreign = foreign.map(|seed| format!("the seed at {seed} is of another cluster than the {what}"));
    let away = |why| EnrolError::Away { seeds: seeds.to_string(), why };
    Err(match (why, foreign) {
        (None, Some(foreign)) => EnrolError::Refused(foreign),
        // The others may be of the right one, once they answer.
        (Some(why), Some(foreign)) => away(format!("{foreign}; of the others: {why}")),
        (why, None) => away(why.unwrap_or_else(|| "there is no such name".to_owned())),
    })
}

/// What is to be told of a status: the innermost cause says it in the fewest words.
fn told(status: &Status) -> String {
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    causes.last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// Trusts the seed that shows the authority of this fingerprint behind its own certificate, and no other.
fn pinned(fingerprint: Fingerprint) -> Arc<ClientConfig> {
    let provider = provider();
    let verifier = Arc::new(Pinned { fingerprint, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("aws-lc-rs knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let authority = intermediates.iter().find(|shown| fingerprint(shown) == self.fingerprint);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.3 is spoken between nodes".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::Error;

    use super::*;

    #[tokio::test]
    async fn that_a_seed_is_of_another_cluster_is_hidden_by_no_other_one_that_is_away() {
        let refused = async |foreign: &[&str]| {
            let seeds = Seeds::only(["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(str::to_owned).into());
            let answer = ask(&seeds, "token", |seed| {
                let mut status = Status::unavailable("connection refused");
                if foreign.contains(&seed) {
                    let why = Error::InvalidCertificate(CertificateError::UnknownIssuer);
                    status.set_source(Arc::new(why));
                }
                async move { Ok(Err(status)) }
            });
            answer.await.unwrap_err()
        };
        let one = refused(&["10.0.0.2:1"]).await;
        assert!(matches!(one, EnrolError::Away { .. }), "the others may know the token");
        let text = one.to_string();
        assert!(text.contains("10.0.0.2:1 is of another cluster than the token"), "{text}");
        assert!(text.contains("connection refused"), "{text}");
        let all = refused(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]).await;
        assert!(matches!(all, EnrolError::Refused(_)), "{all}");
        assert!(!refused(&[]).await.to_string().contains("another cluster"));
    }
}
