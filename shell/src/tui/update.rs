//! The only place that changes the model: `update(model, msg) -> effects`. No terminal, no client, no clock.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind};
use quorate_shared::admin::{AdminAction, AdminEvent};
use quorate_shared::ids::NodeId;
use quorate_shared::status::ClusterStatus;
use ratatui_textarea::{CursorMove, TextArea};

use super::actions::{self, ACTIONS, Id};
use super::model::{Answer, Doing, Model, Overlay, Page, Pane, SAMPLES_MAX, SQL_HISTORY_MAX};

/// What can happen.
#[derive(Debug)]
pub enum Msg {
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size.
    Resize(u16, u16),
    /// Time has passed (milliseconds of the monotonic clock).
    Tick(u64),
    /// A picture arrived, or why none did.
    Picture(Result<Box<ClusterStatus>, String>),
    /// A statement ended.
    Answer(Box<Answer>),
    /// The client goes on at another node, or the like: one line to tell.
    Notice(String),
    /// A change of the cluster says something.
    Admin(Box<AdminEvent>),
    /// Nothing more is heard of it, and why not.
    AdminLost(String),
}

/// What the runner is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Run a statement.
    Run(String),
    /// Cancel the running statement.
    Cancel,
    /// Put text on the terminal's clipboard.
    Copy(String),
    /// Take pictures, or stop.
    Poll(bool),
    /// Change the cluster, or only ask for the plan.
    Admin {
        /// What.
        action: AdminAction,
        /// Only the plan.
        dry_run: bool,
        /// Ask the node at this address; `None`: any.
        at: Option<String>,
    },
}

/// How long a message stays, in milliseconds.
const MESSAGE_MS: u64 = 4000;
/// Events kept.
const EVENTS_MAX: usize = 50;

/// Changes the model by one message and says what is to be done.
pub fn update(model: &mut Model, msg: Msg) -> Vec<Effect> {
    match msg {
        Msg::Tick(now) => {
            model.now = now.max(model.now);
            if model.message.as_ref().is_some_and(|(_, until)| *until <= model.now) {
                model.message = None;
            }
            Vec::new()
        }
        Msg::Resize(columns, rows) => {
            model.size = (columns, rows);
            Vec::new()
        }
        Msg::Picture(Ok(picture)) => {
            take_picture(model, *picture);
            Vec::new()
        }
        Msg::Picture(Err(error)) => {
            model.cluster.error = Some(error);
            lost_picture(model);
            Vec::new()
        }
        Msg::Answer(answer) => {
            take_answer(model, *answer);
            Vec::new()
        }
        Msg::Notice(text) => {
            tell(model, text);
            Vec::new()
        }
        Msg::Admin(event) => {
            hear_action(model, *event);
            Vec::new()
        }
        Msg::AdminLost(why) => {
            if let Some(doing) = model.doing.as_mut().filter(|doing| doing.end.is_none()) {
                doing.end = Some(Err(why));
            }
            Vec::new()
        }
        Msg::Paste(text) => {
            if model.overlay.is_none() && model.page == Page::Sql {
                model.pane = Pane::Editor;
                model.sql.editor.insert_str(text.replace("\r\n", "\n").replace('\r', "\n"));
            }
            Vec::new()
        }
        Msg::Key(key) if key.kind == KeyEventKind::Release => Vec::new(),
        Msg::Key(key) => match actions::find(model, &key) {
            Some(id) => act(model, id),
            None => type_key(model, key),
        },
    }
}

fn tell(model: &mut Model, text: String) {
    model.message = Some((text, model.now + MESSAGE_MS));
}

/// Ctrl-C with nothing to cancel or empty: a habit, and pressed once too often leaves only when it is repeated.
fn leave_or_say_how(model: &mut Model) -> Vec<Effect> {
    const AGAIN: &str = "Ctrl-C again leaves";
    if model.sql.running_since.is_some() {
        tell(model, "it is being cancelled; Ctrl-Q leaves".to_owned());
    } else if model.message.as_ref().is_some_and(|(text, until)| text == AGAIN && model.now < *until) {
        return vec![Effect::Quit];
    } else {
        tell(model, AGAIN.to_owned());
    }
    Vec::new()
}

fn act(model: &mut Model, id: Id) -> Vec<Effect> {
    match id {
        Id::Quit | Id::Interrupt => return vec![Effect::Quit],
        Id::Break => return leave_or_say_how(model),
        Id::Help => {
            model.overlay = Some(Overlay::Help);
            model.scroll = 0;
        }
        Id::Close => model.overlay = None,
        Id::Switchover | Id::AddVoter | Id::Demote | Id::Remove | Id::Promote => return plan_action(model, id),
        Id::Confirm => return begin_action(model),
        Id::Cluster => {
            model.page = Page::Cluster;
            model.pane = Pane::Nodes;
        }
        Id::Sql => {
            model.page = Page::Sql;
            model.pane = Pane::Editor;
        }
        Id::NextPane => model.pane = step_pane(model, true),
        Id::PreviousPane => model.pane = step_pane(model, false),
        Id::Up => select(model, -1),
        Id::Down => select(model, 1),
        Id::Open => model.overlay = Some(Overlay::Node),
        Id::Freeze => {
            model.frozen = !model.frozen;
            return vec![Effect::Poll(!model.frozen)];
        }
        Id::Run => return run(model),
        Id::Cancel => {
            model.sql.cancelling = true;
            return vec![Effect::Cancel];
        }
        Id::Clear => {
            model.sql.editor = TextArea::default();
            model.sql.recall = None;
        }
        Id::Earlier => recall(model, true),
        Id::Later => recall(model, false),
        Id::Copy => {
            let wanted = if model.page == Page::Sql { Id::Sql } else { Id::Cluster };
            let command = ACTIONS.iter().find(|a| a.id == wanted).and_then(|a| a.command).unwrap_or("quorate");
            let host = model.connect_hint.strip_prefix("quorate").unwrap_or_default().trim().to_owned();
            let command = if host.is_empty() { command.to_owned() } else { format!("{command} {host}") };
            tell(model, format!("copied: {command}"));
            return vec![Effect::Copy(command)];
        }
    }
    Vec::new()
}

/// Asks for the plan of a change of the selected node.
fn plan_action(model: &mut Model, id: Id) -> Vec<Effect> {
    let selected = model.cluster.picture.as_ref().and_then(|picture| picture.nodes.get(model.node));
    let Some((name, addr)) = selected.map(|node| (node.id.clone(), node.addr.clone())) else { return Vec::new() };
    let Some(node) = name.strip_prefix('n').and_then(|n| n.parse().ok()).map(NodeId::new) else { return Vec::new() };
    let action = match id {
        Id::Switchover => AdminAction::Switchover { to: Some(node) },
        Id::AddVoter => AdminAction::AddVoter { node },
        Id::Demote => AdminAction::DemoteVoter { node },
        Id::Remove => AdminAction::RemoveNode { node },
        Id::Promote => AdminAction::Promote { accept_loss: true },
        _ => return Vec::new(),
    };
    let at = (id == Id::Promote).then_some(addr);
    let danger = ACTIONS.iter().any(|a| a.id == id && a.danger);
    model.overlay = Some(Overlay::Action);
    model.scroll = 0;
    model.doing = Some(Doing {
        action: action.clone(),
        at: at.clone(),
        danger,
        plan: None,
        confirmed: false,
        steps: Vec::new(),
        end: None,
    });
    vec![Effect::Admin { action, dry_run: true, at }]
}

/// The user has said yes to the plan.
fn begin_action(model: &mut Model) -> Vec<Effect> {
    let Some(doing) = model.doing.as_mut().filter(|doing| doing.can_begin()) else { return Vec::new() };
    doing.confirmed = true;
    vec![Effect::Admin { action: doing.action.clone(), dry_run: false, at: doing.at.clone() }]
}

fn hear_action(model: &mut Model, event: AdminEvent) {
    let Some(doing) = &mut model.doing else { return };
    match event {
        AdminEvent::Plan(plan) => {
            doing.steps = vec![None; plan.steps.len()];
            doing.plan = Some(plan);
        }
        AdminEvent::Step { step, state, detail, elapsed_ms } => {
            if let Some(slot) = doing.steps.get_mut(step as usize) {
                *slot = Some((state, detail, elapsed_ms));
            }
        }
        AdminEvent::Outcome(outcome) => doing.end = Some(Ok(outcome)),
    }
}

/// The panes of a page, in order.
fn panes(page: Page) -> &'static [Pane] {
    match page {
        Page::Cluster => &[Pane::Nodes, Pane::Replication, Pane::Problems],
        Page::Sql => &[Pane::Editor, Pane::Result],
    }
}

fn step_pane(model: &Model, forward: bool) -> Pane {
    let panes = panes(model.page);
    let at = panes.iter().position(|p| *p == model.pane).unwrap_or(0);
    let step = if forward { 1 } else { panes.len() - 1 };
    panes[(at + step) % panes.len()]
}

fn select(model: &mut Model, by: isize) {
    if matches!(model.overlay, Some(Overlay::Help | Overlay::Action)) {
        model.scroll = model.scroll.saturating_add_signed(by as i16);
        return;
    }
    let picture = model.cluster.picture.as_ref();
    let (position, count) = match model.pane {
        Pane::Nodes => (&mut model.node, picture.map_or(0, |p| p.nodes.len())),
        Pane::Problems => (&mut model.problem, picture.map_or(0, |p| p.problems.len())),
        Pane::Replication => {
            let count = picture.map_or(0, |p| p.shards.iter().map(|s| s.members.len()).sum());
            (&mut model.member, count)
        }
        Pane::Editor | Pane::Result => {
            let count = model.sql.answer.as_ref().map_or(0, |a| a.rows.len());
            (&mut model.sql.row, count)
        }
    };
    *position = position.saturating_add_signed(by).min(count.saturating_sub(1));
}

fn run(model: &mut Model) -> Vec<Effect> {
    let text = model.sql.editor.lines().join("\n");
    let sql = text.trim().trim_end_matches(';').trim().to_owned();
    if sql.is_empty() {
        return Vec::new();
    }
    model.sql.running_since = Some(model.now);
    model.sql.cancelling = false;
    model.sql.recall = None;
    if model.sql.history.back() != Some(&text) {
        model.sql.history.push_back(text);
        if model.sql.history.len() > SQL_HISTORY_MAX {
            model.sql.history.pop_front();
        }
    }
    model.sql.editor = TextArea::default();
    vec![Effect::Run(sql)]
}

fn recall(model: &mut Model, earlier: bool) {
    let count = model.sql.history.len();
    let position = match (model.sql.recall, earlier) {
        (None, true) => count.checked_sub(1),
        (Some(at), true) => Some(at.saturating_sub(1)),
        (Some(at), false) if at + 1 < count => Some(at + 1),
        _ => None,
    };
    model.sql.recall = position;
    let text = position.and_then(|at| model.sql.history.get(at)).cloned().unwrap_or_default();
    model.sql.editor = TextArea::new(text.lines().map(str::to_owned).collect());
    model.sql.editor.move_cursor(CursorMove::Bottom);
    model.sql.editor.move_cursor(CursorMove::End);
}

/// Keys that no action claims: text of the statement, scrolling of the result.
fn type_key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    if model.overlay == Some(Overlay::Action) && key.code == KeyCode::Enter {
        // What cannot be taken back wants its own key.
        return if model.doing.as_ref().is_some_and(|doing| !doing.danger) { begin_action(model) } else { Vec::new() };
    }
    if let Some(why) = actions::not_for_selected(model, &key) {
        tell(model, why);
    }
    if model.overlay.is_some() || model.page != Page::Sql {
        return Vec::new();
    }
    if model.pane == Pane::Result {
        let rows = model.sql.answer.as_ref().map_or(0, |a| a.rows.len()).saturating_sub(1);
        let columns = model.sql.answer.as_ref().map_or(0, |a| a.columns.len()).saturating_sub(1);
        let page = usize::from(model.size.1 / 2).max(1);
        match key.code {
            KeyCode::PageDown => model.sql.row = (model.sql.row + page).min(rows),
            KeyCode::PageUp => model.sql.row = model.sql.row.saturating_sub(page),
            KeyCode::Home => model.sql.row = 0,
            KeyCode::End => model.sql.row = rows,
            KeyCode::Right => model.sql.column = (model.sql.column + 1).min(columns),
            KeyCode::Left => model.sql.column = model.sql.column.saturating_sub(1),
            KeyCode::Esc => model.pane = Pane::Editor,
            _ => {}
        }
        return Vec::new();
    }
    match key.code {
        KeyCode::Enter => {
            let ends = model.sql.editor.lines().join("\n").trim_end().ends_with(';');
            if ends && model.sql.running_since.is_none() {
                return run(model);
            }
            model.sql.editor.insert_newline();
        }
        KeyCode::Esc => {
            model.page = Page::Cluster;
            model.pane = Pane::Nodes;
        }
        _ => {
            model.sql.editor.input(key);
        }
    }
    Vec::new()
}

fn push_sample(samples: &mut VecDeque<Option<u64>>, sample: Option<u64>) {
    samples.push_back(sample);
    while samples.len() > SAMPLES_MAX {
        samples.pop_front();
    }
}

fn take_picture(model: &mut Model, picture: ClusterStatus) {
    let elapsed = model.now.saturating_sub(model.cluster.at).max(1);
    let had = model.cluster.picture.is_some();
    for shard in &picture.shards {
        for member in &shard.members {
            let samples = model.cluster.lag.entry((shard.id.clone(), member.node.clone())).or_default();
            push_sample(samples, member.lag_ms);
        }
    }
    let commit = picture.shards.iter().map(|s| s.commit).sum::<Option<u64>>().filter(|_| !picture.shards.is_empty());
    let rate = match (commit, model.cluster.last_commit) {
        (Some(now), Some(before)) if had && now >= before => Some((now - before) * 1000 / elapsed),
        _ => None,
    };
    push_sample(&mut model.cluster.rate, rate);
    model.cluster.last_commit = commit;
    note_changes(model, &picture);
    model.node = model.node.min(picture.nodes.len().saturating_sub(1));
    model.problem = model.problem.min(picture.problems.len().saturating_sub(1));
    let members: usize = picture.shards.iter().map(|s| s.members.len()).sum();
    model.member = model.member.min(members.saturating_sub(1));
    model.cluster.picture = Some(picture);
    model.cluster.at = model.now;
    model.cluster.error = None;
}

/// What differs from the last picture, for the event list: master, problems.
fn note_changes(model: &mut Model, picture: &ClusterStatus) {
    let Some(before) = &model.cluster.picture else { return };
    let mut events = Vec::new();
    if before.master != picture.master {
        events.push(match &picture.master {
            Some(master) => format!("{master} is master now"),
            None => "no master".to_owned(),
        });
    }
    let named =
        |p: &ClusterStatus| -> Vec<String> { p.problems.iter().map(|p| format!("{} {}", p.name, p.subject)).collect() };
    let (old, new) = (named(before), named(picture));
    events.extend(new.iter().filter(|p| !old.contains(p)).map(|p| format!("raised: {p}")));
    events.extend(old.iter().filter(|p| !new.contains(p)).map(|p| format!("cleared: {p}")));
    for event in events {
        model.cluster.events.push_back((model.now, event));
        if model.cluster.events.len() > EVENTS_MAX {
            model.cluster.events.pop_front();
        }
    }
}

/// No node answered: time goes on in the charts, as a gap.
fn lost_picture(model: &mut Model) {
    for samples in model.cluster.lag.values_mut() {
        push_sample(samples, None);
    }
    push_sample(&mut model.cluster.rate, None);
    model.cluster.last_commit = None;
}

fn take_answer(model: &mut Model, answer: Answer) {
    model.sql.running_since = None;
    model.sql.cancelling = false;
    model.sql.row = 0;
    model.sql.column = 0;
    if let Ok(done) = &answer.end
        && let Some((_, database)) = done.settings.iter().find(|(name, _)| name == "database")
    {
        model.database.clone_from(database);
    }
    model.sql.answer = Some(answer);
}
