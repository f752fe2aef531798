//! A door with a scripted SQL behind it, and clients that behave and misbehave.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_core::proposal::{Proposal, WriteResult};
use quorate_shared::client::{Client, ClientConfig, ClientError};
use quorate_shared::codec;
use quorate_shared::ids::{CatalogVersion, ClusterId, Epoch, NodeId, Nonce, SessionId, ShardId};
use quorate_shared::status::{ClusterStatus, NodeKind};
use quorate_shared::url::Address;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{
    ClientHello, Greeting, Hello, NodeAddress, PeerChannel, PeerHello, QueryOptions, ReadLevel, SchemaInfo, ServerFrame,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::report::{Counters, NodeReport, NodeState, PeerDoor, Reports};
use crate::router::{Identity, ProposeError, ReadPoint, Router};
use crate::serve::Sessions;

/// A cluster of one that answers nothing but who it is.
struct Alone {
    counters: Counters,
    peers: AtomicUsize,
}

fn nobody<T>() -> Result<T, WireError> {
    Err(WireError::new(Code::Retry, "nobody is here"))
}

#[async_trait]
impl Router for Alone {
    async fn propose(&self, _: ShardId, _: Proposal, _: Instant) -> Result<WriteResult, ProposeError> {
        nobody().map_err(ProposeError::Wire)
    }
    async fn read(&self, _: ShardId, _: &ReadLevel, _: Instant) -> Result<ReadPoint, WireError> {
        nobody()
    }
    fn read_local(&self, _: ShardId) -> Result<ReadPoint, WireError> {
        nobody()
    }
    fn catalog(&self) -> Arc<Catalog> {
        Arc::default()
    }
    async fn catalog_at_least(&self, _: CatalogVersion, _: Instant) -> Result<Arc<Catalog>, WireError> {
        nobody()
    }
    fn identity(&self) -> Identity {
        Identity {
            cluster: Some(ClusterId([1; 16])),
            epoch: Epoch::default(),
            node: NodeId::new(1),
            kind: NodeKind::Voter,
            address: "here:1".into(),
        }
    }
    fn master(&self) -> Option<NodeAddress> {
        None
    }
    fn is_master(&self) -> bool {
        false
    }
    async fn picture(&self) -> ClusterStatus {
        ClusterStatus { asked: Some("n1".into()), ..ClusterStatus::default() }
    }
    fn nodes(&self) -> Vec<NodeAddress> {
        Vec::new()
    }
}

#[async_trait]
impl Reports for Alone {
    fn node(&self) -> NodeId {
        self.local_report().node
    }
    fn local_report(&self) -> NodeReport {
        crate::admin::tests::report(1, NodeState::Ready)
    }
    async fn peer_report(&self, _: NodeId, _: Duration) -> Result<NodeReport, WireError> {
        nobody()
    }
    fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[async_trait]
impl PeerDoor for Alone {
    async fn accept(&self, mut stream: TcpStream, _: PeerHello) {
        self.peers.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(b"peer").await;
    }
}

/// SQL of five statements.
#[derive(Default)]
struct Scripted {
    log: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Statements for Scripted {
    async fn run(&mut self, sql: &str, how: Execution<'_>) -> Result<Done, WireError> {
        let Execution { cancel, sink, .. } = how;
        self.log.lock().unwrap().push(sql.to_owned());
        let columns = || vec![Column { name: "n".into(), ty: SqlType::Text }];
        match sql {
            "wait" => cancel.cancelled().await,
            "panic" => panic!("as scripted"),
            "fail" => return Err(WireError::sql("42601", "no")),
            "endless" => {
                sink.columns(columns()).await?;
                loop {
                    sink.rows(vec![vec![Value::Text("x".repeat(100_000))]; 100]).await?;
                }
            }
            "many" => {
                sink.columns(columns()).await?;
                for _ in 0..40 {
                    sink.rows(vec![vec![Value::Text("y".repeat(1000))]; 1500]).await?;
                }
            }
            _ => {
                sink.columns(columns()).await?;
                sink.rows(vec![vec![Value::Text(sql.into())]]).await?;
            }
        }
        if cancel.is_cancelled() {
            return Err(WireError::sql("57014", "stopped"));
        }
        Ok(Done { tag: "SELECT".into(), ..Done::default() })
    }

    async fn prepare(&mut self, _: &str) -> Result<PreparedInfo, WireError> {
        let columns = vec![Column { name: "n".into(), ty: SqlType::Text }];
        Ok(PreparedInfo { statement: 1, params: Vec::new(), columns, writes: false })
    }

    async fn execute(&mut self, statement: u32, how: Execution<'_>) -> Result<Done, WireError> {
        self.run(&format!("prepared {statement}"), how).await
    }

    fn close(&mut self, _: u32) {}

    fn database(&self) -> String {
        "main".into()
    }
}

struct Opener(Arc<Mutex<Vec<String>>>);

impl Sessions for Opener {
    fn open(&self, _: SessionId, hello: &ClientHello) -> Result<Box<dyn Statements>, WireError> {
        if hello.database.as_deref() == Some("nowhere") {
            return Err(WireError::sql("3D000", "database \"nowhere\" does not exist"));
        }
        Ok(Box::new(Scripted { log: self.0.clone() }))
    }
    fn schema(&self) -> SchemaInfo {
        SchemaInfo { functions: vec!["f".into()], ..SchemaInfo::default() }
    }
}

struct House {
    address: String,
    door: Arc<Door>,
    alone: Arc<Alone>,
    log: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn house() -> House {
    let alone = Arc::new(Alone { counters: Counters::default(), peers: AtomicUsize::new(0) });
    let log = Arc::<Mutex<Vec<String>>>::default();
    let sessions = Arc::new(Opener(log.clone()));
    let door = Door::new(alone.clone(), alone.clone(), sessions, alone.clone(), Arc::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let task = tokio::spawn(door.clone().serve(listener, stop.clone()));
    House { address, door, alone, log, stop, task }
}

impl House {
    fn config(&self) -> ClientConfig {
        let address: Address = self.address.parse().unwrap();
        ClientConfig { reconnect_timeout: Duration::from_millis(50), ..ClientConfig::new(vec![address]) }
    }
    async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }
    /// A connection with a session, for saying what a client library would not.
    async fn raw(&self) -> Connection {
        let mut connection = codec::connect(&self.address, Duration::from_secs(5)).await.unwrap();
        let hello = ClientHello { agent: String::new(), user: String::new(), database: None, settings: Vec::new() };
        connection.writer.send(&Hello::Client(hello)).await.unwrap();
        let greeting = connection.reader.message::<Greeting>().await.unwrap();
        assert!(matches!(greeting, Some(Greeting::Welcome(_))), "{greeting:?}");
        connection
    }
    /// Waits until no session is left.
    async fn emptied(&self) {
        tokio::time::timeout(Duration::from_secs(10), async {
            while !self.door.registry.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a session is left over");
    }
}

fn query(request: u64, sql: &str, credit: u32) -> ClientFrame {
    let options = QueryOptions { credit, ..QueryOptions::default() };
    ClientFrame { request, body: Request::Query { sql: sql.into(), params: Vec::new(), options } }
}

#[tokio::test]
async fn a_client_is_served() {
    let house = house().await;
    let mut client = house.client().await;
    assert_eq!(client.run("hello", Vec::new()).await.unwrap().rows, [[Value::Text("hello".into())]]);
    let prepared = client.prepare("x").await.unwrap();
    let stream = client.execute(&prepared, Vec::new(), QueryOptions::default()).await.unwrap();
    assert_eq!(stream.columns()[0].name, "n", "the client knows them from the prepare");
    assert_eq!(stream.collect().await.unwrap().rows, [[Value::Text("prepared 1".into())]]);
    let many = client.run("many", Vec::new()).await.unwrap();
    assert_eq!(many.rows.len(), 60_000);
    assert_eq!(client.status().await.unwrap().asked.as_deref(), Some("n1"));
    assert_eq!(client.schema().await.unwrap().functions, ["f"]);
    client.ping().await.unwrap();
    let failed = client.run("fail", Vec::new()).await.unwrap_err();
    assert_eq!(failed, ClientError::Server(WireError::sql("42601", "no")));
    let mut watch = client.watch(Duration::from_millis(1));
    watch.next().await.unwrap();
    watch.next().await.unwrap();
    drop(watch);
    client.run("after the watch", Vec::new()).await.unwrap();
    assert_eq!(house.alone.counters.statements.load(Ordering::Relaxed), 5);
    drop(client);
    house.emptied().await;
    assert_eq!(house.alone.counters.sessions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_short_result_is_one_frame() {
    let house = house().await;
    let mut raw = house.raw().await;
    raw.writer.send(&query(1, "hello", 0)).await.unwrap();
    let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
    assert!(matches!(&frame.body, Response::Batch { columns: Some(_), rows, done: Some(_) } if rows.len() == 1));
}

#[tokio::test]
async fn results_stop_where_credit_ends() {
    let house = house().await;
    let mut raw = house.raw().await;
    raw.writer.send(&query(1, "endless", 2)).await.unwrap();
    for _ in 0..2 {
        let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
        assert!(matches!(frame.body, Response::Batch { done: None, .. }));
    }
    // Controls are answered while the result waits, and nothing else comes.
    raw.writer.send(&ClientFrame { request: 2, body: Request::Ping }).await.unwrap();
    let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
    assert_eq!(frame.request, 2);
    raw.writer.send(&ClientFrame { request: 3, body: Request::Credit { request: 1, batches: 1 } }).await.unwrap();
    let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
    assert_eq!(frame.request, 1);
    drop(raw);
    house.emptied().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_bounded_memory() {
    let house = house().await;
    let mut raw = house.raw().await;
    raw.writer.send(&query(1, "endless", u32::MAX)).await.unwrap();
    let handle = house.door.registry.any().unwrap();
    // Full and not emptied any more: the statement waits.
    let full = async {
        while handle.outbox.waiting() < OUT_BYTES_MAX {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), full).await.unwrap();
    assert!(handle.outbox.waiting() < 3 * OUT_BYTES_MAX);
    // Everyone else is served.
    house.client().await.run("hello", Vec::new()).await.unwrap();
    // Answers to controls do not pile up behind it either.
    for request in 2..20_000 {
        let ping = ClientFrame { request, body: Request::Ping };
        raw.writer.push(&ping).unwrap();
    }
    let _ = tokio::time::timeout(Duration::from_millis(200), raw.writer.flush()).await;
    assert!(handle.outbox.waiting() < 3 * OUT_BYTES_MAX);
    drop((raw, handle));
    house.emptied().await;
}

#[tokio::test]
async fn requests_run_in_order() {
    let house = house().await;
    let mut raw = house.raw().await;
    for request in 1..=100 {
        raw.writer.push(&query(request, &request.to_string(), 0)).unwrap();
    }
    raw.writer.flush().await.unwrap();
    for request in 1..=100 {
        let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
        assert_eq!(frame.request, request);
    }
    let log = house.log.lock().unwrap().clone();
    assert_eq!(log, (1..=100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn too_many_requests_sent_ahead_are_refused() {
    let house = house().await;
    let mut raw = house.raw().await;
    raw.writer.push(&query(1, "wait", 0)).unwrap();
    for request in 2..=PIPELINE_MAX as u64 + 3 {
        raw.writer.push(&query(request, "x", 0)).unwrap();
    }
    raw.writer.flush().await.unwrap();
    let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
    assert!(matches!(frame.body, Response::Error(WireError { code: Code::Busy, .. })), "{frame:?}");
}

#[tokio::test]
async fn cancel_from_another_connection() {
    let house = house().await;
    let mut client = house.client().await;
    let handle = client.cancel_handle();
    let log = house.log.clone();
    let cancel = async {
        while log.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        handle.cancel().await.unwrap();
    };
    let (result, ()) = tokio::join!(client.run("wait", Vec::new()), cancel);
    let ClientError::Server(error) = result.unwrap_err() else { panic!() };
    assert_eq!(error.sqlstate.as_deref(), Some("57014"));
    client.run("hello", Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_panic_ends_its_session_only() {
    let house = house().await;
    let mut other = house.client().await;
    let mut raw = house.raw().await;
    raw.writer.send(&query(1, "panic", 0)).await.unwrap();
    let frame: ServerFrame = raw.reader.message().await.unwrap().unwrap();
    assert!(matches!(frame.body, Response::Error(WireError { code: Code::Internal, .. })));
    assert!(raw.reader.next().await.unwrap().is_none());
    other.run("hello", Vec::new()).await.unwrap();
}

#[tokio::test]
async fn bad_frames_are_answered_and_end_the_session() {
    let house = house().await;
    let frames: [&[u8]; 3] = [&[0xff; 8], &[0, 0, 0, 3, 9, 9, 9], &[0, 0, 0, 0]];
    for bytes in frames {
        let mut stream = house.raw().await.into_stream().unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut reader = codec::FrameReader::new(stream);
        let frame: ServerFrame = reader.message().await.unwrap().unwrap();
        let Response::Error(error) = frame.body else { panic!() };
        assert_eq!((error.code, frame.request), (Code::Invalid, 0), "{error}");
        assert!(reader.next().await.unwrap().is_none());
    }
    // Half a frame, then the end.
    let mut stream = house.raw().await.into_stream().unwrap();
    stream.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("ended within a frame (5 of 13 bytes)"));
    house.emptied().await;
}

#[tokio::test]
async fn a_first_message_must_be_short_and_make_sense() {
    let house = house().await;
    for bytes in [&[0x00, 0xff, 0xff, 0xff][..], &[0, 0, 0, 2, 7, 7]] {
        let connection = codec::connect(&house.address, Duration::from_secs(5)).await.unwrap();
        let mut stream = connection.into_stream().unwrap();
        stream.write_all(bytes).await.unwrap();
        let greeting = codec::FrameReader::new(stream).message::<Greeting>().await.unwrap();
        assert!(matches!(greeting, Some(Greeting::Refused(_))), "{greeting:?}");
    }
}

#[tokio::test]
async fn strangers_do_not_disturb() {
    let house = house().await;
    let mut client = house.client().await;
    for bytes in [&b"GET /metrics HTTP/1.1\r\n\r\n"[..], &[0xff; 9000], b"\x16\x03\x01", b"QUORATE\n\0\x09\0\x09"] {
        let mut stream = TcpStream::connect(&house.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert!(String::from_utf8_lossy(&said).contains("quorate: "), "{said:?}");
        client.run("hello", Vec::new()).await.unwrap();
    }
    // They are counted once their line is out and they have gone.
    let counted = async {
        while house.door.meters.refused.get() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
}

#[tokio::test]
async fn a_session_may_be_refused() {
    let house = house().await;
    let config = ClientConfig { database: Some("nowhere".into()), ..house.config() };
    let error = Client::connect(config).await.unwrap_err().to_string();
    assert!(error.ends_with("database \"nowhere\" does not exist"), "{error}");
}

#[tokio::test]
async fn peers_are_handed_on() {
    let house = house().await;
    let mut connection = codec::connect(&house.address, Duration::from_secs(5)).await.unwrap();
    let hello = PeerHello {
        cluster: None,
        epoch: Epoch::default(),
        node: NodeId::new(2),
        to: None,
        nonce: Nonce::default(),
        channel: PeerChannel::Founding,
        address: String::new(),
    };
    connection.writer.send(&Hello::Peer(hello)).await.unwrap();
    let mut said = Vec::new();
    connection.into_stream().unwrap().read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"peer");
    assert_eq!(house.alone.peers.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_drain_waits_for_what_runs() {
    let house = house().await;
    let mut idle = house.client().await;
    let mut client = house.client().await;
    let handle = client.cancel_handle();
    let (log, stop) = (house.log.clone(), house.stop.clone());
    let drain = async {
        while log.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let registry = house.door.registry.clone();
        stop.cancel();
        while registry.len() > 1 {
            tokio::task::yield_now().await;
        }
        // The idle session is gone, the busy one not; new ones are not let in, so the cancel goes past the door.
        assert!(handle.cancel().await.is_err());
        registry.any().unwrap().cancel(1);
    };
    let (result, ()) = tokio::join!(client.run("wait", Vec::new()), drain);
    assert!(matches!(result, Err(ClientError::Server(error)) if error.sqlstate.as_deref() == Some("57014")));
    house.task.await.unwrap();
    assert!(idle.run("hello", Vec::new()).await.is_err());
}
