//! Whether a connection failed because the other side is of another cluster.

use std::error::Error;
use std::io;

use tokio_rustls::rustls::{CertificateError, Error as TlsError};

/// Whether one of the causes of this is a certificate of another authority: to try again is of no use then. All
/// authorities have one name, so it is the signature that tells them apart.
#[must_use]
pub fn is_foreign(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| cause(*error)).any(|cause| {
        let foreign = [CertificateError::BadSignature, CertificateError::UnknownIssuer];
        match cause.downcast_ref::<TlsError>() {
            Some(TlsError::InvalidCertificate(why)) => foreign.contains(why),
            _ => false,
        }
    })
}

/// An I/O error that wraps another one tells that one's cause for its own.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
