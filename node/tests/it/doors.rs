//! Everything a stranger, a broken client or an impatient one can do to a node's ports: a clear answer, and everyone else
//! is served.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use quorate_shared::client::{Client, ClientConfig, ClientError};
use quorate_shared::codec;
use quorate_shared::error::Code;
use quorate_shared::ids::{ClusterId, Epoch, NodeId, Nonce};
use quorate_shared::limits::STATEMENT_BYTES_MAX;
use quorate_shared::url::Address;
use quorate_shared::wire::{
    ClientFrame, ClientHello, Greeting, Hello, PeerChannel, PeerHello, QueryOptions, Request, Response, ServerFrame,
};

use crate::support::{Sql, TestCluster, TestNode, eventually};

/// Says something and hears everything until the node closes.
fn talk(node: &TestNode, bytes: &[u8], half_close: bool) -> String {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    if half_close {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A connection with a session, for saying what a client library would not.
async fn raw(node: &TestNode) -> codec::Connection {
    let mut connection = codec::connect(&node.address(), Duration::from_secs(10)).await.unwrap();
    let hello = ClientHello { agent: "test".into(), user: "t".into(), database: None, settings: Vec::new() };
    connection.writer.send(&Hello::Client(hello)).await.unwrap();
    let greeting = connection.reader.message::<Greeting>().await.unwrap();
    assert!(matches!(greeting, Some(Greeting::Welcome(_))), "{greeting:?}");
    connection
}

fn query(request: u64, sql: &str) -> ClientFrame {
    let options = QueryOptions { credit: u32::MAX, deadline_ms: 600_000, ..QueryOptions::default() };
    ClientFrame { request, body: Request::Query { sql: sql.into(), params: Vec::new(), options } }
}

async fn answer(connection: &mut codec::Connection) -> Response {
    connection.reader.message::<ServerFrame>().await.unwrap().unwrap().body
}

#[test]
fn bad_input_on_the_port() {
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = Sql::on(cluster.node(1));
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    let node = cluster.node(1);
    assert!(talk(node, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", false).starts_with("quorate: this port"));
    let noise: Vec<u8> = (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert!(talk(node, &noise, false).starts_with("quorate: this port"));
    let said = talk(node, b"QUORATE\n\0\x07\0\x09", false);
    assert!(said.contains("you speak protocol versions 7 to 9, this node protocol version 2"), "{said}");
    let said = talk(node, b"QUORATE\n\0\x02\0\x02\xff\xff\xff\xff", false);
    assert!(said.contains("a frame of 4294967295 bytes is over the limit"), "{said}");
    let said = talk(node, b"QUORATE\n\0\x02\0\x02\0\0\0\x09abc", true);
    assert!(said.contains("ended within a frame (7 of 13 bytes)"), "{said}");
    assert!(talk(node, b"QUOR", true).contains("quorate: refused"));
    sql.must("INSERT INTO t VALUES (1)");
    let (code, metrics) = node.get("/metrics").unwrap();
    assert_eq!(code, 200);
    assert!(metrics.contains("\nquorate_connections_refused_total "), "{metrics}");
    assert_eq!(node.get("/nowhere").unwrap().0, 404);
}

#[test]
fn bad_statements() {
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = Sql::on(cluster.node(1));
    for (bad, sqlstate) in [("SELEC 1", "42601"), ("SELECT 'unfinished", "42601"), ("SELECT nothing_here", "42703")] {
        let Err(ClientError::Server(error)) = sql.run(bad) else { panic!("{bad} was taken") };
        assert_eq!(error.sqlstate.as_deref(), Some(sqlstate), "{bad}: {error:?}");
    }
    let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(sql.run(&deep).is_err(), "nested too deeply");
    let long = format!("SELECT '{}'", "x".repeat(STATEMENT_BYTES_MAX));
    assert!(sql.run(&long).is_err(), "too long");
    let huge = format!("SELECT '{}'", "x".repeat(20 << 20));
    let Err(ClientError::Unsendable(_)) = sql.run(&huge) else { panic!("more than a frame was sent") };
    assert_eq!(sql.number("SELECT 1"), 1);
    // Bytes that are no UTF-8 where text should be: the session ends with the reason, the others go on.
    block_on(async {
        let mut raw = raw(cluster.node(1)).await;
        let mut bytes = codec::encode(&query(1, "SELECT 'aaaa'")).unwrap();
        let at = bytes.windows(4).position(|window| window == b"aaaa").unwrap();
        bytes[at] = 0xff;
        raw.writer.push_bytes(&bytes).unwrap();
        raw.writer.flush().await.unwrap();
        assert!(matches!(answer(&mut raw).await, Response::Error(error) if error.code == Code::Invalid));
        assert!(raw.reader.next().await.unwrap().is_none());
    });
    assert_eq!(sql.number("SELECT 2"), 2);
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let mut cluster = TestCluster::started(1, 0);
    let node = cluster.node(1);
    block_on(async {
        let mut connection = codec::connect(&node.address(), Duration::from_secs(10)).await.unwrap();
        let hello = PeerHello {
            cluster: Some(ClusterId([0xee; 16])),
            epoch: Epoch { number: 1, id: 1 },
            node: NodeId::new(2),
            to: Some(NodeId::new(1)),
            nonce: Nonce([1; 16]),
            channel: PeerChannel::Consensus,
            address: "127.0.0.1:1".into(),
        };
        connection.writer.send(&Hello::Peer(hello)).await.unwrap();
        let greeting = connection.reader.message::<Greeting>().await.unwrap();
        let Some(Greeting::Refused(error)) = greeting else { panic!("{greeting:?}") };
        assert!(error.message.contains("cluster"), "{error:?}");
    });
    Sql::on(node).must("SELECT 1");
}

/// A statement that would run for hours: a cross join of a thousand rows with themselves, over and over.
const ENDLESS: &str = "SELECT a.id, b.id, c.id, d.id FROM n a, n b, n c, n d";

/// A result of a gigabyte, out of little memory.
const GIGABYTE: &str = "SELECT a.id, repeat('x', 1000) FROM n a, n b";

fn thousand(cluster: &mut TestCluster) -> Sql {
    let mut sql = Sql::on(cluster.node(1));
    sql.must("CREATE TABLE n (id INT PRIMARY KEY)");
    let rows: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    sql.must(&format!("INSERT INTO n VALUES {}", rows.join(",")));
    sql
}

#[test]
fn a_client_that_stops_reading_is_closed_by_name() {
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = thousand(&mut cluster);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let unread = runtime.block_on(async {
        let mut raw = raw(cluster.node(1)).await;
        raw.writer.send(&query(1, GIGABYTE)).await.unwrap();
        let first = answer(&mut raw).await;
        assert!(matches!(first, Response::Batch { .. }), "{first:?}");
        raw
    });
    // Everyone else is served while it does not read, and its result does not pile up.
    for _ in 0..20 {
        assert_eq!(sql.number("SELECT count(*) FROM n"), 1000);
    }
    let node = cluster.node(1);
    eventually("the session is closed by name", || match node.log_text().contains("its client stopped reading") {
        true => Ok(()),
        false => Err("not yet".into()),
    });
    let memory = node.status().unwrap()["nodes"][0]["memory_bytes"].as_u64().unwrap();
    assert!(memory < 1 << 30, "{memory} bytes");
    drop(unread);
}

#[test]
fn cancel_and_deadline_stop_a_running_query() {
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = thousand(&mut cluster);
    let count = format!("SELECT count(*) FROM ({ENDLESS}) x");
    block_on(async {
        let config = ClientConfig::new(vec![Address::new("127.0.0.1", cluster.node(1).port)]);
        let mut client = Client::connect(config).await.unwrap();
        let handle = client.cancel_handle();
        let mut watcher =
            Client::connect(ClientConfig::new(vec![Address::new("127.0.0.1", cluster.node(1).port)])).await.unwrap();
        let cancel = async {
            loop {
                let running = watcher.run("SELECT * FROM quorate.queries", Vec::new()).await.unwrap();
                if running.rows.iter().any(|row| row.iter().any(|value| value.to_string().contains("count(*)"))) {
                    break;
                }
            }
            handle.cancel().await.unwrap();
        };
        let (result, ()) = tokio::join!(client.run(&count, Vec::new()), cancel);
        let Err(ClientError::Server(error)) = result else { panic!("it was not stopped") };
        assert_eq!(error.sqlstate.as_deref(), Some("57014"), "{error:?}");
        let options = QueryOptions::default().deadline(Duration::from_millis(300));
        let Err(ClientError::Server(error)) = client.query(&count, Vec::new(), options).await.map(|_| ()) else {
            panic!("it outlived its deadline")
        };
        assert!(matches!(error.code, Code::Invalid | Code::Retry), "{error:?}");
        client.run("SELECT 1", Vec::new()).await.unwrap();
        // A session's own limit counts also where its client would wait longer.
        client.run("SET statement_timeout = '300ms'", Vec::new()).await.unwrap();
        let options = QueryOptions::default().deadline(Duration::from_secs(50));
        let Err(ClientError::Server(error)) = client.query(&count, Vec::new(), options).await.map(|_| ()) else {
            panic!("it outlived the session's limit")
        };
        assert_eq!(error.sqlstate.as_deref(), Some("57014"), "{error:?}");
        assert!(error.message.contains("300 ms"), "{error:?}");
    });
    assert_eq!(sql.number("SELECT count(*) FROM n"), 1000);
}
