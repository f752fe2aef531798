//! The one table of everything the TUI can do: footer, help and key handling are made from it.
//!
//! Invariant: an action that is not in the table does not exist; a key that no enabled action claims goes to the pane.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use quorate_shared::status::NodeKind;

use super::model::{Doing, Model, Overlay, Page, Pane};

/// What an action does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Id {
    /// Leave.
    Quit,
    /// Empty the statement being written.
    Clear,
    /// Leave, from anywhere, also while typing.
    Interrupt,
    /// Ctrl-C with nothing to cancel.
    Break,
    /// Show or hide the help.
    Help,
    /// The cluster page.
    Cluster,
    /// The SQL page.
    Sql,
    /// The next pane.
    NextPane,
    /// The pane before.
    PreviousPane,
    /// Move the selection up.
    Up,
    /// Move the selection down.
    Down,
    /// Everything about the selected node.
    Open,
    /// Close what is on top.
    Close,
    /// Stop or resume the pictures.
    Freeze,
    /// Run the statement.
    Run,
    /// Cancel the running statement.
    Cancel,
    /// An earlier statement.
    Earlier,
    /// A later statement.
    Later,
    /// Copy the command line that shows the same.
    Copy,
    /// Hand the leadership of every shard to the selected node.
    Switchover,
    /// Make the selected replica a voter.
    AddVoter,
    /// Make the selected voter a replica.
    Demote,
    /// Take the selected node out of the cluster.
    Remove,
    /// Make the selected replica the first voter of a new epoch.
    Promote,
    /// Do what the plan says.
    Confirm,
}

/// An entry of the table.
pub struct Action {
    /// What it does.
    pub id: Id,
    /// Its keys as shown.
    pub keys: &'static str,
    /// One or two words for the footer.
    pub label: &'static str,
    /// A sentence for the help.
    pub help: &'static str,
    /// The command line that does or shows the same, if there is one.
    pub command: Option<&'static str>,
    /// It cannot be taken back.
    pub danger: bool,
    /// Whether it can be done now.
    pub enabled: fn(&Model) -> bool,
    /// Whether a key means it.
    pub matches: fn(&KeyEvent) -> bool,
}

fn plain(key: &KeyEvent, code: KeyCode) -> bool {
    key.code == code && !key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT)
}

fn ctrl(key: &KeyEvent, c: char) -> bool {
    key.code == KeyCode::Char(c) && key.modifiers.contains(KeyModifiers::CONTROL)
}

/// Letters are text while a statement is being written.
fn typing(model: &Model) -> bool {
    model.overlay.is_none() && model.page == Page::Sql && model.pane == Pane::Editor
}

fn browsing(model: &Model) -> bool {
    model.overlay.is_none() && !typing(model)
}

/// What the selected node is, where it can be acted on: in the list of nodes, and in a node's details.
fn selected(model: &Model) -> Option<NodeKind> {
    let on_it = browsing(model) && model.page == Page::Cluster && model.pane == Pane::Nodes;
    let node = model.cluster.picture.as_ref()?.nodes.get(model.node)?;
    (on_it || model.overlay == Some(Overlay::Node)).then_some(node.kind).flatten()
}

/// The table, in the order of footer and help.
pub const ACTIONS: &[Action] = &[
    Action {
        id: Id::Close,
        keys: "Esc",
        label: "close",
        help: "Close what is on top.",
        command: None,
        danger: false,
        enabled: |m| m.overlay.is_some(),
        matches: |k| plain(k, KeyCode::Esc) || plain(k, KeyCode::Char('q')) || plain(k, KeyCode::Char('?')),
    },
    Action {
        id: Id::Run,
        keys: "Enter",
        label: "run",
        help: "Run the statement when it ends with ';' (Ctrl-R or F5 at once); otherwise a new line.",
        command: Some("quorate -e 'SQL'"),
        danger: false,
        enabled: |m| typing(m) && m.sql.running_since.is_none(),
        matches: |k| ctrl(k, 'r') || plain(k, KeyCode::F(5)),
    },
    Action {
        id: Id::Cancel,
        keys: "Ctrl-C",
        label: "cancel",
        help: "Cancel the running statement on the server.",
        command: None,
        danger: false,
        enabled: |m| m.page == Page::Sql && m.sql.running_since.is_some() && !m.sql.cancelling,
        matches: |k| ctrl(k, 'c'),
    },
    Action {
        id: Id::Cluster,
        keys: "1 F1",
        label: "cluster",
        help: "Topology, replication lag, problems.",
        command: Some("quorate status"),
        danger: false,
        enabled: |m| m.overlay.is_none() && m.page != Page::Cluster,
        matches: |k| plain(k, KeyCode::F(1)),
    },
    Action {
        id: Id::Sql,
        keys: "2 F2",
        label: "SQL",
        help: "Write statements and see their results.",
        command: Some("quorate"),
        danger: false,
        enabled: |m| m.overlay.is_none() && m.page != Page::Sql,
        matches: |k| plain(k, KeyCode::F(2)) || plain(k, KeyCode::Char('2')),
    },
    Action {
        id: Id::NextPane,
        keys: "Tab",
        label: "pane",
        help: "Go to the next pane.",
        command: None,
        danger: false,
        enabled: |m| m.overlay.is_none(),
        matches: |k| plain(k, KeyCode::Tab),
    },
    Action {
        id: Id::PreviousPane,
        keys: "Shift-Tab",
        label: "back",
        help: "Go to the pane before.",
        command: None,
        danger: false,
        enabled: |m| m.overlay.is_none(),
        matches: |k| k.code == KeyCode::BackTab,
    },
    Action {
        id: Id::Up,
        keys: "Up k",
        label: "up",
        help: "Move the selection or scroll up.",
        command: None,
        danger: false,
        enabled: |m| !typing(m),
        matches: |k| plain(k, KeyCode::Up) || plain(k, KeyCode::Char('k')),
    },
    Action {
        id: Id::Down,
        keys: "Down j",
        label: "down",
        help: "Move the selection or scroll down.",
        command: None,
        danger: false,
        enabled: |m| !typing(m),
        matches: |k| plain(k, KeyCode::Down) || plain(k, KeyCode::Char('j')),
    },
    Action {
        id: Id::Open,
        keys: "Enter",
        label: "details",
        help: "Everything known about the selected node.",
        command: Some("quorate status --json"),
        danger: false,
        enabled: |m| browsing(m) && m.page == Page::Cluster && m.pane == Pane::Nodes && m.cluster.picture.is_some(),
        matches: |k| plain(k, KeyCode::Enter),
    },
    Action {
        id: Id::Freeze,
        keys: "Space",
        label: "freeze",
        help: "Stop taking pictures, to read one; again to go on.",
        command: None,
        danger: false,
        enabled: |m| browsing(m) && m.page == Page::Cluster,
        matches: |k| plain(k, KeyCode::Char(' ')),
    },
    Action {
        id: Id::Copy,
        keys: "y",
        label: "copy command",
        help: "Copy the command line that shows the same.",
        command: None,
        danger: false,
        enabled: browsing,
        matches: |k| plain(k, KeyCode::Char('y')),
    },
    Action {
        id: Id::Earlier,
        keys: "Ctrl-P",
        label: "earlier",
        help: "Bring back an earlier statement.",
        command: None,
        danger: false,
        enabled: |m| typing(m) && !m.sql.history.is_empty(),
        matches: |k| ctrl(k, 'p'),
    },
    Action {
        id: Id::Later,
        keys: "Ctrl-N",
        label: "later",
        help: "Go to a later statement.",
        command: None,
        danger: false,
        enabled: |m| typing(m) && m.sql.recall.is_some(),
        matches: |k| ctrl(k, 'n'),
    },
    Action {
        id: Id::Help,
        keys: "? F10",
        label: "help",
        help: "Show this help.",
        command: Some("quorate --help"),
        danger: false,
        enabled: |m| m.overlay.is_none(),
        matches: |k| plain(k, KeyCode::F(10)),
    },
    Action {
        id: Id::Quit,
        keys: "q",
        label: "quit",
        help: "Leave (Ctrl-Q from anywhere, also while typing).",
        command: None,
        danger: false,
        enabled: browsing,
        matches: |k| plain(k, KeyCode::Char('q')),
    },
    Action {
        id: Id::Confirm,
        keys: "y",
        label: "do it",
        help: "Do what the plan on top says (Enter too, where it can be taken back).",
        command: None,
        danger: false,
        enabled: |m| m.overlay == Some(Overlay::Action) && m.doing.as_ref().is_some_and(Doing::can_begin),
        matches: |k| plain(k, KeyCode::Char('y')),
    },
    Action {
        id: Id::Switchover,
        keys: "S",
        label: "switchover",
        help: "Hand the leadership of every shard to the selected voter; shows the plan first.",
        command: Some("quorate admin switchover --to NODE"),
        danger: false,
        enabled: |m| selected(m) == Some(NodeKind::Voter),
        matches: |k| plain(k, KeyCode::Char('S')),
    },
    Action {
        id: Id::AddVoter,
        keys: "V",
        label: "add voter",
        help: "Make the selected replica a voter; shows the plan first.",
        command: Some("quorate admin add-voter NODE"),
        danger: false,
        enabled: |m| selected(m) == Some(NodeKind::Replica),
        matches: |k| plain(k, KeyCode::Char('V')),
    },
    Action {
        id: Id::Demote,
        keys: "D",
        label: "demote",
        help: "Make the selected voter a log-shipped replica; shows the plan first.",
        command: Some("quorate admin demote NODE"),
        danger: false,
        enabled: |m| selected(m) == Some(NodeKind::Voter),
        matches: |k| plain(k, KeyCode::Char('D')),
    },
    Action {
        id: Id::Remove,
        keys: "X",
        label: "remove",
        help: "Take the selected node, also a dead one, out of the cluster; shows the plan first.",
        command: Some("quorate admin remove NODE"),
        danger: true,
        enabled: |m| selected(m).is_some(),
        matches: |k| plain(k, KeyCode::Char('X')),
    },
    Action {
        id: Id::Promote,
        keys: "P",
        label: "promote",
        help: "Make the selected replica the first voter of a new, fenced epoch; shows what may be lost first.",
        command: Some("quorate -h NODE admin promote"),
        danger: true,
        enabled: |m| selected(m) == Some(NodeKind::Replica),
        matches: |k| plain(k, KeyCode::Char('P')),
    },
    Action {
        id: Id::Clear,
        keys: "Ctrl-C",
        label: "clear",
        help: "Empty the statement being written.",
        command: None,
        danger: false,
        enabled: |m| typing(m) && !m.sql.editor.is_empty(),
        matches: |k| ctrl(k, 'c'),
    },
    Action {
        id: Id::Interrupt,
        keys: "Ctrl-Q",
        label: "quit",
        help: "Leave, from anywhere.",
        command: None,
        danger: false,
        enabled: |_| true,
        matches: |k| ctrl(k, 'q'),
    },
    Action {
        id: Id::Break,
        keys: "Ctrl-C",
        label: "leave",
        help: "Pressed twice with nothing to cancel or empty: leave.",
        command: None,
        danger: false,
        enabled: |_| true,
        matches: |k| ctrl(k, 'c'),
    },
];

/// Whether it begins a change of the cluster: in the footer only beside a node's details, in the help always.
fn changes_cluster(id: Id) -> bool {
    matches!(id, Id::Switchover | Id::AddVoter | Id::Demote | Id::Remove | Id::Promote)
}

/// Why a key that changes the cluster means nothing for the selected node.
pub fn not_for_selected(model: &Model, key: &KeyEvent) -> Option<String> {
    let action = ACTIONS.iter().find(|a| changes_cluster(a.id) && (a.matches)(key))?;
    let wanted = match selected(model)? {
        NodeKind::Voter => "replica",
        NodeKind::Replica => "voter",
    };
    // It fits a screen of 40 columns.
    Some(format!("{} ({}) is for a {wanted}", action.keys, action.label))
}

/// Which action a key means now, if any.
pub fn find(model: &Model, key: &KeyEvent) -> Option<Id> {
    if let Some(action) = ACTIONS.iter().find(|a| (a.enabled)(model) && (a.matches)(key)) {
        return Some(action.id);
    }
    // Keys that are letters: only while nothing is being typed.
    if browsing(model) {
        return match key.code {
            KeyCode::Char('1') => Some(Id::Cluster),
            KeyCode::Char('?') => Some(Id::Help),
            _ => None,
        };
    }
    None
}

/// The actions for the footer: enabled ones, most useful first.
pub fn footer(model: &Model) -> impl Iterator<Item = &'static Action> {
    let model_typing = typing(model);
    ACTIONS.iter().filter(move |a| {
        (a.enabled)(model)
            && !matches!(a.id, Id::Up | Id::Down | Id::PreviousPane | Id::Break)
            && (!changes_cluster(a.id) || model.overlay == Some(Overlay::Node))
            && (a.id != Id::Interrupt || model_typing)
            && (a.id != Id::Interrupt || model.overlay != Some(Overlay::Help))
    })
}
