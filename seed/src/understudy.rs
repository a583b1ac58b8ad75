//! What one seed tells another, and every command that looks for the one that leads.

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::proto::understudy_server::Understudy;
use protoplex_wire::proto::{LeaderReply, LeaderRequest, TakeOverRequest};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::cluster::Directory;
use crate::role::Role;

/// How long taking over may take.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_millis(900);

pub(crate) struct Standby {
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) directory: watch::Receiver<Directory>,
    /// Where this seed is reached.
    pub(crate) address: String,
    /// Has the row asked for at once.
    pub(crate) nudge: Arc<Notify>,
}

impl Standby {
    fn reply(&self) -> LeaderReply {
        let seeds = self.directory.borrow().seeds.clone();
        match &*self.role.borrow() {
            Role::Leading(term) => {
                LeaderReply { leading: true, address: self.address.clone(), term: *term, seeds }
            }
            Role::Understudy { leader, .. } => {
                LeaderReply { leading: false, address: leader.address.clone(), term: leader.term, seeds }
            }
            Role::Waiting => LeaderReply { leading: false, address: String::new(), term: 0, seeds },
        }
    }
}

#[tonic::async_trait]
impl Understudy for Standby {
    async fn leader(&self, _: Request<LeaderRequest>) -> Result<Response<LeaderReply>, Status> {
        Ok(Response::new(self.reply()))
    }

    async fn take_over(&self, request: Request<TakeOverRequest>) -> Result<Response<LeaderReply>, Status> {
        let before = request.into_inner().term;
        self.nudge.notify_one();
        let newer = |role: &Role| match role {
            Role::Leading(term) => *term > before,
            Role::Understudy { leader, .. } => leader.term > before,
            Role::Waiting => false,
        };
        // Whether or not it has come to that, who leads is told.
        let _ = timeout(TAKE_OVER_TIMEOUT, self.role.clone().wait_for(newer)).await;
        Ok(Response::new(self.reply()))
    }
}
