//! What an operator may tell a running node: by its meta port, by signals.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use thiserror::Error;
use tracing::{error, info};

use crate::children::{ChildError, Which};
use crate::descriptors;
use crate::drain::Drained;
use crate::node::{Body, Node};
use crate::parent::Spec;
use crate::systemd;
use crate::telemetry;
use crate::upgrade::UpgradeError;

/// Reads the node's configuration anew, and checks it whole; blocking. The error says every mistake and its place.
pub type Reload = Box<dyn FnMut() -> Result<Spec, String> + Send>;

/// The reader of a node's configuration.
pub(crate) struct Reloader(Mutex<Reload>);

impl Reloader {
    pub(crate) fn new(reload: Reload) -> Self {
        Self(Mutex::new(reload))
    }

    fn read(&self) -> Result<Spec, String> {
        // What it reads is checked whole each time, so a panic leaves nothing behind.
        let mut reload = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reload()
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

/// What a command has come to.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// False where everything was already as it was wished.
    pub(crate) changed: bool,
    /// What became of the work of whom it ended.
    #[serde(skip_serializing_if = "Drained::is_empty")]
    pub(crate) drained: Drained,
}

impl From<bool> for Outcome {
    fn from(changed: bool) -> Self {
        Self { changed, drained: Drained::default() }
    }
}

impl From<(bool, Drained)> for Outcome {
    fn from((changed, drained): (bool, Drained)) -> Self {
        Self { changed, drained }
    }
}

/// Why a command was not carried out, or not to its end.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("an upgrade of the node is under way")]
    Upgrading,
    #[error("{0} is a node of one process: drain it, and start it anew")]
    Solo(String),
    #[error("the configuration is refused, and the old one goes on:\n{0}")]
    Configuration(String),
    #[error("{0}")]
    Level(String),
    #[error("{0} can't change while the node runs: the configuration is refused, and the old one goes on")]
    Fixed(String),
}

impl Node {
    /// Starts what was stopped or given up.
    pub(crate) async fn start(&self, which: Which) -> Result<Outcome, CommandError> {
        if self.is_draining() {
            return Err(ChildError::Draining.into());
        }
        let changed = match self.body() {
            Body::Children(children) => children.start_again(which).await?,
            Body::Solo(_) => false,
        };
        Ok(changed.into())
    }

    /// Ends children, and keeps their places.
    pub(crate) async fn stop(&self, which: Which, at_once: bool) -> Result<Outcome, CommandError> {
        match self.body() {
            Body::Children(children) => Ok(children.stop(which, at_once).await?.into()),
            Body::Solo(_) => Err(CommandError::Solo(self.name())),
        }
    }

    /// Puts new processes in the children's places, one after the other, without an interruption.
    pub(crate) async fn restart(&self, which: Which) -> Result<Outcome, CommandError> {
        match self.body() {
            Body::Children(children) => {
                children.restart(which).await?;
                Ok(true.into())
            }
            Body::Solo(_) => Err(CommandError::Solo(self.name())),
        }
    }

    /// Takes one child, or the whole node, out of service; returns once that is done. The node goes by itself then.
    pub(crate) async fn drain(&self, which: Which) -> Result<Outcome, CommandError> {
        match (self.body(), which) {
            (Body::Children(children), Some(_)) => Ok(children.drain(which).await?.into()),
            (Body::Solo(_), Some(_)) => Err(CommandError::Solo(self.name())),
            (_, None) => {
                let (before, changed) = (self.drained(), self.leave());
                self.finished().await;
                Ok((changed, self.drained().since(&before)).into())
            }
        }
    }

    /// Logs by another level from here on, all processes of the node, until the next reload.
    pub(crate) fn set_log_level(&self, level: &str) -> Result<Outcome, CommandError> {
        let before = telemetry::level();
        telemetry::set_level(level).map_err(|error| CommandError::Level(error.to_string()))?;
        if let Body::Children(children) = self.body() {
            children.set_log_level(level);
        }
        Ok((before.as_deref() != Some(level)).into())
    }

    /// Reads the configuration anew, and goes by it: all of it, or where it is refused none of it.
    pub(crate) async fn reload(&self) -> Result<Outcome, CommandError> {
        // Else readiness would be told too early.
        let tells = self.was_ready();
        if tells {
            systemd::reloading();
        }
        let outcome = self.try_reload().await;
        if tells {
            systemd::reloaded();
        }
        match &outcome {
            Ok(Outcome { changed, .. }) => info!(changed, "read the configuration anew"),
            Err(error) => error!(%error, "a reload failed"),
        }
        self.note_reload(outcome.as_ref().err().map(ToString::to_string));
        outcome
    }

    async fn try_reload(&self) -> Result<Outcome, CommandError> {
        let spec = self.reloader().read().map_err(CommandError::Configuration)?;
        let (access, common) = (self.access(), &spec.common);
        let tls = access.load(&common.meta_tls);
        let tls = tls.map_err(|error| CommandError::Configuration(error.to_string()))?;
        let tokens = common.meta_tokens.clone();
        let mut changed_access = false;
        let changed = match self.body() {
            Body::Children(children) => {
                children.fixed(&spec).map_or(Ok(()), |fixed| Err(CommandError::Fixed(fixed.to_owned())))?;
                descriptors::check(&spec);
                let level = spec.common.telemetry.level.clone();
                let adopted = children.adopt(spec).await;
                // As far as it got.
                self.announce(children.addresses());
                if !matches!(adopted, Err(ChildError::Sockets(_))) {
                    changed_access = access.change(tokens, tls);
                }
                telemetry::set_level(&level)
                    .map_err(|error| CommandError::Configuration(error.to_string()))?;
                adopted?
            }
            Body::Solo(solo) => {
                solo.fixed(&spec).map_or(Ok(()), |fixed| Err(CommandError::Fixed(fixed)))?;
                telemetry::set_level(&spec.common.telemetry.level)
                    .map_err(|error| CommandError::Configuration(error.to_string()))?;
                changed_access = access.change(tokens, tls);
                solo.adopt(spec)
            }
        };
        Ok((changed || changed_access).into())
    }
}
