//! Who does not belong here, and who has moved: nodes of other clusters, other versions, other addresses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use quorate_shared::admin::AdminAction;
use quorate_shared::client::Policy;
use quorate_shared::ids::{ClusterId, Epoch, NodeId, Nonce};
use quorate_shared::wire::{ClientHello, Hello, PeerChannel, PeerHello, Preface};

use crate::support::{Sql, TestCluster, eventually, free_port};

/// Nodes in the picture, with their addresses.
fn addresses(cluster: &TestCluster, asked: u64) -> Result<Vec<(String, String)>, String> {
    let status = cluster.nodes[&asked].status()?;
    let nodes = status["nodes"].as_array().ok_or("no nodes")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(nodes.iter().map(|node| (text(&node["id"]), text(&node["addr"]))).collect())
}

/// How often a line was logged.
fn logged(cluster: &TestCluster, node: u64, what: &str) -> usize {
    cluster.nodes[&node].log_text().lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_join_of_the_wrong_cluster_is_refused_by_name() {
    let mut ours = TestCluster::started(1, 1);
    let mut others = TestCluster::started(1, 0);
    let mut sql = Sql::on(&ours.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    eventually("the replica follows", || ours.nodes[&2].caught_up(&ours.nodes[&1]));
    let before = addresses(&others, 1).unwrap();
    // A replica of this cluster is sent to the other one: refused there, it goes on here.
    ours.node(2).kill();
    let wrong = others.nodes[&1].address();
    ours.node(2).set_flag("--replica-of", &wrong);
    ours.node(2).start();
    eventually("the replica is refused", || match logged(&ours, 2, "OtherCluster: n2 belongs to cluster") {
        0 => Err("not yet".into()),
        _ => Ok(()),
    });
    sql.must("INSERT INTO t VALUES (1)");
    eventually("the replica follows its own cluster", || ours.nodes[&2].caught_up(&ours.nodes[&1]));
    assert_eq!(Sql::on(&ours.nodes[&2]).number("SELECT count(*) FROM t"), 1);
    // An empty node that is told to be a voter of a cluster that has others founds nothing and joins nothing.
    let mut third = TestCluster::new(1, 0);
    let own = third.nodes[&1].address();
    third.node(1).set_flag("--id", "9");
    third.node(1).set_flag("--peers", &format!("1={wrong},9={own}"));
    third.node(1).start();
    eventually("the empty node says why it waits", || match third.nodes[&1].get("/health")? {
        (503, why) if why.contains("OtherCluster: n1 belongs to cluster") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(addresses(&others, 1).unwrap(), before, "nothing changed there");
    others.node(1).kill();
}

fn hello(channel: PeerChannel) -> Hello {
    Hello::Peer(PeerHello {
        cluster: Some(ClusterId([1; 16])),
        epoch: Epoch { number: 1, id: 1 },
        node: NodeId::new(2),
        to: Some(NodeId::new(1)),
        nonce: Nonce([1; 16]),
        channel,
        address: "127.0.0.1:1".into(),
    })
}

/// What a node answers to somebody who speaks only version 0.
fn answer_to_older(port: u16, hello: &Hello) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let message = postcard::to_stdvec(hello).unwrap();
    let mut bytes = Preface { lowest: 0, highest: 0 }.encode().to_vec();
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let preface = Preface::OURS.encode();
    assert_eq!(answer[..preface.len()], preface, "its own version comes first");
    String::from_utf8(answer[preface.len()..].to_vec()).unwrap()
}

#[test]
fn who_speaks_an_older_version_is_refused_by_name_and_logged_once() {
    let cluster = TestCluster::started(1, 0);
    let before = addresses(&cluster, 1).unwrap();
    let client =
        Hello::Client(ClientHello { agent: "older".into(), user: "u".into(), database: None, settings: Vec::new() });
    let hellos = [hello(PeerChannel::Consensus), hello(PeerChannel::Founding), client];
    for hello in &hellos {
        let line = answer_to_older(cluster.nodes[&1].port, hello);
        assert!(line.starts_with("quorate: refused: OtherVersion: you speak protocol version 0, this node"), "{line}");
    }
    assert_eq!(logged(&cluster, 1, "OtherVersion"), 1, "{}", cluster.nodes[&1].log_text());
    assert_eq!(addresses(&cluster, 1).unwrap(), before);
    Sql::on(&cluster.nodes[&1]).must("SELECT 1");
}

#[test]
fn a_listed_peer_of_an_older_version_is_named() {
    let older = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let port = older.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in older.incoming() {
            let Ok(mut stream) = stream else { return };
            // Whoever has gone again is none of its business.
            let _ = stream.write_all(&Preface { lowest: 0, highest: 0 }.encode());
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let mut cluster = TestCluster::new(1, 0);
    let own = cluster.nodes[&1].address();
    cluster.node(1).set_flag("--peers", &format!("1={own},2=127.0.0.1:{port}"));
    cluster.node(1).start();
    eventually("the older peer is named", || match cluster.nodes[&1].get("/health")? {
        (503, why) if why.contains("n2 (OtherVersion: it speaks protocol version 0, ") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(logged(&cluster, 1, "OtherVersion"), 1, "{}", cluster.nodes[&1].log_text());
}

/// The voters as they are to be listed now.
fn listed(cluster: &TestCluster) -> String {
    let voters = cluster.nodes.values().filter(|node| node.is_voter());
    voters.map(|node| format!("{}={}", node.id, node.address())).collect::<Vec<_>>().join(",")
}

#[test]
fn a_node_with_another_address_is_found_by_peers_and_clients() {
    let mut cluster = TestCluster::started(3, 1);
    let master = cluster.settled();
    let moved = master % 3 + 1;
    let third = (1..=3).find(|id| ![master, moved].contains(id)).unwrap();
    let mut sql = Sql::connect(&[&cluster.nodes[&master]], Policy::Follow);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    // Only the node itself is told, a voter by its own list, a replica by its listener.
    for node in [moved, 4] {
        cluster.node(node).kill();
        cluster.node(node).moves();
    }
    let list = listed(&cluster);
    cluster.node(moved).set_flag("--peers", &list);
    cluster.node(moved).start();
    cluster.node(4).start();
    for node in [moved, 4] {
        let now = (format!("n{node}"), cluster.nodes[&node].address());
        for asked in [master, third] {
            eventually("the new address is in the picture", || match addresses(&cluster, asked)? {
                all if all.contains(&now) => Ok(()),
                all => Err(format!("{all:?}")),
            });
        }
        eventually("it follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&master]));
    }
    // It counts: the majority needs it, and a client that knew only the master finds it.
    cluster.node(third).kill();
    sql.must("INSERT INTO t VALUES (1)");
    sql.act(AdminAction::Switchover { to: Some(NodeId::new(moved)) });
    sql.must("INSERT INTO t VALUES (2)");
    assert_eq!(cluster.master(), moved);
    // One that has not heard of it, and was told the old address, finds it too.
    cluster.node(third).start();
    cluster.node(master).kill();
    sql = Sql::connect(&[&cluster.nodes[&third]], Policy::Follow);
    sql.must("INSERT INTO t VALUES (3)");
    assert_eq!(sql.number("SELECT count(*) FROM t"), 3);
    cluster.node(master).start();
    cluster.wait_ready();
}

#[test]
fn a_cluster_whose_every_address_is_another_one_comes_together() {
    let mut cluster = TestCluster::started(3, 0);
    Sql::anywhere(&cluster).must("CREATE TABLE t (id INT PRIMARY KEY)");
    for id in 1..=3 {
        cluster.node(id).kill();
        cluster.node(id).moves();
    }
    let list = listed(&cluster);
    for id in 1..=3 {
        cluster.node(id).set_flag("--peers", &list);
        cluster.node(id).start();
    }
    cluster.wait_ready();
    let mut sql = Sql::anywhere(&cluster);
    sql.must("INSERT INTO t VALUES (1)");
    eventually("the picture has the new addresses", || match addresses(&cluster, 1)? {
        all if all.iter().all(|(node, address)| list.contains(&format!("{}={address}", &node[1..]))) => Ok(()),
        all => Err(format!("{all:?}")),
    });
}
