//! The TUI's whole state. Plain data: changed only by [`super::update`], drawn only by [`super::view`].
//!
//! Time arrives as milliseconds of a monotonic clock; nothing here reads a clock, a socket or a terminal.

use std::collections::{BTreeMap, VecDeque};

use quorate_shared::admin::{AdminAction, AdminOutcome, AdminPlan, StepState};
use quorate_shared::error::WireError;
use quorate_shared::status::{ClusterStatus, MemberStatus, NodeKind, Verdict};
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done};
use ratatui_textarea::TextArea;

/// Samples of lag kept per member: two minutes at two pictures a second.
pub const SAMPLES_MAX: usize = 240;
/// Rows of a result the SQL pane keeps; more are counted, not kept.
pub const RESULT_ROWS_MAX: usize = 1000;
/// Statements the SQL pane remembers.
pub const SQL_HISTORY_MAX: usize = 100;
/// A picture older than this many milliseconds is shown as stale.
pub const STALE_MS: u64 = 3000;

/// What fills the screen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Page {
    /// Topology, replication, problems.
    #[default]
    Cluster,
    /// Statements and results.
    Sql,
}

/// A pane that keys may go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pane {
    /// Every node with its role.
    #[default]
    Nodes,
    /// Every replica of every shard with its lag.
    Replication,
    /// What is wrong.
    Problems,
    /// The statement being written.
    Editor,
    /// The last result.
    Result,
}

/// Something on top of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overlay {
    /// Every action with its keys.
    Help,
    /// Everything known about the selected node.
    Node,
    /// A change of the cluster: its plan, then its steps and its outcome.
    Action,
}

/// A change of the cluster, from its plan to its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// What.
    pub action: AdminAction,
    /// The node that has to be asked itself, if it matters which.
    pub at: Option<String>,
    /// It cannot be taken back.
    pub danger: bool,
    /// What will be done, once a node has said so.
    pub plan: Option<AdminPlan>,
    /// The user has said yes.
    pub confirmed: bool,
    /// How far each step of the plan is, what is going on, and when (milliseconds since it began).
    pub steps: Vec<Option<(StepState, String, u64)>>,
    /// How it ended, or why nothing more is heard.
    pub end: Option<Result<AdminOutcome, String>>,
}

impl Doing {
    /// There is a plan that nothing stands against, and nobody has said yes yet.
    pub fn can_begin(&self) -> bool {
        !self.confirmed && self.end.is_none() && self.plan.as_ref().is_some_and(|plan| plan.refusals.is_empty())
    }
}

/// The last answer to a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The statement.
    pub sql: String,
    /// Columns; empty for a statement without a result.
    pub columns: Vec<Column>,
    /// The first [`RESULT_ROWS_MAX`] rows.
    pub rows: Vec<Vec<Value>>,
    /// How it ended.
    pub end: Result<Done, WireError>,
    /// Milliseconds from sending to the end, as seen here.
    pub took_ms: u64,
}

/// The SQL pane.
#[derive(Debug, Default)]
pub struct SqlPane {
    /// The statement being written.
    pub editor: TextArea<'static>,
    /// Since when a statement runs.
    pub running_since: Option<u64>,
    /// A cancel was sent for it.
    pub cancelling: bool,
    /// What came back last.
    pub answer: Option<Answer>,
    /// First row shown.
    pub row: usize,
    /// First column shown.
    pub column: usize,
    /// Earlier statements, oldest first.
    pub history: VecDeque<String>,
    /// Position in `history` while walking through it.
    pub recall: Option<usize>,
}

/// The cluster as last seen, and how it came to be.
#[derive(Debug, Default)]
pub struct ClusterView {
    /// The last picture that a node gave.
    pub picture: Option<ClusterStatus>,
    /// When it arrived.
    pub at: u64,
    /// Why there is no newer one.
    pub error: Option<String>,
    /// Lag per member over time, newest last; `None` is "not known then".
    pub lag: BTreeMap<(String, String), VecDeque<Option<u64>>>,
    /// Committed entries per second over time, all shards.
    pub rate: VecDeque<Option<u64>>,
    /// Sum of commit indexes at the last picture, for the rate.
    pub last_commit: Option<u64>,
    /// Problems that have come and gone: (time, text), newest last.
    pub events: VecDeque<(u64, String)>,
}

/// The whole state.
#[derive(Debug, Default)]
pub struct Model {
    /// Milliseconds of a monotonic clock.
    pub now: u64,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// What fills the screen.
    pub page: Page,
    /// Where keys go.
    pub pane: Pane,
    /// On top of it.
    pub overlay: Option<Overlay>,
    /// The change of the cluster that was last looked at.
    pub doing: Option<Doing>,
    /// First line of the help that is shown.
    pub scroll: u16,
    /// Selected node, by position.
    pub node: usize,
    /// Selected member, by position.
    pub member: usize,
    /// Selected problem, by position.
    pub problem: usize,
    /// Pictures are not taken while frozen.
    pub frozen: bool,
    /// The cluster.
    pub cluster: ClusterView,
    /// Statements and results.
    pub sql: SqlPane,
    /// How a second shell connects, e.g. `quorate -h 127.0.0.1:7411`.
    pub connect_hint: String,
    /// The session's database.
    pub database: String,
    /// One line to tell: text and until when.
    pub message: Option<(String, u64)>,
    /// Colours may be used; never the only signal.
    pub color: bool,
}

impl Model {
    /// The state at the start.
    pub fn new(connect_hint: String, database: String, color: bool, size: (u16, u16)) -> Self {
        Self { connect_hint, database, color, size, ..Self::default() }
    }

    /// Age of the picture in milliseconds.
    pub fn picture_age(&self) -> u64 {
        self.now.saturating_sub(self.cluster.at)
    }

    /// The picture is old, or there is none.
    pub fn stale(&self) -> bool {
        !self.frozen && (self.cluster.picture.is_none() || self.picture_age() > STALE_MS)
    }

    /// Members of all shards in the order they are shown, worst first, then log-shipped replicas, whose lag matters
    /// most: (shard position, member position).
    pub fn members(&self) -> Vec<(usize, usize)> {
        let Some(picture) = &self.cluster.picture else { return Vec::new() };
        let mut members: Vec<_> = picture
            .shards
            .iter()
            .enumerate()
            .flat_map(|(s, shard)| (0..shard.members.len()).map(move |m| (s, m)))
            .collect();
        members.sort_by_key(|(s, m)| {
            let shard = &picture.shards[*s];
            let member = &shard.members[*m];
            let rank = match member_verdict(picture, &shard.id, member) {
                Verdict::Critical => 0,
                Verdict::Warning => 1,
                Verdict::Unknown => 2,
                Verdict::Ok => 3,
            };
            (rank, member.kind == NodeKind::Voter)
        });
        members
    }
}

/// How a member is: the worst problem about it or its node; unknown lag is not ok.
pub fn member_verdict(picture: &ClusterStatus, shard: &str, member: &MemberStatus) -> Verdict {
    let subject = format!("{shard}/{}", member.node);
    let problems = picture.problems.iter().filter(|p| p.subject == subject || p.subject == member.node);
    let worst = problems.map(|p| p.severity).max().unwrap_or(Verdict::Ok);
    if member.lag_ms.is_none() && worst == Verdict::Ok { Verdict::Unknown } else { worst }
}
