//! Whole screens on a test terminal, and the behaviour of `update` key by key.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use quorate_shared::admin::{AdminAction, AdminEvent, AdminOutcome, AdminPlan, StepState};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::NodeId;
use quorate_shared::status::{ClusterStatus, MemberStatus, NodeKind, NodeStatus, Problem, ShardStatus, Verdict};
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, Done};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::model::{Answer, Model, Overlay, Page, Pane, SAMPLES_MAX};
use super::update::{Effect, Msg, update};
use super::view::view;

fn node(id: u64, kind: NodeKind) -> NodeStatus {
    NodeStatus {
        id: format!("n{id}"),
        addr: format!("127.0.0.1:741{id}"),
        http: Some(format!("127.0.0.1:742{id}")),
        kind: Some(kind),
        reachable: true,
        reachable_by_peers: Some(3),
        version: Some("0.1.0".into()),
        uptime_ms: Some(192_000),
        disk_used_bytes: Some(64 << 20),
        disk_free_bytes: Some(80 << 30),
        memory_bytes: Some(61 << 20),
        sessions: Some(id),
        statements: Some(100 * id),
        ..NodeStatus::default()
    }
}

fn member(id: u64, kind: NodeKind, applied: u64, commit: u64) -> MemberStatus {
    MemberStatus {
        node: format!("n{id}"),
        kind,
        sent: Some(commit),
        durable: Some(commit),
        applied: Some(applied),
        lag_entries: Some(commit - applied),
        lag_bytes: Some((commit - applied) * 96),
        lag_ms: Some((commit - applied) * 4),
        report_age_ms: Some(20),
        ..MemberStatus::default()
    }
}

fn shard(id: u64, commit: u64) -> ShardStatus {
    let voters = (1..=3).map(|n| member(n, NodeKind::Voter, commit, commit));
    ShardStatus {
        id: format!("s{id}"),
        leader: Some("n1".into()),
        term: Some(3),
        commit: Some(commit),
        confirmed: true,
        chain: Some("9f2a1c".into()),
        log_bytes: Some(1 << 20),
        led_ms: Some(60_000),
        replicator: Some("raft".into()),
        queue: Some(0),
        members: voters.chain([member(4, NodeKind::Replica, commit - id * 3, commit)]).collect(),
    }
}

/// Three voters, one replica, all well; `s1` three entries behind on the replica.
fn healthy() -> ClusterStatus {
    ClusterStatus {
        schema: 1,
        cluster: Some("3f2ab0".into()),
        taken_at: "2026-11-21T08:00:00.000Z".into(),
        verdict: Verdict::Ok,
        master: Some("n1".into()),
        asked: Some("n1".into()),
        nodes: (1..=3).map(|n| node(n, NodeKind::Voter)).chain([node(4, NodeKind::Replica)]).collect(),
        shards: vec![shard(0, 40), shard(1, 812)],
        sessions: 10,
        archives: Vec::new(),
        problems: Vec::new(),
    }
}

/// The master `n1` is gone: `n2` leads, nothing is known of `n1`, and the replica is silent.
fn broken() -> ClusterStatus {
    let mut picture = healthy();
    picture.verdict = Verdict::Critical;
    picture.master = Some("n2".into());
    picture.nodes[0] = NodeStatus {
        id: "n1".into(),
        addr: "127.0.0.1:7411".into(),
        kind: Some(NodeKind::Voter),
        reachable_by_peers: Some(0),
        error: Some("connection refused".into()),
        ..NodeStatus::default()
    };
    for shard in &mut picture.shards {
        shard.leader = Some("n2".into());
        shard.members[0] = MemberStatus { node: "n1".into(), ..MemberStatus::default() };
        let silent = &mut shard.members[3];
        silent.lag_ms = Some(7300);
        silent.lag_at_least = true;
        silent.report_age_ms = Some(7300);
        silent.stuck_at = Some("send".into());
    }
    let problem = |name: &str, severity, subject: &str, hint: &str| Problem {
        name: name.into(),
        severity,
        subject: subject.into(),
        since: "2026-11-21T07:59:52.000Z".into(),
        hint: hint.into(),
    };
    picture.problems = vec![
        problem("NodeDown", Verdict::Critical, "n1", "no node hears from it: look at its process and its machine"),
        problem("ReplicaStalled", Verdict::Warning, "s1/n4", "it has not reported for 7.3 s: look at the node"),
    ];
    picture
}

fn model_of(size: (u16, u16), color: bool) -> Model {
    Model::new("quorate -h 127.0.0.1:7411".into(), "main".into(), color, size)
}

fn key(model: &mut Model, code: KeyCode) -> Vec<Effect> {
    update(model, Msg::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn ctrl(model: &mut Model, c: char) -> Vec<Effect> {
    update(model, Msg::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)))
}

fn type_text(model: &mut Model, text: &str) {
    for c in text.chars() {
        key(model, KeyCode::Char(c));
    }
}

fn picture(model: &mut Model, at: u64, picture: ClusterStatus) {
    update(model, Msg::Tick(at));
    update(model, Msg::Picture(Ok(Box::new(picture))));
}

/// A minute of pictures with growing commits, then a healthy one.
fn running(size: (u16, u16), color: bool) -> Model {
    let mut model = model_of(size, color);
    for second in 0..60 {
        let mut status = healthy();
        status.shards[1] = shard(1, 500 + second * (5 + second % 4));
        status.shards[1].members[3].lag_ms = Some(second % 7 * 12);
        picture(&mut model, 1_000 * second, status);
    }
    picture(&mut model, 60_000, healthy());
    update(&mut model, Msg::Tick(60_400));
    model
}

fn screen(model: &Model) -> String {
    let mut terminal = Terminal::new(TestBackend::new(model.size.0, model.size.1)).expect("a test terminal");
    terminal.draw(|frame| view(model, frame)).expect("drawing");
    terminal.backend().to_string()
}

fn answer(rows: usize) -> Answer {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let row = |n: usize| {
        vec![
            Value::Int(n as i64),
            Value::Text(format!("Ærøskøbing {n}\nsecond line")),
            Value::Null,
            Value::Bool(n.is_multiple_of(2)),
        ]
    };
    Answer {
        sql: "select * from city".into(),
        columns: vec![
            column("Id", SqlType::Int),
            column("Name", SqlType::Text),
            column("mayor", SqlType::Text),
            column("port", SqlType::Bool),
        ],
        rows: (1..=rows).map(row).collect(),
        end: Ok(Done { tag: "SELECT".into(), rows: rows as u64, ..Done::default() }),
        took_ms: 12,
    }
}

#[test]
fn cluster_page_at_every_size() {
    for (name, size) in [("80x24", (80, 24)), ("120x40", (120, 40)), ("40x12", (40, 12))] {
        insta::assert_snapshot!(format!("cluster_healthy_{name}"), screen(&running(size, true)));
    }
}

#[test]
fn cluster_page_when_the_master_died() {
    for (name, size) in [("80x24", (80, 24)), ("120x40", (120, 40))] {
        let mut model = running(size, true);
        picture(&mut model, 61_000, broken());
        update(&mut model, Msg::Tick(63_000));
        insta::assert_snapshot!(format!("cluster_broken_{name}"), screen(&model));
    }
}

#[test]
fn panes_of_a_small_screen_are_reached_with_tab() {
    let mut model = running((40, 12), false);
    key(&mut model, KeyCode::Tab);
    insta::assert_snapshot!("small_replication", screen(&model));
    key(&mut model, KeyCode::Tab);
    insta::assert_snapshot!("small_problems", screen(&model));
}

#[test]
fn without_any_node_the_last_picture_stays_and_says_that_it_is_stale() {
    let mut model = running((80, 24), false);
    for at in [61_000, 62_000, 68_000] {
        update(&mut model, Msg::Tick(at));
        update(&mut model, Msg::Picture(Err("no connection: 127.0.0.1:7411: connection refused".into())));
    }
    let shown = screen(&model);
    assert!(shown.contains("STALE 8.0 s"), "{shown}");
    assert!(shown.contains("? unknown"), "{shown}");
    insta::assert_snapshot!("stale", shown);
    let samples: &VecDeque<_> = &model.cluster.lag[&("s1".to_owned(), "n4".to_owned())];
    assert_eq!(samples.iter().rev().take(3).collect::<Vec<_>>(), [&None, &None, &None], "a gap, not a flat line");
}

#[test]
fn before_the_first_picture_it_says_why_there_is_none() {
    let mut model = model_of((80, 24), true);
    insta::assert_snapshot!("connecting", screen(&model));
    update(&mut model, Msg::Picture(Err("no connection: 127.0.0.1:7411: connection refused".into())));
    insta::assert_snapshot!("connecting_failed", screen(&model));
}

#[test]
fn colour_is_never_the_only_signal() {
    let mut model = running((80, 24), false);
    picture(&mut model, 61_000, broken());
    let plain = screen(&model);
    for word in ["✖ critical", "✖ unreachable", "▲ s1/n4", "≥ 7.3 s"] {
        assert!(plain.contains(word), "{word} is missing in\n{plain}");
    }
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a test terminal");
    terminal.draw(|frame| view(&model, frame)).expect("drawing");
    let colours = terminal.backend().buffer().content.iter().filter(|c| c.fg != ratatui::style::Color::Reset).count();
    assert_eq!(colours, 0);
}

#[test]
fn help_lists_every_action() {
    let mut model = running((120, 40), true);
    key(&mut model, KeyCode::Char('?'));
    assert_eq!(model.overlay, Some(Overlay::Help));
    insta::assert_snapshot!("help", screen(&model));
    key(&mut model, KeyCode::Esc);
    assert_eq!(model.overlay, None);
}

#[test]
fn details_of_a_node() {
    let mut model = running((80, 24), true);
    key(&mut model, KeyCode::Char('j'));
    key(&mut model, KeyCode::Enter);
    insta::assert_snapshot!("node_details", screen(&model));
}

#[test]
fn a_statement_is_typed_run_and_answered() {
    let mut model = running((80, 24), true);
    key(&mut model, KeyCode::Char('2'));
    assert_eq!((model.page, model.pane), (Page::Sql, Pane::Editor));
    type_text(&mut model, "select *");
    assert_eq!(key(&mut model, KeyCode::Enter), []);
    type_text(&mut model, "from city;");
    assert_eq!(key(&mut model, KeyCode::Enter), [Effect::Run("select *\nfrom city".into())]);
    update(&mut model, Msg::Tick(61_900));
    insta::assert_snapshot!("sql_running", screen(&model));
    assert_eq!(ctrl(&mut model, 'c'), [Effect::Cancel], "Ctrl-C cancels the statement while one runs");
    update(&mut model, Msg::Answer(Box::new(answer(30))));
    insta::assert_snapshot!("sql_answer", screen(&model));
    ctrl(&mut model, 'p');
    assert_eq!(model.sql.editor.lines(), ["select *", "from city;"]);
    assert_eq!(ctrl(&mut model, 'c'), [], "empties the statement being written");
    assert_eq!(model.sql.editor.lines(), [""]);
    assert_eq!(ctrl(&mut model, 'c'), [], "says how to leave when there is nothing to lose");
    assert!(screen(&model).contains("Ctrl-C again leaves"));
    assert_eq!(ctrl(&mut model, 'c'), [Effect::Quit], "and leaves when it is pressed again");
}

#[test]
fn ctrl_c_never_leaves_while_a_statement_runs() {
    let mut model = running((80, 24), true);
    key(&mut model, KeyCode::Char('2'));
    type_text(&mut model, "select 1;");
    key(&mut model, KeyCode::Enter);
    assert_eq!(ctrl(&mut model, 'c'), [Effect::Cancel]);
    assert_eq!((ctrl(&mut model, 'c'), ctrl(&mut model, 'c')), (vec![], vec![]));
    assert!(screen(&model).contains("it is being cancelled; Ctrl-Q leaves"));
}

#[test]
fn a_failed_statement_shows_message_detail_and_hint() {
    let mut model = running((80, 24), true);
    key(&mut model, KeyCode::F(2));
    let error = WireError::new(Code::NotFound, "column \"emial\" does not exist").hint("did you mean \"email\"?");
    update(&mut model, Msg::Answer(Box::new(Answer { end: Err(error), rows: Vec::new(), ..answer(0) })));
    insta::assert_snapshot!("sql_error", screen(&model));
}

#[test]
fn a_change_is_planned_confirmed_and_followed() {
    let mut model = running((80, 24), false);
    key(&mut model, KeyCode::Down);
    let node = NodeId::new(2);
    let action = AdminAction::Switchover { to: Some(node) };
    let asked = key(&mut model, KeyCode::Char('S'));
    assert_eq!(asked, [Effect::Admin { action: action.clone(), dry_run: true, at: None }]);
    assert_eq!(key(&mut model, KeyCode::Enter), [], "there is no plan yet");
    let plan = AdminPlan {
        title: "hand leadership of s0, s1 from n1 to n2".into(),
        steps: vec!["s1: n1 hands leadership to n2".into(), "verify".into()],
        ..AdminPlan::default()
    };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(plan.clone()))));
    insta::assert_snapshot!("action_plan", screen(&model));
    assert_eq!(key(&mut model, KeyCode::Enter), [Effect::Admin { action, dry_run: false, at: None }]);
    assert_eq!(key(&mut model, KeyCode::Char('y')), [], "once is enough");
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(plan))));
    let step = |step, state, detail: &str| AdminEvent::Step { step, state, detail: detail.into(), elapsed_ms: 12 };
    update(&mut model, Msg::Admin(Box::new(step(0, StepState::Done, "n2 leads s1 in t4"))));
    update(&mut model, Msg::Admin(Box::new(step(1, StepState::Running, "looks who leads"))));
    let facts = vec![("write_gap_ms".to_owned(), "31".to_owned())];
    let outcome = AdminOutcome { done: true, summary: "n2 leads s0, s1".into(), facts, ..AdminOutcome::default() };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Outcome(outcome))));
    insta::assert_snapshot!("action_done", screen(&model));
}

#[test]
fn what_cannot_be_taken_back_wants_its_own_key() {
    let mut model = running((80, 24), false);
    key(&mut model, KeyCode::Char('X'));
    let plan = AdminPlan { title: "take n1 out of the cluster".into(), ..AdminPlan::default() };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(plan.clone()))));
    assert_eq!(key(&mut model, KeyCode::Enter), []);
    assert_eq!(key(&mut model, KeyCode::Char('y')).len(), 1);
    key(&mut model, KeyCode::Esc);
    key(&mut model, KeyCode::Char('X'));
    let refused = AdminPlan { refusals: vec!["LastVoter: n1 is the only voter".into()], ..plan };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(refused))));
    assert_eq!(key(&mut model, KeyCode::Char('y')), []);
    assert!(screen(&model).contains("✗ refused: LastVoter"));
}

#[test]
fn on_a_small_screen_a_change_still_says_how_to_begin_and_leave_it() {
    let mut model = running((40, 12), false);
    for _ in 0..3 {
        key(&mut model, KeyCode::Down);
    }
    key(&mut model, KeyCode::Char('P'));
    let plan = AdminPlan {
        title: "make n4 the first voter of epoch 2".into(),
        warnings: vec!["up to 12 acknowledged entries of s1 that only n1 has are lost".into()],
        steps: vec!["n4 begins epoch 2 and restarts in place".into(), "verify".into()],
        ..AdminPlan::default()
    };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(plan.clone()))));
    insta::assert_snapshot!("small_action", screen(&model));
    // More than the screen holds: there are keys for that too.
    let long = AdminPlan { steps: vec!["one of many".into(); 12], ..plan };
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(long.clone()))));
    assert!(screen(&model).contains("└ Up Down more y: no way back; Esc ─"), "{}", screen(&model));
    key(&mut model, KeyCode::Esc);
    key(&mut model, KeyCode::Char('V'));
    update(&mut model, Msg::Admin(Box::new(AdminEvent::Plan(long))));
    assert!(screen(&model).contains("└ Up Down more y does it; Esc ─"), "{}", screen(&model));
}

#[test]
fn letters_are_text_while_typing() {
    let mut model = running((80, 24), true);
    key(&mut model, KeyCode::F(2));
    type_text(&mut model, "q?12jk y");
    assert_eq!(model.sql.editor.lines(), ["q?12jk y"]);
    assert_eq!(ctrl(&mut model, 'q'), [Effect::Quit]);
}

#[test]
fn freezing_stops_the_pictures() {
    let mut model = running((80, 24), true);
    assert_eq!(key(&mut model, KeyCode::Char(' ')), [Effect::Poll(false)]);
    update(&mut model, Msg::Tick(90_000));
    assert!(screen(&model).contains("FROZEN"));
    assert_eq!(key(&mut model, KeyCode::Char(' ')), [Effect::Poll(true)]);
}

#[test]
fn changes_are_remembered() {
    let mut model = running((80, 24), true);
    picture(&mut model, 61_000, broken());
    let events: Vec<_> = model.cluster.events.iter().map(|(_, e)| e.as_str()).collect();
    assert_eq!(events, ["n2 is master now", "raised: NodeDown n1", "raised: ReplicaStalled s1/n4"]);
    picture(&mut model, 62_000, healthy());
    assert!(model.cluster.events.iter().any(|(_, e)| e == "cleared: NodeDown n1"));
}

#[test]
fn no_size_panics() {
    for page in [KeyCode::F(1), KeyCode::F(2), KeyCode::F(10), KeyCode::Enter] {
        for columns in [1, 2, 9, 10, 20, 39, 59, 60, 90, 200] {
            for rows in [1, 2, 3, 4, 5, 11, 13, 14, 60] {
                let mut model = running((columns, rows), true);
                picture(&mut model, 61_000, broken());
                key(&mut model, page);
                update(&mut model, Msg::Answer(Box::new(answer(3))));
                screen(&model);
            }
        }
    }
}

#[test]
fn memory_is_bounded() {
    let mut model = model_of((80, 24), true);
    for at in 0..(SAMPLES_MAX as u64 + 50) {
        picture(&mut model, at * 500, if at % 2 == 0 { healthy() } else { broken() });
    }
    assert!(model.cluster.lag.values().all(|s| s.len() <= SAMPLES_MAX));
    assert!(model.cluster.events.len() <= 50);
}
