//! The connection to NATS, which is made again for ever.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectOptions, Event, ServerAddr};
use thiserror::Error;

use crate::events::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server that doesn't answer is noticed within two of these.
const PING_EVERY: Duration = Duration::from_secs(2);
/// Between two attempts: more each time, at most this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE_MS: u64 = 50;

/// Why NATS can't be used.
#[derive(Debug, Error)]
pub enum NatsError {
    /// The address is none.
    #[error("events.nats {0:?} is no address: write nats://HOST:4222")]
    Address(String),
    /// A file can't be read.
    #[error("{}: {source} (events.{key})", path.display())]
    File {
        /// What of the section `[events]` names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// What was configured can't be.
    #[error("events.nats: {0}")]
    Connect(#[from] ConnectError),
}

/// A client, whether or not the server is there.
pub(super) async fn connect(config: &Config) -> Result<Client, NatsError> {
    let raw = &config.0;
    let servers = raw.nats.as_deref().unwrap_or_default();
    let address = |server: &str| server.trim().parse().map_err(|_| NatsError::Address(server.to_owned()));
    let servers = servers.split(',').map(address).collect::<Result<Vec<ServerAddr>, _>>()?;
    let mut options = ConnectOptions::new()
        .name("protoplex")
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_EVERY)
        .retry_on_initial_connect()
        .reconnect_delay_callback(|attempt| {
            let doublings = u32::try_from(attempt.min(8)).unwrap_or_default();
            Duration::from_millis(SHORTEST_PAUSE_MS << doublings).min(LONGEST_PAUSE)
        })
        .event_callback(|event| async move { tell(&event) });
    if let Some(token) = &raw.nats_token {
        options = options.token(token.clone());
    }
    if let (Some(user), Some(password)) = (&raw.nats_user, &raw.nats_password) {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(path) = &raw.nats_credentials {
        let unreadable = |source| NatsError::File { key: "nats_credentials", path: path.clone(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        options = options.credentials(&text).map_err(unreadable)?;
    }
    if let Some(ca) = &raw.nats_ca {
        options = options.add_root_certificates(readable("nats_ca", ca)?);
    }
    if let (Some(certificate), Some(key)) = (&raw.nats_certificate, &raw.nats_key) {
        let certificate = readable("nats_certificate", certificate)?;
        options = options.add_client_certificate(certificate, readable("nats_key", key)?);
    }
    Ok(options.connect(servers).await?)
}

fn readable(key: &'static str, path: &Path) -> Result<PathBuf, NatsError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(source) => Err(NatsError::File { key, path: path.to_owned(), source }),
    }
}

fn tell(event: &Event) {
    match event {
        Event::Connected => tracing::info!("NATS is connected"),
        Event::Disconnected => tracing::warn!("NATS is away; trying again"),
        Event::ServerError(error) => tracing::warn!(%error, "NATS complains"),
        Event::ClientError(error) => tracing::debug!(%error, "NATS' client complains"),
        other => tracing::debug!(%other, "NATS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::config::Raw;

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named_by_its_own_key() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, there) = (folder.path().join("missing"), folder.path().join("there"));
        std::fs::write(&there, "").unwrap();
        let [missing, there] = [missing, there].map(Some);
        let nats = Some("nats://127.0.0.1:1".to_owned());
        let raw = || Raw { nats: nats.clone(), ..Raw::default() };
        let pair = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| Raw {
            nats_certificate: certificate.clone(),
            nats_key: key.clone(),
            ..raw()
        };
        for (key, raw) in [
            ("nats_credentials", Raw { nats_credentials: missing.clone(), ..raw() }),
            ("nats_ca", Raw { nats_ca: missing.clone(), ..raw() }),
            ("nats_certificate", pair(&missing, &there)),
            ("nats_key", pair(&there, &missing)),
        ] {
            let error = connect(&Config(raw)).await.unwrap_err().to_string();
            assert!(error.ends_with(&format!("(events.{key})")), "{key}: {error}");
        }
    }
}
