//! How a connection to another node is made: TCP, then TLS with the certificate that is newest at that moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use super::SERVICE_NAME;
use super::credential::Credential;

/// From the first packet to the end of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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
            let connected = async {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(SERVICE_NAME).map_err(io::Error::other)?;
                TlsConnector::from(tls).connect(name, stream).await
            };
            let silent = |_| {
                let why = format!("it did not speak TLS within {} s", CONNECT_TIMEOUT.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, why)
            };
            Ok(TokioIo::new(timeout(CONNECT_TIMEOUT, connected).await.map_err(silent).flatten()?))
        })
    }
}
