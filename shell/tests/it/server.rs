//! A server that knows a few statements by heart.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_shared::codec::{self, Connection};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, ClusterId, Epoch, NodeId, SessionId};
use quorate_shared::status::{ClusterStatus, NodeKind, NodeStatus, SCHEMA, Verdict};
use quorate_shared::value::{Decimal, SqlType, Value};
use quorate_shared::wire::{
    ClientFrame, Column, Done, Greeting, Hello, NodeAddress, Notice, Request, Response, SchemaInfo, ServerFrame,
    Welcome,
};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// The server; it ends with the test.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    statements: Mutex<Vec<String>>,
    sessions: AtomicU64,
    canceled: Notify,
    cancels: AtomicU64,
    dropped: AtomicBool,
    verdict: Mutex<Verdict>,
}

impl Server {
    /// Starts it.
    pub fn start() -> Server {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Shared::default());
        let shared = seen.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = codec::accept(stream).await {
                        // A client may leave at any time.
                        let _ = serve(connection, shared, address).await;
                    }
                });
            }
        });
        Server { address, seen, _runtime: runtime }
    }

    /// `HOST:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The statements that came in, in order.
    pub fn statements(&self) -> Vec<String> {
        self.seen.statements.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often somebody asked to stop a statement.
    pub fn cancels(&self) -> u64 {
        self.seen.cancels.load(Ordering::SeqCst)
    }

    /// The verdict of the pictures it gives.
    pub fn set_verdict(&self, verdict: Verdict) {
        *self.seen.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }
}

async fn serve(mut connection: Connection, shared: Arc<Shared>, address: SocketAddr) -> Result<(), codec::CodecError> {
    let Some(Hello::Client(hello)) = connection.reader.message::<Hello>().await? else { return Ok(()) };
    let session = shared.sessions.fetch_add(1, Ordering::SeqCst) + 1;
    let node = NodeAddress { node: NodeId::new(1), address: address.to_string(), kind: NodeKind::Voter };
    let welcome = Welcome {
        cluster: Some(ClusterId([7; 16])),
        epoch: Epoch { number: 1, id: 1 },
        node: NodeId::new(1),
        kind: NodeKind::Voter,
        version: "0.1.0".to_owned(),
        session: SessionId::new(session),
        cancel_key: 42,
        master: Some(node.clone()),
        nodes: vec![node],
        database: hello.database.clone().unwrap_or_else(|| "main".to_owned()),
    };
    connection.writer.send(&Greeting::Welcome(Box::new(welcome))).await?;
    while let Some(ClientFrame { request, body }) = connection.reader.message::<ClientFrame>().await? {
        let answers = match body {
            Request::Query { sql, options, .. } => {
                shared.statements.lock().unwrap_or_else(PoisonError::into_inner).push(sql.clone());
                if options.read_only && !sql.to_lowercase().starts_with("select") {
                    vec![Response::Error(WireError::new(Code::ReadOnly, "the session is read only"))]
                } else if sql == "select gone" && !shared.dropped.swap(true, Ordering::SeqCst) {
                    return Ok(());
                } else if sql.starts_with("select sleep") {
                    shared.canceled.notified().await;
                    let canceled = WireError {
                        sqlstate: Some("57014".to_owned()),
                        ..WireError::new(Code::Invalid, "canceled on request")
                    };
                    vec![Response::Error(canceled)]
                } else {
                    answer(&sql)
                }
            }
            Request::Cancel { .. } => {
                shared.cancels.fetch_add(1, Ordering::SeqCst);
                shared.canceled.notify_one();
                vec![end("")]
            }
            Request::Status => vec![Response::Status(Box::new(picture(&shared, address)))],
            Request::Schema => vec![Response::Schema(SchemaInfo::default())],
            Request::Credit { .. } => Vec::new(),
            _ => vec![end("")],
        };
        for body in answers {
            connection.writer.send(&ServerFrame { request, body }).await?;
        }
    }
    Ok(())
}

fn picture(shared: &Shared, address: SocketAddr) -> ClusterStatus {
    let verdict = *shared.verdict.lock().unwrap_or_else(PoisonError::into_inner);
    ClusterStatus {
        schema: SCHEMA,
        verdict,
        master: Some("n1".to_owned()),
        taken_at: "2026-01-31T12:34:56.789Z".to_owned(),
        nodes: vec![NodeStatus {
            id: "n1".to_owned(),
            addr: address.to_string(),
            reachable: true,
            ..NodeStatus::default()
        }],
        ..ClusterStatus::default()
    }
}

fn end(tag: &str) -> Response {
    done(Done { tag: tag.to_owned(), catalog: CatalogVersion::new(1), ..Done::default() })
}

fn done(done: Done) -> Response {
    Response::Batch { columns: Some(Vec::new()), rows: Vec::new(), done: Some(done) }
}

fn column(name: &str, ty: SqlType) -> Column {
    Column { name: name.to_owned(), ty }
}

fn answer(sql: &str) -> Vec<Response> {
    let lower = sql.to_lowercase();
    let rows = |columns: Vec<Column>, rows: Vec<Vec<Value>>| {
        let done = Done { tag: "SELECT".to_owned(), rows: rows.len() as u64, ..Done::default() };
        vec![Response::Batch { columns: Some(columns), rows, done: Some(done) }]
    };
    match lower.as_str() {
        "select 1" => rows(vec![column("a", SqlType::Int)], vec![vec![Value::Int(1)]]),
        "select gone" => rows(vec![column("back", SqlType::Bool)], vec![vec![Value::Bool(true)]]),
        "select all" => {
            let columns = vec![
                column("n", SqlType::Int),
                column("d", SqlType::Decimal { precision: 10, scale: 2 }),
                column("t", SqlType::Text),
                column("b", SqlType::Bytes),
            ];
            let decimal = Value::Decimal(Decimal { unscaled: 398, scale: 2 });
            let first = vec![Value::Int(1), decimal, Value::Text(String::new()), Value::Bytes(vec![1])];
            rows(columns, vec![first, vec![Value::Null; 4]])
        }
        "select many" => {
            let mut batches: Vec<Response> = (0..12)
                .map(|batch| Response::Batch {
                    columns: (batch == 0).then(|| vec![column("t", SqlType::Text)]),
                    rows: vec![vec![Value::Text("x".repeat(1000))]; 500],
                    done: None,
                })
                .collect();
            batches.push(Response::Batch { columns: None, rows: Vec::new(), done: Some(Done::default()) });
            batches
        }
        "select unknown" => vec![Response::Error(WireError::new(Code::Unknown, "it may or may not have happened"))],
        "select warned" => {
            let notice = |severity: &str| Notice {
                severity: severity.to_owned(),
                name: "Test".to_owned(),
                message: format!("this is a {severity}"),
            };
            vec![done(Done { notices: vec![notice("notice"), notice("warning")], ..Done::default() })]
        }
        _ if lower.starts_with("select nope") => {
            let error = WireError::sql("42703", "column \"nope\" does not exist").at(7).hint("did you mean \"note\"?");
            vec![Response::Error(error)]
        }
        _ if lower.starts_with("selec ") => {
            vec![Response::Error(WireError::sql("42601", "syntax error at \"selec\"").at(0))]
        }
        _ if lower.starts_with("use ") => {
            let database = sql[4..].trim().trim_matches('"').to_owned();
            vec![done(Done {
                tag: "USE".to_owned(),
                settings: vec![("database".to_owned(), database)],
                ..Done::default()
            })]
        }
        _ => vec![done(Done { tag: "INSERT".to_owned(), rows: 1, ..Done::default() })],
    }
}
