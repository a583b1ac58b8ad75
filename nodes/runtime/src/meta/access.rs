//! Who may use the meta port and how it speaks to them, which may change while it is served.

use std::fmt;
use std::net::SocketAddr;

use protoplex_wire::identity::Identity;
use tokio::sync::watch;

use super::door::{MetaTlsError, Tls, TlsSettings};
use super::guard::{Guard, Tokens};

/// The access to one meta port.
pub(crate) struct Access {
    pub(super) guard: Guard,
    /// Of the node, once it has one.
    identity: Option<Identity>,
    tls: watch::Sender<Option<Tls>>,
}

impl Access {
    /// To a port at this address. Until [`Access::trust`] one that other machines reach tells its health alone.
    pub(crate) fn new(address: SocketAddr, tokens: Tokens) -> Self {
        Self { guard: Guard::of(address, tokens), identity: None, tls: watch::Sender::new(None) }
    }

    /// Speaks TLS as a node of this cluster from here on, where other machines reach the port. Blocking.
    pub(crate) fn trust(&mut self, settings: &TlsSettings, identity: &Identity) -> Result<(), MetaTlsError> {
        self.identity = Some(identity.clone());
        self.tls.send_replace(self.load(settings)?);
        Ok(())
    }

    /// How the port would speak TLS by these settings, their files read anew. Blocking.
    pub(crate) fn load(&self, settings: &TlsSettings) -> Result<Option<Tls>, MetaTlsError> {
        let identity = self.identity.as_ref().filter(|_| self.guard.is_exposed());
        identity.map(|identity| settings.load(identity)).transpose()
    }

    /// Goes by these from here on, for new connections and new requests. Says whether anything has changed.
    pub(crate) fn change(&self, tokens: Tokens, tls: Option<Tls>) -> bool {
        let changed = self.tls.send_if_modified(|present| {
            let changed = *present != tls;
            *present = tls;
            changed
        });
        self.guard.change(tokens) || changed
    }

    /// How it speaks TLS.
    pub(super) fn tls(&self) -> watch::Receiver<Option<Tls>> {
        self.tls.subscribe()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}
