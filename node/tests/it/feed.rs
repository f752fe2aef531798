//! The change feed of real nodes: what is delivered, how it goes on, how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use quorate_shared::admin::AdminAction;
use quorate_shared::client::{Client, ClientConfig};
use quorate_shared::error::Code;
use quorate_shared::feed::{Change, FeedBatch, FeedOp, FeedToken};
use quorate_shared::url::Address;
use quorate_shared::value::Value;

use rustix::process::Signal;
use serde_json::Value as Json;

use crate::support::{Sql, TestCluster, TestNode, eventually, quorate, run, shell, signal, text};
use crate::trimming;

/// A client of a feed on its own small runtime.
struct Reader {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Reader {
    fn connect(cluster: &TestCluster) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let hosts: Vec<Address> = cluster.nodes.values().map(|n| Address::new("127.0.0.1", n.port)).collect();
        let client = eventually("a session opens", || {
            runtime.block_on(Client::connect(ClientConfig::new(hosts.clone()))).map_err(|e| e.to_string())
        });
        Self { runtime, client }
    }

    /// Reads until `enough`; gives everything, and the columns of the last batch that had some.
    fn read(
        &mut self,
        table: &str,
        from: Option<FeedToken>,
        mut begun: impl FnMut(),
        mut enough: impl FnMut(&[Change]) -> bool,
    ) -> (Vec<Change>, Vec<FeedBatch>) {
        let reading = async {
            let mut feed = self.client.feed(table, from);
            let (mut changes, mut batches) = (Vec::new(), Vec::new());
            loop {
                let batch = feed.next().await.unwrap();
                changes.extend(batch.changes.iter().cloned());
                if batches.is_empty() {
                    begun();
                }
                batches.push(batch);
                if enough(&changes) {
                    return (changes, batches);
                }
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap() })
    }

    fn fails(&mut self, table: &str, from: Option<FeedToken>) -> quorate_shared::error::WireError {
        let reading = async {
            let mut feed = self.client.feed(table, from);
            loop {
                if let Err(error) = feed.next().await {
                    return error.into_wire();
                }
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap() })
    }
}

fn brief(changes: &[Change]) -> Vec<(FeedOp, Option<i64>)> {
    let key = |change: &Change| match change.key.first() {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    };
    changes.iter().map(|change| (change.op, key(change))).collect()
}

#[test]
fn a_feed_follows_its_table_through_everything() {
    let cluster = TestCluster::started(1, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE \"Pets\" (\"Id\" INT PRIMARY KEY, name TEXT)");
    sql.must("CREATE TABLE other (id INT PRIMARY KEY)");
    sql.must("INSERT INTO \"Pets\" VALUES (1, 'early')");
    let mut reader = Reader::connect(&cluster);
    let (begun, gate) = std::sync::mpsc::channel();
    let statements = [
        "INSERT INTO other VALUES (1), (2), (3)",
        "INSERT INTO pets VALUES (2, 'b'), (3, 'c')",
        "UPDATE pets SET name = 'B' WHERE id = 2",
        "DELETE FROM pets WHERE id = 1",
        "INSERT INTO pets VALUES (1, 'again')",
        "ALTER TABLE pets ADD COLUMN legs INT DEFAULT 4",
        "INSERT INTO pets VALUES (9, 'n', 2)",
        "TRUNCATE TABLE pets",
        "INSERT INTO pets VALUES (1, 'new', 0)",
    ];
    let (changes, batches) = std::thread::scope(|scope| {
        let sql = &mut sql;
        scope.spawn(move || {
            gate.recv().unwrap();
            statements.iter().for_each(|statement| drop(sql.must(statement)));
        });
        let last = |changes: &[Change]| brief(changes).last() == Some(&(FeedOp::Insert, Some(1))) && changes.len() > 6;
        reader.read("pets", None, || begun.send(()).unwrap(), last)
    });
    use FeedOp::{Delete, Insert, Truncate, Update};
    let expected = [
        (Insert, Some(2)),
        (Insert, Some(3)),
        (Update, Some(2)),
        (Delete, Some(1)),
        (Insert, Some(1)),
        (Insert, Some(9)),
        (Truncate, None),
        (Insert, Some(1)),
    ];
    assert_eq!(brief(&changes), expected);
    let names: Vec<Vec<String>> = batches
        .iter()
        .filter_map(|batch| batch.columns.as_ref())
        .map(|columns| columns.row.iter().map(|column| column.name.clone()).collect())
        .collect();
    assert_eq!(names.first().unwrap(), &["Id", "name"], "as they were spelled");
    assert_eq!(names.last().unwrap(), &["Id", "name", "legs"]);
    assert_eq!(changes[2].row, Some(vec![Value::Int(2), Value::Text("B".into())]));
    assert!(changes.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp));

    // From any token exactly what follows comes, at the replica too.
    for (at, change) in changes.iter().enumerate() {
        let want = changes.len() - at - 1;
        let (rest, _) = reader.read("pets", Some(change.token), || {}, |rest| rest.len() >= want);
        assert_eq!(brief(&rest), brief(&changes[at + 1..]), "behind change {at}");
    }

    // What is no way to go on is said.
    let token = changes[0].token;
    let error = reader.fails("pets", Some(FeedToken { check: 1, ..token }));
    assert!(error.message.contains("another cluster or epoch"), "{error:?}");
    let error = reader.fails("other", Some(token));
    assert!(error.message.contains("another table"), "{error:?}");
    let error = reader.fails("nothing", None);
    assert_eq!(error.code, Code::NotFound, "{error:?}");

    // The end of the table is the end of its feed; a token from before leads there.
    sql.must("DROP TABLE pets");
    let error = reader.fails("pets", Some(token));
    assert!(error.message.contains("\"Pets\" was dropped"), "{error:?}");
}

#[test]
fn a_feed_sees_every_acknowledged_row_though_its_master_dies() {
    let mut cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    let mut reader = Reader::connect(&cluster);
    let started = std::sync::Arc::new(std::sync::Barrier::new(2));
    let (gate, done) = (started.clone(), 400);
    let reading = std::thread::spawn(move || {
        let all = |changes: &[Change]| changes.iter().any(|c| c.key.first() == Some(&Value::Int(done)));
        reader.read("t", None, || _ = gate.wait(), all).0
    });
    started.wait();
    let victim = cluster.master();
    for n in 1..=done {
        if n == done / 2 {
            cluster.node(victim).kill();
        }
        sql.must(&format!("INSERT INTO t VALUES ({n}, {n})"));
    }
    let changes = reading.join().unwrap();
    let mut ids: Vec<i64> = brief(&changes).into_iter().filter_map(|(_, id)| id).collect();
    ids.dedup();
    assert_eq!(ids, (1..=done).collect::<Vec<_>>(), "each at least once, in order");
}

/// `quorate feed` while it runs.
pub struct Program {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
}

impl Program {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = quorate(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().map(BufReader::new);
        Self { child, out }
    }

    /// A feed of `t`.
    fn of(cluster: &TestCluster, more: &[&str]) -> Self {
        let hosts: Vec<String> = cluster.nodes.values().map(TestNode::address).collect();
        Self::start(&[&["feed", "-h", &hosts.join(","), "--table", "t"], more].concat())
    }

    /// The token of now of a table at one node.
    pub fn token(address: &str, table: &str) -> String {
        let mut program = Self::start(&["feed", "-h", address, "--table", table, "--heartbeat"]);
        program.line()["token"].as_str().unwrap().to_owned()
    }

    /// The first so many changes of a table behind a token at one node: what, and the key's `id`.
    pub fn behind(address: &str, table: &str, token: &str, count: usize) -> Vec<(String, Option<i64>)> {
        let limit = count.to_string();
        let mut program = Self::start(&["feed", "-h", address, "--table", table, "--from", token, "--limit", &limit]);
        let mut next = || {
            let change = program.change();
            (change["op"].as_str().unwrap().to_owned(), change["key"]["id"].as_i64())
        };
        (0..count).map(|_| next()).collect()
    }

    /// The next line.
    pub fn line(&mut self) -> Json {
        let mut line = String::new();
        self.out.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// The next line that is a change.
    fn change(&mut self) -> Json {
        loop {
            let line = self.line();
            if line["op"] != "heartbeat" {
                return line;
            }
        }
    }

    /// Waits for its end: the exit code, and what it said.
    fn ended(&mut self) -> (Option<i32>, String) {
        let status = eventually("the feed ends", || self.child.try_wait().unwrap().ok_or("it runs".to_owned()));
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_feed_program_outlives_its_master_and_says_how_to_go_on() {
    if shell().is_none() {
        return;
    }
    let mut cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    let mut program = Program::of(&cluster, &["--heartbeat"]);
    assert_eq!(program.line()["op"], "heartbeat", "it has begun");
    let master = cluster.settled();
    for n in 1..=60 {
        if n == 20 {
            Sql::on(&cluster.nodes[&master]).act(AdminAction::Switchover { to: None });
        }
        if n == 40 {
            let master = cluster.master();
            cluster.node(master).kill();
        }
        sql.must(&format!("INSERT INTO t VALUES ({n}, {n})"));
    }
    let (mut ids, mut last) = (Vec::new(), Json::Null);
    while ids.last() != Some(&60) {
        last = program.change();
        ids.push(last["row"]["id"].as_i64().unwrap());
        assert_eq!((&last["table"], &last["key"]["id"]), (&"t".into(), &last["row"]["id"]), "{last}");
    }
    ids.dedup();
    assert_eq!(ids, (1..=60).collect::<Vec<_>>(), "each at least once, in the order of the log");

    signal(&program.child, Signal::INT);
    let (code, said) = program.ended();
    assert_eq!(code, Some(130), "{said}");
    let again = said.rsplit_once(" --from ").map(|(_, token)| token.trim().to_owned()).unwrap();
    assert!(said.contains("quorate feed --table t --from "), "{said}");
    sql.must("UPDATE t SET n = 0 WHERE id = 7");
    sql.must("DELETE FROM t WHERE id = 8");
    // Behind what it said, and behind the last line.
    for from in [again.as_str(), last["token"].as_str().unwrap()] {
        let mut program = Program::of(&cluster, &["--from", from, "--limit", "2"]);
        let changes = [program.change(), program.change()];
        assert_eq!(
            changes.each_ref().map(|c| (c["op"].clone(), c["key"]["id"].clone())),
            [("update".into(), 7.into()), ("delete".into(), 8.into())]
        );
        assert_eq!((&changes[0]["row"]["n"], &changes[1]["row"]), (&0.into(), &Json::Null));
        assert_eq!(program.ended(), (Some(0), String::new()));
    }
}

#[test]
fn the_feed_program_ends_by_name() {
    if shell().is_none() {
        return;
    }
    let (cluster, other) = (TestCluster::started(1, 0), TestCluster::started(1, 0));
    let fails = |cluster: &TestCluster, more: &[&str]| Program::of(cluster, more).ended();
    let (code, said) = fails(&cluster, &[]);
    assert!(code == Some(1) && said.contains("table \"t\" does not exist"), "{code:?} {said}");
    let (code, said) = fails(&cluster, &["--from", "yesterday"]);
    assert!(code == Some(2) && said.contains("'yesterday' is not a token"), "{code:?} {said}");

    for cluster in [&cluster, &other] {
        let mut sql = Sql::anywhere(cluster);
        sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
        sql.must("INSERT INTO t VALUES (1, 1)");
    }
    let token = Program::of(&other, &["--heartbeat"]).line()["token"].as_str().unwrap().to_owned();
    let (code, said) = fails(&cluster, &["--from", &token]);
    assert!(code == Some(1) && said.contains("the token is of another cluster or epoch"), "{code:?} {said}");
    assert!(said.contains("it was given in epoch 1 of id ") && said.contains(", this is another, of id "), "{said}");

    // Nobody reads any more, and nothing happens: it goes, quietly.
    let mut program = Program::of(&cluster, &["--heartbeat"]);
    program.line();
    program.out = None;
    assert_eq!(program.ended(), (Some(0), String::new()));

    let mut program = Program::of(&cluster, &["--heartbeat"]);
    program.line();
    let mut sql = Sql::anywhere(&cluster);
    sql.must("INSERT INTO t VALUES (2, 2)");
    sql.must("DROP TABLE t");
    assert_eq!(program.change()["key"]["id"], 2, "every change before the drop");
    let (code, said) = program.ended();
    assert!(code == Some(1) && said.contains("table \"t\" was dropped: its feed has ended"), "{code:?} {said}");
}

#[test]
fn readers_behind_the_trimmed_log_are_told_so_by_name() {
    if shell().is_none() {
        return;
    }
    let cluster = trimming::started(1, 0, 8);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    trimming::create(&mut sql);
    trimming::overwrite(&mut sql, 0);
    let token = Program::of(&cluster, &["--heartbeat"]).line()["token"].as_str().unwrap().to_owned();
    let (address, dir) = (cluster.nodes[&1].address(), cluster.path().join("backup"));
    let backup = ["backup", "-h", &address, "--to", dir.to_str().unwrap(), "--once"];
    let output = run(&backup);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    trimming::until_trimmed(&cluster, &mut sql, &[1], 0);
    let (code, said) = Program::of(&cluster, &["--from", &token]).ended();
    assert!(code == Some(1) && said.contains("needs a snapshot: the log of this node begins after"), "{code:?} {said}");
    assert!(said.contains("read the table, then go on with --from now"), "{said}");
    let output = run(&backup);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("needs a snapshot: the log of s1 begins after"), "{said}");
    assert!(said.contains("begin a new backup in another directory"), "{said}");
}

#[test]
fn a_feed_that_goes_on_leaves_nothing_out_though_the_base_is_newer_than_the_table() {
    if shell().is_none() {
        return;
    }
    let mut cluster = trimming::started(1, 0, 8);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE q (id INT PRIMARY KEY, v INT)");
    sql.must("INSERT INTO q VALUES (1, 1)");
    trimming::create(&mut sql);
    trimming::overwrite(&mut sql, 0);
    trimming::until_trimmed(&cluster, &mut sql, &[1], 0);
    let address = cluster.nodes[&1].address();
    let token = Program::token(&address, "q");
    for statement in [
        "INSERT INTO q VALUES (900, 1)",
        "DELETE FROM q WHERE id = 1",
        "TRUNCATE q",
        "INSERT INTO q VALUES (901, 1)",
        "ALTER TABLE q ADD COLUMN w INT DEFAULT 4",
        "TRUNCATE q",
        "INSERT INTO q VALUES (902, 1, 2)",
    ] {
        sql.must(statement);
    }
    let name = str::to_owned;
    let all = [
        (name("insert"), Some(900)),
        (name("delete"), Some(1)),
        (name("truncate"), None),
        (name("insert"), Some(901)),
        (name("truncate"), None),
        (name("insert"), Some(902)),
    ];
    assert_eq!(Program::behind(&address, "q", &token, all.len()), all);
    cluster.node(1).kill();
    cluster.node(1).start();
    cluster.wait_ready();
    assert_eq!(Program::behind(&address, "q", &token, all.len()), all);
    // Nor when it is gone.
    Sql::on(&cluster.nodes[&1]).must("DROP TABLE q");
    let mut program = Program::start(&["feed", "-h", &address, "--table", "q", "--from", &token]);
    for (op, _) in &all {
        assert_eq!(program.change()["op"], op.as_str());
    }
    let (code, said) = program.ended();
    assert!(code == Some(1) && said.contains("table \"q\" was dropped: its feed has ended"), "{code:?} {said}");
}
