//! Actions on the cluster: `quorate admin …` and the backslash commands of the same names.
//!
//! The plan and the steps are narration and go to standard error as they come; the outcome is data and goes to standard
//! output, as does the plan of a dry run. With `--json` standard output gets one document with all of it.
//!
//! Invariants: something dangerous is shown and asked about before it is begun, on a terminal and without `--yes`; exit 0
//! only when the outcome was verified (or a dry run found nothing against it).

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use quorate_shared::admin::{AdminAction, AdminEvent, AdminOutcome, AdminPlan, StepState};
use quorate_shared::client::{AdminEnd, Client, ClientError, Policy};
use quorate_shared::error::{Code, WireError};
use serde_json::{Value as Json, json};

use crate::args::AdminArgs;
use crate::config::Options;
use crate::exit::Exit;
use crate::output::Output;
use crate::render::error::{Paint, plain_error};
use crate::session::{Failure, Interrupts, Session, client_config};

/// Whether to ask first: it cannot be taken back.
pub fn dangerous(action: &AdminAction) -> bool {
    matches!(action, AdminAction::Promote { .. } | AdminAction::RemoveNode { .. })
}

/// `quorate admin`; its exit code.
pub async fn run(options: &Options, args: &AdminArgs, paint: Paint) -> u8 {
    let how = How { dry_run: args.dry_run, json: args.json, yes: args.yes, ..How::default() };
    act(options, args.action.action(), how, paint).await
}

/// How an action of the command line is carried out.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Only planned.
    pub dry_run: bool,
    /// As one JSON document.
    pub json: bool,
    /// Without asking.
    pub yes: bool,
    /// The action's document is the data: it alone goes to standard output or into a file, the rest is narration.
    pub document: Option<Document>,
}

/// Where an action's document goes.
#[derive(Clone, Debug)]
pub enum Document {
    /// To standard output.
    Printed,
    /// Into this file.
    Written(PathBuf),
}

/// Carries an action out from the command line; its exit code.
pub async fn act(options: &Options, action: AdminAction, args: How, paint: Paint) -> u8 {
    let mut config = client_config(options);
    // Whatever the cluster lacks, it must be possible to change it.
    config.database = None;
    config.settings.clear();
    config.policy = Policy::Stay;
    let mut client = match Client::connect(config).await {
        Ok(client) => client,
        Err(error) => return failed(error, paint),
    };
    if dangerous(&action) && !args.dry_run && !args.yes && !args.json && io::stdin().is_terminal() {
        match confirmed(&mut client, &action, paint).await {
            Ok(true) => {}
            Ok(false) => return Exit::Interrupted.code(),
            Err(error) => return failed(error, paint),
        }
    }
    let mut told = Told { paint, json: args.json, steps: Vec::new(), titles: Vec::new() };
    let mut interrupts = Interrupts::listen();
    let ended = tokio::select! {
        ended = client.admin(action.clone(), args.dry_run, |event| told.hear(event)) => ended,
        () = interrupts.next() => {
            eprintln!("stopped listening; what has begun goes on (`quorate status` shows it)");
            return Exit::Interrupted.code();
        }
    };
    let end = match ended {
        Ok(end) => end,
        Err(error) => return failed(error, paint),
    };
    let text = match args.json {
        true => format!("{:#}\n", document(&action, args.dry_run, &end, &told.steps)),
        false => match (&args.document, end.outcome.as_ref().filter(|outcome| outcome.done)) {
            (Some(to), Some(outcome)) => match document_text(to, outcome, paint) {
                Ok(text) => text,
                Err(why) => {
                    eprint!("{}", plain_error(&WireError::new(Code::Invalid, why), paint));
                    return Exit::Failed.code();
                }
            },
            _ => ended_text(&end, args.dry_run),
        },
    };
    let mut output = Output::stdout();
    if let Err(error) = output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        eprintln!("error: cannot write the outcome: {error}");
        return Exit::Failed.code();
    }
    complain(&end, args.json, paint);
    exit(&end).code()
}

/// The same within a session.
pub async fn in_session(session: &mut Session, action: AdminAction, dry_run: bool) -> Result<(), Failure> {
    let paint = session.display.paint;
    let terminal = io::stdin().is_terminal() && session.output.is_terminal();
    if dangerous(&action) && !dry_run && terminal && !confirmed(session.client(), &action, paint).await? {
        session.display.say("nothing was done");
        return Ok(());
    }
    let mut told = Told { paint, json: session.display.quiet, steps: Vec::new(), titles: Vec::new() };
    let end = session.client().admin(action, dry_run, |event| told.hear(event)).await?;
    session.write_text(&ended_text(&end, dry_run)).map_err(Failure::Output)?;
    match error_of(&end) {
        Some(error) => Err(Failure::Statement(error)),
        None => Ok(()),
    }
}

/// Shows the plan and asks.
async fn confirmed(client: &mut Client, action: &AdminAction, paint: Paint) -> Result<bool, ClientError> {
    let end = client.admin(action.clone(), true, |_| ()).await?;
    if end.refused() {
        // The action itself will say so.
        return Ok(true);
    }
    eprint!("{}", plan_text(&end.plan));
    eprint!("{} ", paint.warn("this cannot be taken back; go on? [y/N]"));
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
    Ok(read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// What is told while it goes on.
struct Told {
    paint: Paint,
    /// Nothing is told before the end.
    json: bool,
    steps: Vec<Json>,
    titles: Vec<String>,
}

impl Told {
    fn hear(&mut self, event: &AdminEvent) {
        match event {
            AdminEvent::Plan(plan) => {
                self.titles.clone_from(&plan.steps);
                if !self.json && plan.refusals.is_empty() {
                    eprintln!("{}", plan.title);
                    plan.warnings.iter().for_each(|w| eprintln!("{} {w}", self.paint.warn("warning:")));
                }
            }
            AdminEvent::Step { step, state, detail, elapsed_ms } => {
                self.steps.push(json!({"step": step, "state": state, "detail": detail, "elapsed_ms": elapsed_ms}));
                if !self.json {
                    let title = self.titles.get(*step as usize).map_or("", String::as_str);
                    eprintln!("{}", step_line(*step, *state, title, detail, *elapsed_ms, self.paint));
                }
            }
            AdminEvent::Outcome(_) => {}
        }
    }
}

/// `  0.012 s  [2] s0: n1 hands leadership to n2 … done: n2 leads s0 in t7, 9 ms`.
fn step_line(step: u32, state: StepState, title: &str, detail: &str, elapsed_ms: u64, paint: Paint) -> String {
    let state = match state {
        StepState::Running => paint.dim("…"),
        StepState::Done => paint.help("done"),
        StepState::Failed => paint.bad("failed"),
    };
    let colon = if detail.is_empty() { "" } else { ": " };
    format!("{:>8.3} s  [{}] {title} {state}{colon}{detail}", elapsed_ms as f64 / 1000.0, step + 1)
}

/// A plan for people.
pub fn plan_text(plan: &AdminPlan) -> String {
    let mut out = format!("{}\n", plan.title);
    for (number, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(out, "  {}. {step}", number + 1);
    }
    for (what, texts) in [("warning", &plan.warnings), ("refused", &plan.refusals)] {
        for text in texts {
            let _ = writeln!(out, "  {what}: {text}");
        }
    }
    out
}

/// What came of it, for people.
fn ended_text(end: &AdminEnd, dry_run: bool) -> String {
    match &end.outcome {
        _ if end.refused() => plan_text(&end.plan),
        None if dry_run => plan_text(&end.plan),
        None => String::new(),
        Some(outcome) => outcome_text(outcome),
    }
}

fn outcome_text(outcome: &AdminOutcome) -> String {
    if !outcome.done {
        return String::new();
    }
    let mut out = format!("{}\n", outcome.summary);
    let width = outcome.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in &outcome.facts {
        let _ = writeln!(out, "  {name:width$}  {value}");
    }
    if let Some(document) = &outcome.document {
        let _ = writeln!(out, "{}", document.trim_end());
    }
    out
}

/// The document alone, for standard output; what was said about it goes to standard error.
fn document_text(to: &Document, outcome: &AdminOutcome, paint: Paint) -> Result<String, String> {
    let about = AdminOutcome { document: None, ..outcome.clone() };
    eprint!("{}", paint.dim(&outcome_text(&about)));
    let text = outcome.document.clone().unwrap_or_default();
    match to {
        Document::Printed => Ok(text),
        Document::Written(path) => {
            let made = std::fs::File::options().write(true).create_new(true).open(path);
            let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
            written.map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => taken(path),
                _ => format!("cannot write {}: {e}", path.display()),
            })?;
            Ok(format!("{}\n", path.display()))
        }
    }
}

/// Why a document is not written to a file.
pub fn taken(path: &Path) -> String {
    format!("{} is there already, and an older document is worth keeping: give another name", path.display())
}

/// All of it as one document.
fn document(action: &AdminAction, dry_run: bool, end: &AdminEnd, steps: &[Json]) -> Json {
    let outcome = end.outcome.as_ref().map(|outcome| {
        let facts: serde_json::Map<String, Json> =
            outcome.facts.iter().map(|(name, value)| (name.clone(), fact(value))).collect();
        json!({
            "done": outcome.done,
            "summary": outcome.summary,
            "facts": facts,
            "document": outcome.document,
            "error": outcome.error,
        })
    });
    json!({
        "schema": 1,
        "action": action.name(),
        "dry_run": dry_run,
        "refused": end.refused(),
        "plan": end.plan,
        "steps": steps,
        "outcome": outcome,
    })
}

/// A number where it is one.
fn fact(value: &str) -> Json {
    value.parse::<u64>().map_or_else(|_| Json::from(value), Json::from)
}

/// The error of an action that was not done.
fn error_of(end: &AdminEnd) -> Option<WireError> {
    if end.refused() {
        let error = WireError::new(Code::Invalid, "the action was refused; nothing has changed");
        return Some(error.detail(end.plan.refusals.join("; ")));
    }
    let outcome = end.outcome.as_ref().filter(|outcome| !outcome.done)?;
    Some(outcome.error.clone().unwrap_or_else(|| WireError::new(Code::Internal, outcome.summary.clone())))
}

fn complain(end: &AdminEnd, json: bool, paint: Paint) {
    if let Some(error) = error_of(end).filter(|_| !json) {
        // Each refusal stands in the plan already.
        let error = if end.refused() { WireError { detail: None, ..error } } else { error };
        eprint!("{}", plain_error(&error, paint));
    }
}

fn exit(end: &AdminEnd) -> Exit {
    error_of(end).map_or(Exit::Done, |error| Exit::of(error.code))
}

fn failed(error: ClientError, paint: Paint) -> u8 {
    let exit = match &error {
        ClientError::NoConnection { .. } => Exit::NoConnection,
        other if other.is_unknown() => Exit::Unknown,
        _ => Exit::Failed,
    };
    eprint!("{}", plain_error(&error.into_wire(), paint));
    exit.code()
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::NodeId;

    use super::*;

    fn end(refusals: &[&str], outcome: Option<AdminOutcome>) -> AdminEnd {
        let refusals = refusals.iter().map(|r| (*r).to_owned()).collect();
        let plan = AdminPlan { title: "hand over".into(), steps: vec!["s0".into()], refusals, warnings: Vec::new() };
        AdminEnd { plan, outcome }
    }

    #[test]
    fn what_came_of_it_is_the_exit_code() {
        let done = AdminOutcome { done: true, summary: "n2 leads".into(), ..AdminOutcome::default() };
        assert_eq!(exit(&end(&[], Some(done.clone()))), Exit::Done);
        assert_eq!(exit(&end(&[], None)), Exit::Done, "a dry run that nothing stands against");
        assert_eq!(exit(&end(&["Lagging: n2"], None)), Exit::Failed);
        let unknown = Some(WireError::new(Code::Unknown, "gone"));
        assert_eq!(exit(&end(&[], Some(AdminOutcome { error: unknown, ..AdminOutcome::default() }))), Exit::Unknown);
        let action = AdminAction::Switchover { to: Some(NodeId::new(2)) };
        let facts = vec![("write_gap_ms".to_owned(), "43".to_owned())];
        let json = document(&action, false, &end(&[], Some(AdminOutcome { facts, ..done })), &[]);
        assert_eq!((&json["outcome"]["facts"]["write_gap_ms"], &json["refused"]), (&43.into(), &false.into()));
    }

    #[test]
    fn a_plan_reads_like_one() {
        assert_eq!(plan_text(&end(&["Lagging: n2"], None).plan), "hand over\n  1. s0\n  refused: Lagging: n2\n");
        let line = step_line(0, StepState::Done, "s0: over", "9 ms", 12, Paint::default());
        assert_eq!(line, "   0.012 s  [1] s0: over done: 9 ms");
    }
}
