//! The one table of everything the TUI can do: footer, help and key handling are made from it.
//!
//! Invariant: an action that is not in the table does not exist; a key that no enabled action claims goes to the pane.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, Overlay, Page, Pane};

/// What an action does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Id {
    /// Leave.
    Quit,
    /// Empty the statement being written.
    Clear,
    /// Leave, from anywhere, also while typing.
    Interrupt,
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

/// The table, in the order of footer and help.
pub const ACTIONS: &[Action] = &[
    Action {
        id: Id::Close,
        keys: "Esc",
        label: "close",
        help: "Close what is on top.",
        command: None,
        enabled: |m| m.overlay.is_some(),
        matches: |k| plain(k, KeyCode::Esc) || plain(k, KeyCode::Char('q')) || plain(k, KeyCode::Char('?')),
    },
    Action {
        id: Id::Run,
        keys: "Enter",
        label: "run",
        help: "Run the statement when it ends with ';' (Ctrl-R or F5 at once); otherwise a new line.",
        command: Some("quorate -e 'SQL'"),
        enabled: |m| typing(m) && m.sql.running_since.is_none(),
        matches: |k| ctrl(k, 'r') || plain(k, KeyCode::F(5)),
    },
    Action {
        id: Id::Cancel,
        keys: "Ctrl-C",
        label: "cancel",
        help: "Cancel the running statement on the server.",
        command: None,
        enabled: |m| m.page == Page::Sql && m.sql.running_since.is_some() && !m.sql.cancelling,
        matches: |k| ctrl(k, 'c'),
    },
    Action {
        id: Id::Cluster,
        keys: "1 F1",
        label: "cluster",
        help: "Topology, replication lag, problems.",
        command: Some("quorate status"),
        enabled: |m| m.overlay.is_none() && m.page != Page::Cluster,
        matches: |k| plain(k, KeyCode::F(1)),
    },
    Action {
        id: Id::Sql,
        keys: "2 F2",
        label: "SQL",
        help: "Write statements and see their results.",
        command: Some("quorate"),
        enabled: |m| m.overlay.is_none() && m.page != Page::Sql,
        matches: |k| plain(k, KeyCode::F(2)) || plain(k, KeyCode::Char('2')),
    },
    Action {
        id: Id::NextPane,
        keys: "Tab",
        label: "pane",
        help: "Go to the next pane.",
        command: None,
        enabled: |m| m.overlay.is_none(),
        matches: |k| plain(k, KeyCode::Tab),
    },
    Action {
        id: Id::PreviousPane,
        keys: "Shift-Tab",
        label: "back",
        help: "Go to the pane before.",
        command: None,
        enabled: |m| m.overlay.is_none(),
        matches: |k| k.code == KeyCode::BackTab,
    },
    Action {
        id: Id::Up,
        keys: "Up k",
        label: "up",
        help: "Move the selection or scroll up.",
        command: None,
        enabled: |m| !typing(m),
        matches: |k| plain(k, KeyCode::Up) || plain(k, KeyCode::Char('k')),
    },
    Action {
        id: Id::Down,
        keys: "Down j",
        label: "down",
        help: "Move the selection or scroll down.",
        command: None,
        enabled: |m| !typing(m),
        matches: |k| plain(k, KeyCode::Down) || plain(k, KeyCode::Char('j')),
    },
    Action {
        id: Id::Open,
        keys: "Enter",
        label: "details",
        help: "Everything known about the selected node.",
        command: Some("quorate status --json"),
        enabled: |m| browsing(m) && m.page == Page::Cluster && m.pane == Pane::Nodes && m.cluster.picture.is_some(),
        matches: |k| plain(k, KeyCode::Enter),
    },
    Action {
        id: Id::Freeze,
        keys: "Space",
        label: "freeze",
        help: "Stop taking pictures, to read one; again to go on.",
        command: None,
        enabled: |m| browsing(m) && m.page == Page::Cluster,
        matches: |k| plain(k, KeyCode::Char(' ')),
    },
    Action {
        id: Id::Copy,
        keys: "y",
        label: "copy command",
        help: "Copy the command line that shows the same.",
        command: None,
        enabled: browsing,
        matches: |k| plain(k, KeyCode::Char('y')),
    },
    Action {
        id: Id::Earlier,
        keys: "Ctrl-P",
        label: "earlier",
        help: "Bring back an earlier statement.",
        command: None,
        enabled: |m| typing(m) && !m.sql.history.is_empty(),
        matches: |k| ctrl(k, 'p'),
    },
    Action {
        id: Id::Later,
        keys: "Ctrl-N",
        label: "later",
        help: "Go to a later statement.",
        command: None,
        enabled: |m| typing(m) && m.sql.recall.is_some(),
        matches: |k| ctrl(k, 'n'),
    },
    Action {
        id: Id::Help,
        keys: "? F10",
        label: "help",
        help: "Show this help.",
        command: Some("quorate --help"),
        enabled: |m| m.overlay.is_none(),
        matches: |k| plain(k, KeyCode::F(10)),
    },
    Action {
        id: Id::Quit,
        keys: "q",
        label: "quit",
        help: "Leave (Ctrl-Q from anywhere, also while typing).",
        command: None,
        enabled: browsing,
        matches: |k| plain(k, KeyCode::Char('q')),
    },
    Action {
        id: Id::Clear,
        keys: "Ctrl-C",
        label: "clear",
        help: "Empty the statement being written.",
        command: None,
        enabled: |m| typing(m) && !m.sql.editor.is_empty(),
        matches: |k| ctrl(k, 'c'),
    },
    Action {
        id: Id::Interrupt,
        keys: "Ctrl-Q",
        label: "quit",
        help: "Leave, from anywhere.",
        command: None,
        enabled: |_| true,
        matches: |k| ctrl(k, 'q') || ctrl(k, 'c'),
    },
];

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
            && !matches!(a.id, Id::Up | Id::Down | Id::PreviousPane)
            && (a.id != Id::Interrupt || model_typing)
            && (a.id != Id::Interrupt || model.overlay != Some(Overlay::Help))
    })
}
