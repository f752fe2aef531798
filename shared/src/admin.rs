//! Actions on the cluster: a plan, steps, a verified outcome.
//!
//! An action is asked for with [`AdminAction`]; the answer is a stream of [`AdminEvent`]s: first the plan (what will be
//! done, what it may cost, what stands against it), then each step as it begins and ends, then one outcome that says what
//! was *verified* afterwards. With `dry_run` the plan is all. Shell, TUI and scripts use the same.
//!
//! Invariants: a refused action has changed nothing; an outcome is `done` only when its effect was observed.

use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::ids::NodeId;

/// What is to be done to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminAction {
    /// Hand the leadership of every shard to a voter, planned.
    Switchover {
        /// To this node; `None`: the voter that is furthest.
        to: Option<NodeId>,
    },
    /// Make a log-shipped replica a voter: a learner first, promoted when it has caught up.
    AddVoter {
        /// The replica.
        node: NodeId,
    },
    /// Make a voter a log-shipped replica.
    DemoteVoter {
        /// The voter.
        node: NodeId,
    },
    /// Take a node, also a dead one, out of the cluster.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Make the node that is asked the first voter of a new, fenced epoch.
    Promote {
        /// Go on although acknowledged writes may be lost.
        accept_loss: bool,
    },
    /// Recompute chain and checksums on every node, compare heads, check an anchor.
    Verify {
        /// The bytes of an exported anchor.
        anchor: Option<String>,
    },
    /// Have the nodes sign the chain's heads; the outcome carries the anchor.
    Anchor,
    /// Compare the content of all replicas, range by range, at one timestamp.
    Scrub,
}

impl AdminAction {
    /// Its name in messages and JSON, e.g. `switchover`.
    pub fn name(&self) -> &'static str {
        match self {
            AdminAction::Switchover { .. } => "switchover",
            AdminAction::AddVoter { .. } => "add voter",
            AdminAction::DemoteVoter { .. } => "demote voter",
            AdminAction::RemoveNode { .. } => "remove node",
            AdminAction::Promote { .. } => "promote",
            AdminAction::Verify { .. } => "verify",
            AdminAction::Anchor => "anchor",
            AdminAction::Scrub => "scrub",
        }
    }
}

/// What an action will do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct AdminPlan {
    /// One sentence, e.g. `hand leadership of s0, s1 from n1 to n2`.
    pub title: String,
    /// What will be done, in order.
    pub steps: Vec<String>,
    /// What one should know before: acknowledged writes that may be lost, a fault tolerance that sinks.
    pub warnings: Vec<String>,
    /// What stands against it; empty: it can be done.
    pub refusals: Vec<String>,
}

/// How far a step is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// It has begun.
    Running,
    /// It is done.
    Done,
    /// It has failed; the outcome says what that means.
    Failed,
}

/// The end of an action.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct AdminOutcome {
    /// Its effect was observed.
    pub done: bool,
    /// One sentence: what is now, or what went wrong and how things stand.
    pub summary: String,
    /// Facts as name and value, e.g. `write_gap_ms`, `43`.
    pub facts: Vec<(String, String)>,
    /// A document the action has made, e.g. an anchor's JSON.
    pub document: Option<String>,
    /// The error, where it was not done.
    pub error: Option<WireError>,
}

/// A part of an action's answer. The last one is an outcome, or the plan of a dry run or a refused action.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminEvent {
    /// First of all.
    Plan(AdminPlan),
    /// A step of the plan.
    Step {
        /// Its position in [`AdminPlan::steps`], from 0.
        step: u32,
        /// How far it is.
        state: StepState,
        /// What is going on, e.g. `n4 is 1,204 entries behind`.
        detail: String,
        /// Milliseconds since the action began.
        elapsed_ms: u64,
    },
    /// The end.
    Outcome(AdminOutcome),
}
