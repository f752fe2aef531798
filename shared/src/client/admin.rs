//! Actions on the cluster: asked for once, heard to the end.
//!
//! Invariant: an action is never sent a second time; when the connection is lost while it runs, the outcome is
//! [`Code::Unknown`], because it goes on without a listener.

use std::time::Instant;

use super::{Attempt, Client, ClientError};
use crate::admin::{AdminAction, AdminEvent, AdminOutcome, AdminPlan};
use crate::error::{Code, WireError};
use crate::wire::{Request, Response};

/// How an action ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AdminEnd {
    /// What was to be done, and what stood against it.
    pub plan: AdminPlan,
    /// What came of it; `None` for a dry run and a refused action.
    pub outcome: Option<AdminOutcome>,
}

impl AdminEnd {
    /// It was refused: nothing has changed.
    pub fn refused(&self) -> bool {
        !self.plan.refusals.is_empty()
    }
}

impl Client {
    /// Does something to the cluster. Every event is told as it comes, the last one too; there is no deadline, because
    /// filling a node takes as long as it takes, but a node that falls silent is given up.
    pub async fn admin(
        &mut self,
        action: AdminAction,
        dry_run: bool,
        mut on_event: impl FnMut(&AdminEvent),
    ) -> Result<AdminEnd, ClientError> {
        let number = self.cancel.begin();
        let deadline = Instant::now() + self.config.deadline;
        if self.link.is_none() {
            self.find_node(deadline, number).await?;
        }
        let name = action.name();
        let first = match self.attempt(&Request::Admin { action, dry_run }, deadline).await {
            Ok(first) => first,
            Err(attempt) => return Err(self.unheard(name, attempt)),
        };
        let (request, mut response) = (first.request, first.response);
        let mut end = AdminEnd::default();
        loop {
            let last = match response {
                Response::Error(error) => return Err(error.into()),
                Response::Admin { event, last } => {
                    on_event(&event);
                    match event {
                        AdminEvent::Plan(plan) => end.plan = plan,
                        AdminEvent::Step { .. } => {}
                        AdminEvent::Outcome(outcome) => end.outcome = Some(outcome),
                    }
                    last
                }
                _ => return Err(self.out_of_step("admin")),
            };
            if last {
                return Ok(end);
            }
            let received = match &mut self.link {
                Some(link) => link.receive(request, None).await,
                None => Err(Attempt::Lost("not connected".into())),
            };
            response = match received {
                Ok(response) => response,
                Err(attempt) => return Err(self.unheard(name, attempt)),
            };
        }
    }

    /// The connection is gone while the action runs, or before it could be sent.
    fn unheard(&mut self, name: &str, attempt: Attempt) -> ClientError {
        let why = match attempt {
            Attempt::Unsendable(why) => return ClientError::Unsendable(why),
            Attempt::Lost(why) => why,
            Attempt::Late => "no answer in time".into(),
        };
        self.lose(&why);
        let message = format!("the connection was lost while `{name}` ran: it may go on, or it may not have begun");
        WireError::new(Code::Unknown, message)
            .detail(why)
            .hint("look at the cluster (`quorate status`) before you ask for it again")
            .into()
    }
}
