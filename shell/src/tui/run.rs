//! Runs the TUI: terminal in, messages through `update`, effects out.
//!
//! Three things happen at once: a thread reads keys, a task takes pictures of the cluster and a task runs statements;
//! each only sends messages. The loss of any and every node is a message, never an end.
//!
//! Left out: mouse; the terminal's own selection works instead.

use std::io::{IsTerminal, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{self, DisableBracketedPaste, EnableBracketedPaste, Event};
use crossterm::execute;
use quorate_shared::admin::AdminAction;
use quorate_shared::client::{CancelHandle, Client, ClientConfig, ClientError, Policy};
use quorate_shared::error::{Code, WireError};
use quorate_shared::url::Address;
use quorate_shared::wire::QueryOptions;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::model::{Answer, Model, RESULT_ROWS_MAX};
use super::update::{Effect, Msg, update};
use super::view::view;

/// Time between two pictures.
const POLL: Duration = Duration::from_millis(500);
/// A picture that takes longer is given up.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Messages waiting for `update`; beyond it the senders wait.
const INBOX_MAX: usize = 256;

/// How to start.
pub struct Options {
    /// How to connect.
    pub client: ClientConfig,
    /// How a second shell connects, for the screen.
    pub connect_hint: String,
    /// Colours may be used.
    pub color: bool,
}

/// Runs until the user leaves or a signal comes; the exit code.
pub async fn run(options: Options) -> std::io::Result<u8> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    if !(std::io::stdin().is_terminal() && stdout().is_terminal()) {
        let why = "this needs a terminal; `quorate status --watch 1` writes the same picture anywhere";
        return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, why));
    }
    let mut terminal = ratatui::try_init()?;
    let restore = Restore;
    execute!(stdout(), EnableBracketedPaste)?;
    let size = terminal.size()?;
    let database = options.client.database.clone().unwrap_or_else(|| "main".to_owned());
    let model = Model::new(options.connect_hint, database, options.color, (size.width, size.height));

    let (tx, rx) = mpsc::channel(INBOX_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let keys = {
        let (tx, stop) = (tx.clone(), stop.clone());
        std::thread::Builder::new().name("keys".into()).spawn(move || read_keys(&tx, &stop))?
    };
    let (poll_tx, poll_rx) = watch::channel(true);
    let pictures = tokio::spawn(take_pictures(options.client.clone(), tx.clone(), poll_rx));
    let (sql_tx, sql_rx) = mpsc::channel(1);
    let (cancel_tx, cancel_rx) = watch::channel(None);
    let statements = tokio::spawn(run_statements(options.client.clone(), tx.clone(), sql_rx, cancel_tx));

    let io = Io { poll: poll_tx, sql: sql_tx, cancel: cancel_rx, client: options.client, tx };
    let code = tokio::select! {
        code = drive(&mut terminal, model, rx, io) => code,
        _ = hangup.recv() => Ok(129),
        _ = terminate.recv() => Ok(143),
    };
    stop.store(true, Ordering::Relaxed);
    pictures.abort();
    statements.abort();
    drop(keys);
    drop(restore);
    code
}

/// Gives the terminal back, however the TUI ends.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // Nothing better can be done with an error here: the terminal may be gone.
        let _ = execute!(stdout(), DisableBracketedPaste);
        ratatui::restore();
    }
}

/// Where effects go.
struct Io {
    poll: watch::Sender<bool>,
    sql: mpsc::Sender<String>,
    cancel: watch::Receiver<Option<CancelHandle>>,
    client: ClientConfig,
    tx: mpsc::Sender<Msg>,
}

async fn drive(
    terminal: &mut DefaultTerminal,
    mut model: Model,
    mut inbox: mpsc::Receiver<Msg>,
    io: Io,
) -> std::io::Result<u8> {
    let started = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        terminal.draw(|frame| view(&model, frame))?;
        let first = tokio::select! {
            msg = inbox.recv() => match msg { Some(msg) => msg, None => return Ok(0) },
            _ = tick.tick() => Msg::Tick(0),
        };
        let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut effects = update(&mut model, Msg::Tick(now));
        effects.extend(update(&mut model, first));
        // One drawing for everything that waits.
        while let Ok(msg) = inbox.try_recv() {
            effects.extend(update(&mut model, msg));
        }
        for effect in effects {
            match effect {
                Effect::Quit => return Ok(0),
                Effect::Run(sql) => {
                    if io.sql.try_send(sql).is_err() {
                        update(&mut model, Msg::Notice("the last statement has not ended yet".into()));
                    }
                }
                Effect::Cancel => {
                    let handle = io.cancel.borrow().clone();
                    if let Some(handle) = handle {
                        // Its answer is the end of the statement.
                        tokio::spawn(async move { handle.cancel().await });
                    }
                }
                Effect::Admin { action, dry_run, at } => {
                    tokio::spawn(act(io.client.clone(), io.tx.clone(), action, dry_run, at));
                }
                Effect::Copy(text) => execute!(stdout(), CopyToClipboard::to_clipboard_from(text))?,
                Effect::Poll(on) => {
                    io.poll.send_replace(on);
                }
            }
        }
    }
}

/// Changes the cluster, or asks for the plan, on a connection of its own.
async fn act(mut config: ClientConfig, tx: mpsc::Sender<Msg>, action: AdminAction, dry_run: bool, at: Option<String>) {
    config.database = None;
    config.settings.clear();
    config.policy = Policy::Stay;
    if let Some(address) = at.and_then(|at| Address::parse(&at, quorate_shared::limits::PORT_DEFAULT).ok()) {
        config.hosts = vec![address];
    }
    let said = tx.clone();
    let heard = async {
        let mut client = Client::connect(config).await?;
        // A full inbox loses a step, and the next one shows how far it is.
        client.admin(action, dry_run, |event| drop(said.try_send(Msg::Admin(Box::new(event.clone()))))).await
    };
    if let Err(error) = heard.await {
        // Nobody looks any more when the inbox is gone.
        let _ = tx.send(Msg::AdminLost(error.to_string())).await;
    }
}

fn read_keys(tx: &mpsc::Sender<Msg>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let msg = match event::poll(Duration::from_millis(100)) {
            Ok(false) => continue,
            Ok(true) => match event::read() {
                Ok(Event::Key(key)) => Msg::Key(key),
                Ok(Event::Paste(text)) => Msg::Paste(text),
                Ok(Event::Resize(columns, rows)) => Msg::Resize(columns, rows),
                Ok(_) => continue,
                Err(_) => return,
            },
            Err(_) => return,
        };
        if tx.blocking_send(msg).is_err() {
            return;
        }
    }
}

/// Takes a picture every [`POLL`], from whatever node answers.
async fn take_pictures(config: ClientConfig, tx: mpsc::Sender<Msg>, mut on: watch::Receiver<bool>) {
    let mut known = config.hosts.clone();
    let mut client: Option<Client> = None;
    let mut timer = tokio::time::interval(POLL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        if !*on.borrow() && on.wait_for(|on| *on).await.is_err() {
            return;
        }
        let taken = tokio::time::timeout(PICTURE_TIMEOUT, picture(&config, &known, &mut client)).await;
        let msg = match taken {
            Ok(Ok(picture)) => {
                for node in &picture.nodes {
                    if let Ok(address) = Address::parse(&node.addr, quorate_shared::limits::PORT_DEFAULT)
                        && !known.contains(&address)
                    {
                        known.push(address);
                    }
                }
                Msg::Picture(Ok(Box::new(picture)))
            }
            Ok(Err(error)) => {
                client = None;
                // Which also says who answered, and could not be understood.
                Msg::Picture(Err(error.to_string()))
            }
            Err(_) => {
                client = None;
                Msg::Picture(Err(format!("no node answers within {} s", PICTURE_TIMEOUT.as_secs())))
            }
        };
        if tx.send(msg).await.is_err() {
            return;
        }
    }
}

async fn picture(
    config: &ClientConfig,
    known: &[Address],
    client: &mut Option<Client>,
) -> Result<quorate_shared::status::ClusterStatus, ClientError> {
    if let Some(connected) = client
        && let Ok(picture) = connected.status().await
    {
        return Ok(picture);
    }
    *client = None;
    let config = ClientConfig {
        hosts: known.to_vec(),
        policy: Policy::Stay,
        connect_timeout: Duration::from_millis(500),
        reconnect_timeout: Duration::ZERO,
        deadline: PICTURE_TIMEOUT,
        ..config.clone()
    };
    let connected = client.insert(Client::connect(config).await?);
    connected.status().await
}

/// Runs statements one after the other on a session of its own.
async fn run_statements(
    config: ClientConfig,
    tx: mpsc::Sender<Msg>,
    mut statements: mpsc::Receiver<String>,
    cancel: watch::Sender<Option<CancelHandle>>,
) {
    let mut session: Option<Client> = None;
    while let Some(sql) = statements.recv().await {
        let started = Instant::now();
        let mut answer =
            Answer { sql: sql.clone(), columns: Vec::new(), rows: Vec::new(), end: Ok(Default::default()), took_ms: 0 };
        if let Err(error) = run_one(&config, &mut session, &tx, &cancel, sql, &mut answer).await {
            answer.end = Err(wire(error));
        }
        cancel.send_replace(None);
        answer.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if tx.send(Msg::Answer(Box::new(answer))).await.is_err() {
            return;
        }
    }
}

fn wire(error: ClientError) -> WireError {
    match error {
        ClientError::Server(error) => error,
        other => WireError::new(Code::Retry, other.to_string()).hint("the statement was not executed"),
    }
}

async fn run_one(
    config: &ClientConfig,
    session: &mut Option<Client>,
    tx: &mpsc::Sender<Msg>,
    cancel: &watch::Sender<Option<CancelHandle>>,
    sql: String,
    answer: &mut Answer,
) -> Result<(), ClientError> {
    let client = match session {
        Some(client) => client,
        None => {
            let mut client = Client::connect(config.clone()).await?;
            let tx = tx.clone();
            client.set_listener(Some(Arc::new(move |event| {
                // A full inbox loses a remark, nothing else.
                let _ = tx.try_send(Msg::Notice(event.to_string()));
            })));
            session.insert(client)
        }
    };
    cancel.send_replace(Some(client.cancel_handle()));
    let mut stream = client.query(sql, Vec::new(), QueryOptions::default()).await?;
    answer.columns = stream.columns().to_vec();
    while let Some(rows) = stream.next().await? {
        let room = RESULT_ROWS_MAX.saturating_sub(answer.rows.len());
        answer.rows.extend(rows.into_iter().take(room));
    }
    answer.end = Ok(stream.done().cloned().unwrap_or_default());
    Ok(())
}
