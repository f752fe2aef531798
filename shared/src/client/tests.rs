//! The client against scripted nodes: what it sends again, under which id, where, and when it gives up.

use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::codec::{self, Connection};
use crate::ids::{CatalogVersion, ClusterId, Epoch, SessionId};
use crate::value::SqlType;
use crate::wire::{ClientFrame, ClientHello, Column, Greeting, Hello, ServerFrame};

/// What a scripted node does with a request.
enum Act {
    Say(Response),
    SayAll(Vec<Response>),
    Close,
    Nothing,
}

type Script = Box<dyn FnMut(&ClientFrame) -> Act + Send>;

/// What a node has seen.
#[derive(Default)]
struct Seen {
    hellos: Vec<ClientHello>,
    frames: Vec<ClientFrame>,
}

struct Fake {
    address: Address,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    fn bodies(&self) -> Vec<Request> {
        self.seen.lock().unwrap().frames.iter().map(|frame| frame.body.clone()).collect()
    }
    fn writes(&self) -> Vec<(WriteId, bool)> {
        let options = |body: Request| match body {
            Request::Query { options, .. } | Request::Execute { options, .. } => Some(options),
            _ => None,
        };
        self.bodies().into_iter().filter_map(options).filter_map(|o| Some((o.write?, o.retry))).collect()
    }
}

/// Scripted nodes n1, n2, ... that know each other; the first is the master.
async fn nodes(scripts: Vec<(NodeKind, Script)>) -> Vec<Fake> {
    let mut listeners = Vec::new();
    for (at, (kind, script)) in scripts.into_iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        listeners.push((NodeAddress { node: NodeId::new(at as u64 + 1), address, kind }, listener, script));
    }
    let all: Vec<NodeAddress> = listeners.iter().map(|(node, ..)| node.clone()).collect();
    let start = |(node, listener, script): (NodeAddress, TcpListener, Script)| {
        let seen = Arc::<Mutex<Seen>>::default();
        let welcome = Welcome {
            cluster: Some(ClusterId([1; 16])),
            epoch: Epoch::default(),
            node: node.node,
            kind: node.kind,
            version: "0".into(),
            session: SessionId::new(1),
            cancel_key: 42,
            master: Some(all[0].clone()),
            nodes: all.clone(),
            database: "main".into(),
        };
        let task = tokio::spawn(fake(listener, welcome, script, seen.clone()));
        Fake { address: node.address.parse().unwrap(), seen, task }
    };
    listeners.into_iter().map(start).collect()
}

async fn fake(listener: TcpListener, welcome: Welcome, script: Script, seen: Arc<Mutex<Seen>>) {
    let script = Arc::new(Mutex::new(script));
    loop {
        let stream = listener.accept().await.unwrap().0;
        let connection = codec::accept(stream).await.unwrap();
        let (welcome, script, seen) = (welcome.clone(), script.clone(), seen.clone());
        // Clients close without a word when a test ends.
        tokio::spawn(async move {
            let _ = talk(connection, welcome, script, seen).await;
        });
    }
}

async fn talk(
    mut connection: Connection,
    welcome: Welcome,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Seen>>,
) -> Result<(), CodecError> {
    if let Some(Hello::Client(hello)) = connection.reader.message().await? {
        seen.lock().unwrap().hellos.push(hello);
    }
    connection.writer.send(&Greeting::Welcome(Box::new(welcome))).await?;
    while let Some(frame) = connection.reader.message::<ClientFrame>().await? {
        let request = frame.request;
        let act = script.lock().unwrap()(&frame);
        seen.lock().unwrap().frames.push(frame);
        let answers = match act {
            Act::Say(body) => vec![body],
            Act::SayAll(bodies) => bodies,
            Act::Close => return Ok(()),
            Act::Nothing => Vec::new(),
        };
        for body in answers {
            connection.writer.push(&ServerFrame { request, body })?;
        }
        connection.writer.flush().await?;
    }
    Ok(())
}

fn config(fakes: &[&Fake]) -> ClientConfig {
    ClientConfig {
        deadline: Duration::from_secs(20),
        reconnect_timeout: Duration::from_secs(5),
        ..ClientConfig::new(fakes.iter().map(|fake| fake.address.clone()).collect())
    }
}

fn voter(script: impl FnMut(&ClientFrame) -> Act + Send + 'static) -> (NodeKind, Script) {
    (NodeKind::Voter, Box::new(script))
}

fn done(tag: &str) -> Response {
    let done = Done { tag: tag.into(), catalog: CatalogVersion::new(1), ..Done::default() };
    Response::Batch { columns: Some(Vec::new()), rows: Vec::new(), done: Some(done) }
}

fn rows(first: bool, numbers: &[i64], last: bool) -> Response {
    Response::Batch {
        columns: first.then(|| vec![Column { name: "n".into(), ty: SqlType::BigInt }]),
        rows: numbers.iter().map(|n| vec![Value::Int(*n)]).collect(),
        done: last.then(Done::default),
    }
}

fn error(code: Code) -> Response {
    Response::Error(WireError::new(code, "said so"))
}

/// Acts in order, then says "done".
fn acts(acts: impl IntoIterator<Item = Act>) -> (NodeKind, Script) {
    let mut acts: Vec<Act> = acts.into_iter().collect();
    acts.reverse();
    voter(move |_| acts.pop().unwrap_or_else(|| Act::Say(done("OK"))))
}

fn events(client: &mut Client) -> Arc<Mutex<Vec<String>>> {
    let events = Arc::<Mutex<Vec<String>>>::default();
    let heard = events.clone();
    client.set_listener(Some(Arc::new(move |event| heard.lock().unwrap().push(event.to_string()))));
    events
}

#[tokio::test]
async fn a_result_streams_under_credit() {
    let batches: Vec<Response> = (0..20).map(|n| rows(n == 0, &[n, n + 100], n == 19)).collect();
    let node = nodes(vec![acts([Act::SayAll(batches)])]).await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    let result = client.run("SELECT n", Vec::new()).await.unwrap();
    assert_eq!(result.columns[0].name, "n");
    assert_eq!(result.rows.len(), 40);
    client.ping().await.unwrap();
    let credit: u32 =
        node[0].bodies().iter().map(|body| if let Request::Credit { batches, .. } = body { *batches } else { 0 }).sum();
    assert_eq!(credit, 16, "given back as batches are taken");
}

#[tokio::test]
async fn a_lost_write_is_sent_again_under_its_id() {
    let all = nodes(vec![acts([Act::Close]), acts([])]).await;
    let mut client = Client::connect(config(&[&all[0]])).await.unwrap();
    let events = events(&mut client);
    client.run("INSERT INTO t VALUES (1)", Vec::new()).await.unwrap();
    client.run("INSERT INTO t VALUES (2)", Vec::new()).await.unwrap();
    let id = |seq| WriteId { client: client.id(), seq };
    assert_eq!(all[0].writes(), [(id(1), false)]);
    assert_eq!(all[1].writes(), [(id(1), true), (id(2), false)]);
    let moved = format!("moved to n2 ({})", all[1].address);
    assert_eq!(events.lock().unwrap()[1], moved);
}

#[tokio::test]
async fn a_session_is_restored_elsewhere() {
    let prepared = |n| Response::Prepared { statement: n, params: Vec::new(), columns: Vec::new(), writes: true };
    let set = |name: &str, value: &str| {
        let done = Done { settings: vec![(name.into(), value.into())], ..Done::default() };
        Act::Say(Response::Batch { columns: None, rows: Vec::new(), done: Some(done) })
    };
    let all = nodes(vec![
        acts([set("database", "shop"), set("read_level", "local"), Act::Say(prepared(7)), Act::Close]),
        acts([Act::Say(prepared(3))]),
    ])
    .await;
    let mut client = Client::connect(config(&[&all[0]])).await.unwrap();
    client.run("USE shop", Vec::new()).await.unwrap();
    client.run("SET read_level = local", Vec::new()).await.unwrap();
    assert_eq!(client.database(), "shop");
    let statement = client.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
    client.execute(&statement, vec![Value::Int(1)], QueryOptions::default()).await.unwrap().finish().await.unwrap();
    let hello = all[1].seen.lock().unwrap().hellos[0].clone();
    assert_eq!(hello.database.as_deref(), Some("shop"));
    assert_eq!(hello.settings, [("read_level".to_owned(), "local".to_owned())]);
    assert!(matches!(&all[0].bodies()[3], Request::Execute { statement: 7, .. }));
    assert!(matches!(&all[1].bodies()[..], [Request::Prepare { .. }, Request::Execute { statement: 3, .. }]));
}

#[tokio::test]
async fn a_session_on_a_replica_never_becomes_one_on_a_voter() {
    let replica: (NodeKind, Script) = (NodeKind::Replica, Box::new(|_| Act::Close));
    let all = nodes(vec![acts([]), replica]).await;
    let mut config = config(&[&all[1], &all[0]]);
    config.reconnect_timeout = Duration::from_millis(100);
    let mut client = Client::connect(config).await.unwrap();
    all[1].task.abort();
    let error = client.run("SELECT 1", Vec::new()).await.unwrap_err();
    let ClientError::NoConnection { tried } = error else { panic!("{error}") };
    assert!(tried.iter().any(|(_, why)| why == "it is a voter, and this session began on a replica"), "{tried:?}");
    assert!(all[0].bodies().is_empty());
}

#[tokio::test]
async fn retry_and_busy_are_asked_again_and_others_are_not() {
    let node = nodes(vec![acts([Act::Say(error(Code::Retry)), Act::Say(error(Code::Busy))])]).await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    client.run("UPDATE t SET a = 1", Vec::new()).await.unwrap();
    let id = WriteId { client: client.id(), seq: 1 };
    assert_eq!(node[0].writes(), [(id, false); 3], "nothing had happened, so nothing is a retry");
    for code in [Code::Conflict, Code::Invalid, Code::ReadOnly, Code::Behind, Code::Internal, Code::Denied] {
        let node = nodes(vec![acts([Act::Say(error(code))])]).await;
        let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
        let failed = client.run("UPDATE t SET a = 1", Vec::new()).await.unwrap_err();
        assert_eq!(failed, ClientError::Server(WireError::new(code, "said so")));
        assert_eq!(node[0].bodies().len(), 1);
    }
}

/// A node that takes connections and says nothing, as a stopped process does.
async fn mute() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_statement_ends_by_its_deadline_with_what_the_last_node_said() {
    // One node knows of no quorum, the others are stopped: after a while they are asked, and take no more than is left.
    let node = nodes(vec![voter(|_| Act::Say(error(Code::Retry)))]).await;
    let (stopped, others) = (mute().await, mute().await);
    let mut config = config(&[&node[0]]);
    config.hosts.extend([stopped.1.clone(), others.1.clone()]);
    config.deadline = Duration::from_millis(3500);
    let mut client = Client::connect(config).await.unwrap();
    let begun = Instant::now();
    let failed = client.run("SELECT 1", Vec::new()).await.unwrap_err();
    assert!(begun.elapsed() >= RETRY_STAY, "the others were asked");
    assert!(begun.elapsed() < Duration::from_millis(3500 + 700), "{:?}", begun.elapsed());
    let ClientError::Server(said) = failed else { panic!("{failed}") };
    assert_eq!((said.code, said.message.as_str()), (Code::Retry, "said so"));
}

#[tokio::test]
async fn silent_hosts_leave_time_for_the_one_that_answers() {
    let node = nodes(vec![voter(|_| Act::Say(error(Code::Retry)))]).await;
    let (first, second) = (mute().await, mute().await);
    let mut config = config(&[&node[0]]);
    config.hosts = vec![first.1.clone(), second.1.clone(), node[0].address.clone()];
    config.deadline = Duration::from_millis(900);
    let begun = Instant::now();
    let mut client = Client::connect(config.clone()).await.unwrap();
    assert_eq!(client.address().unwrap(), node[0].address.to_string());
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    // Connecting counts for the first statement.
    client.run("SELECT 1", Vec::new()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(900 + 500), "{:?}", begun.elapsed());
    config.hosts.pop();
    let begun = Instant::now();
    let failed = Client::connect(config).await.unwrap_err();
    let ClientError::NoConnection { tried } = failed else { panic!("{failed}") };
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert!(begun.elapsed() < Duration::from_millis(900 + 500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_redirect_is_followed() {
    let all = nodes(vec![acts((0..9).map(|_| Act::Say(error(Code::Redirect)))), acts([])]).await;
    let mut client = Client::connect(config(&[&all[0]])).await.unwrap();
    client.run("INSERT INTO t VALUES (1)", Vec::new()).await.unwrap();
    assert_eq!((all[0].writes().len(), all[1].writes().len()), (1, 1));
}

#[tokio::test]
async fn unknown_is_cleared_up_by_asking_again() {
    let node = nodes(vec![acts([Act::Say(error(Code::Unknown))])]).await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    client.run("INSERT INTO t VALUES (1)", Vec::new()).await.unwrap();
    let id = WriteId { client: client.id(), seq: 1 };
    assert_eq!(node[0].writes(), [(id, false), (id, true)]);
}

#[tokio::test]
async fn silence_is_unknown_for_a_write_and_not_for_a_read() {
    let node = nodes(vec![voter(|_| Act::Nothing)]).await;
    let mut config = config(&[&node[0]]);
    config.deadline = Duration::from_millis(100);
    let mut client = Client::connect(config).await.unwrap();
    assert!(client.run("DELETE FROM t", Vec::new()).await.unwrap_err().is_unknown());
    let ClientError::Server(error) = client.run("SELECT 1", Vec::new()).await.unwrap_err() else { panic!() };
    assert_eq!(error.code, Code::Retry);
}

#[tokio::test]
async fn all_nodes_lost_is_unknown_only_after_a_write_was_sent() {
    let mut node = nodes(vec![acts([Act::Say(done("OK")), Act::Close])]).await;
    let mut config = config(&[&node[0]]);
    config.reconnect_timeout = Duration::from_millis(100);
    let mut client = Client::connect(config).await.unwrap();
    client.run("SELECT 1", Vec::new()).await.unwrap();
    node[0].task.abort();
    node.clear();
    assert!(client.run("INSERT INTO t VALUES (1)", Vec::new()).await.unwrap_err().is_unknown());
    let error = client.run("INSERT INTO t VALUES (2)", Vec::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoConnection { .. }), "it was never sent: {error}");
}

#[tokio::test]
async fn a_read_is_repeated_only_before_its_first_row() {
    let all = nodes(vec![acts([Act::Close]), acts([Act::Say(rows(true, &[1], true))])]).await;
    let mut client = Client::connect(config(&[&all[0]])).await.unwrap();
    assert_eq!(client.run("SELECT n", Vec::new()).await.unwrap().rows.len(), 1);

    let mut first = true;
    let node = nodes(vec![voter(move |frame| match &frame.body {
        Request::Query { .. } if std::mem::take(&mut first) => Act::SayAll(vec![rows(true, &[1], false); 12]),
        _ => Act::Close,
    })])
    .await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    let ClientError::Server(error) = client.run("SELECT n", Vec::new()).await.unwrap_err() else { panic!() };
    assert_eq!(error.code, Code::Retry);
    assert_eq!(error.message, "the connection was lost in the middle of the result");
}

#[tokio::test]
async fn a_dropped_result_is_stopped_by_the_next_request() {
    let node = nodes(vec![voter(|frame| match &frame.body {
        Request::Query { sql, .. } if sql == "SELECT big" => Act::SayAll(vec![rows(true, &[1], false); 3]),
        Request::Cancel { .. } => Act::Nothing,
        _ => Act::Say(rows(true, &[5], true)),
    })])
    .await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    let mut stream = client.query("SELECT big", Vec::new(), QueryOptions::default()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    drop(stream);
    assert_eq!(client.run("SELECT small", Vec::new()).await.unwrap().rows, [[Value::Int(5)]]);
    let cancel = Request::Cancel { session: SessionId::new(1), key: 42, request: 1 };
    assert_eq!(node[0].bodies()[1], cancel);
}

#[tokio::test]
async fn cancel_names_the_request_and_ends_the_retries() {
    let node = nodes(vec![voter(|frame| match &frame.body {
        Request::Cancel { .. } => Act::Say(done("")),
        _ => Act::Say(error(Code::Retry)),
    })])
    .await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    let handle = client.cancel_handle();
    let waiting = Arc::new(tokio::sync::Notify::new());
    let told = waiting.clone();
    client.set_listener(Some(Arc::new(move |_| told.notify_one())));
    let cancel = async {
        waiting.notified().await;
        handle.cancel().await.unwrap();
    };
    let (result, ()) = tokio::join!(client.run("UPDATE t SET a = 1", Vec::new()), cancel);
    let ClientError::Server(error) = result.unwrap_err() else { panic!() };
    assert_eq!(error.sqlstate.as_deref(), Some(SQLSTATE_CANCELED));
    let stopped = node[0].bodies().into_iter().find_map(|body| match body {
        Request::Cancel { session, key, request } => Some((session, key, request)),
        _ => None,
    });
    assert!(matches!(stopped, Some((session, 42, 1..)) if session == SessionId::new(1)), "{stopped:?}");
}

#[tokio::test]
async fn a_canceled_statement_is_not_repeated() {
    let error = WireError { sqlstate: Some(SQLSTATE_CANCELED.into()), ..WireError::new(Code::Retry, "canceled") };
    let node = nodes(vec![acts([Act::Say(Response::Error(error))])]).await;
    let mut client = Client::connect(config(&[&node[0]])).await.unwrap();
    assert!(client.run("UPDATE t SET a = 1", Vec::new()).await.is_err());
    assert_eq!(node[0].bodies().len(), 1);
}

#[tokio::test]
async fn the_watched_picture_survives_a_loss() {
    let picture = || Response::Status(Box::default());
    let mut left = 2;
    let first = voter(move |_| {
        left -= 1;
        if left > 0 { Act::SayAll(vec![picture(), picture()]) } else { Act::Close }
    });
    let all = nodes(vec![first, acts([Act::Say(picture())])]).await;
    let mut client = Client::connect(config(&[&all[0]])).await.unwrap();
    let mut watch = client.watch(Duration::from_secs(1));
    watch.next().await.unwrap();
    watch.next().await.unwrap();
    drop(watch);
    client.ping().await.unwrap();
    assert_eq!(client.address(), Some(all[1].address.to_string().as_str()));
}

#[tokio::test]
async fn no_host_answers() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = ClientConfig::new(vec![Address::new("127.0.0.1", gone.port())]);
    let error = Client::connect(config).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no connection: {gone}: connection refused"));
}

#[test]
fn statements_that_may_write() {
    for sql in [
        "INSERT INTO t",
        " -- x\n update t",
        "/* c */ DELETE",
        "WITH a AS (DELETE FROM t) SELECT 1",
        "explain analyze insert",
        "",
        "(insert",
    ] {
        assert!(may_write(sql), "{sql}");
    }
    for sql in ["SELECT 1", "  select 1", "-- c\nSHOW TABLES", "(SELECT 1)", "/* a */ VALUES (1)", "DESCRIBE t"] {
        assert!(!may_write(sql), "{sql}");
    }
}
