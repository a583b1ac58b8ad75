//! How a connection to another node is made: TCP, then TLS with the certificate that is newest at that moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use super::SERVICE_NAME;
use super::credential::Credential;

/// Connects to one address, for a channel.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) address: String,
    pub(crate) tls: Arc<ClientConfig>,
    /// What is shown there, where anything is.
    pub(crate) credential: Option<Arc<Credential>>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, tls, credential } = self.clone();
        Box::pin(async move {
            // The other side would only end the connection.
            if let Some(expired) = credential.and_then(|credential| credential.expired()) {
                return Err(io::Error::other(expired));
            }
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVICE_NAME).map_err(io::Error::other)?;
            Ok(TokioIo::new(TlsConnector::from(tls).connect(name, stream).await?))
        })
    }
}
