//! The change feed of real nodes: what is delivered, how it goes on, how it ends.

use std::time::Duration;

use quorate_shared::client::{Client, ClientConfig};
use quorate_shared::error::Code;
use quorate_shared::feed::{Change, FeedBatch, FeedOp, FeedToken};
use quorate_shared::url::Address;
use quorate_shared::value::Value;

use crate::support::{Sql, TestCluster, eventually};

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
    assert!(error.message.contains("another epoch"), "{error:?}");
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
