//! Actions on the cluster: asked for once, heard to the end.
//!
//! Invariant: an action that may have begun is never sent a second time; a node that is not to do it names another, which
//! is asked instead. When the connection is lost while it runs, the outcome is
//! [`Code::Unknown`], because it goes on without a listener.

use std::time::{Duration, Instant};

use super::result::First;
use super::{Attempt, Client, ClientError};
use crate::admin::{AdminAction, AdminEvent, AdminOutcome, AdminPlan};
use crate::error::{Code, WireError};
use crate::ids::NodeId;
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

/// How long a promoted node may take to come back as the master.
const PROMOTION: Duration = Duration::from_secs(60);

fn is_unknown(outcome: &AdminOutcome) -> bool {
    outcome.error.as_ref().is_some_and(|error| error.code == Code::Unknown)
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
        let promotes = matches!(action, AdminAction::Promote { .. }) && !dry_run;
        let before = self.welcome.as_ref().map(|welcome| (welcome.node, welcome.epoch.number));
        let mut end = AdminEnd::default();
        match self.hear(action, dry_run, &mut end, &mut on_event).await {
            Ok(()) => {}
            Err(error) if promotes && error.is_unknown() => {}
            Err(error) => return Err(error),
        }
        let (Some((node, epoch)), true) = (before, promotes && !end.refused()) else { return Ok(end) };
        let begun = end.outcome.as_ref().is_none_or(|o| o.error.as_ref().is_some_and(|e| e.code == Code::Unknown));
        if begun {
            let outcome = self.look_after_promotion(node, epoch).await?;
            on_event(&AdminEvent::Outcome(outcome.clone()));
            end.outcome = Some(outcome);
        }
        Ok(end)
    }

    /// A node that is promoted begins again: what it is then is looked at here.
    async fn look_after_promotion(&mut self, node: NodeId, before: u64) -> Result<AdminOutcome, ClientError> {
        let begun = Instant::now();
        let name = node.to_string();
        let mut why = "it has not come back".to_owned();
        while begun.elapsed() < PROMOTION {
            self.lose("the node begins again");
            // It was a replica, and comes back as a voter.
            self.home = None;
            let number = self.cancel.begin();
            if let Err(error) = self.find_node(Instant::now() + Duration::from_secs(5), number).await {
                why = error.to_string();
                continue;
            }
            let epoch = self.welcome.as_ref().map(|welcome| welcome.epoch.number).unwrap_or_default();
            match self.status().await {
                Ok(status) if epoch > before && status.master.as_deref() == Some(name.as_str()) => {
                    return Ok(AdminOutcome {
                        done: true,
                        summary: format!("{name} is the master of epoch {epoch}"),
                        facts: vec![("master".into(), name), ("epoch".into(), epoch.to_string())],
                        ..AdminOutcome::default()
                    });
                }
                Ok(status) => {
                    let master = status.master.unwrap_or_else(|| "nobody".into());
                    why = format!("{name} is in epoch {epoch}, and {master} is master");
                }
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let message = format!("whether {name} was promoted is not known: {why}");
        let error = WireError::new(Code::Unknown, message.clone()).hint("look at it with `quorate status`");
        Ok(AdminOutcome { summary: message, error: Some(error), ..AdminOutcome::default() })
    }

    /// Asks, and hears it to the end.
    async fn hear(
        &mut self,
        action: AdminAction,
        dry_run: bool,
        end: &mut AdminEnd,
        on_event: &mut impl FnMut(&AdminEvent),
    ) -> Result<(), ClientError> {
        let number = self.cancel.begin();
        let deadline = Instant::now() + self.config.deadline;
        if self.link.is_none() {
            self.find_node(deadline, number).await?;
        }
        let name = action.name();
        let mut moved = false;
        let first = loop {
            match self.attempt(&Request::Admin { action: action.clone(), dry_run }, deadline).await {
                Ok(First { response: Response::Error(error), .. }) if error.code == Code::Redirect && !moved => {
                    moved = true;
                    self.follow(error).await?;
                }
                Ok(first) => break first,
                Err(attempt) => return Err(self.unheard(name, attempt)),
            }
        };
        let (request, mut response) = (first.request, first.response);
        loop {
            let last = match response {
                Response::Error(error) => return Err(error.into()),
                Response::Admin { event, last } => {
                    // That of a promotion is not the last word.
                    let early = matches!(&event, AdminEvent::Outcome(o) if is_unknown(o));
                    if !early {
                        on_event(&event);
                    }
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
                return Ok(());
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

    /// Nothing has begun, and another node is to be asked: the session goes on there, voter or replica.
    async fn follow(&mut self, error: WireError) -> Result<(), ClientError> {
        let Some(address) = error.redirect.clone() else { return Err(error.into()) };
        self.lose(&error.message);
        let home = self.home.take();
        match self.try_node(&address, self.config.connect_timeout).await {
            Ok(()) => Ok(()),
            Err(why) => {
                self.home = home;
                Err(error.detail(format!("{address}: {why}")).into())
            }
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
