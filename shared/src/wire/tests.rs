//! The bytes of every message, fixed. `QUORATE_BLESS=1 cargo test -p quorate-shared` writes them anew: only before a
//! version is released, or for variants that were appended.

use std::fmt::Write;

use serde::Serialize;

use super::*;
use crate::admin::{AdminOutcome, AdminPlan, StepState};
use crate::archive::{ArchiveBase, ArchiveMark, ArchivedEntries, TableDigest};
use crate::error::Code;
use crate::feed::{Change, FeedColumns, FeedOp};
use crate::ids::{ClientId, Hash, Index, SchemaVersion, ShardId, TableId, Timestamp};
use crate::value::{Decimal, Interval};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Collects `name: hex` lines.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn add<T: Serialize>(&mut self, name: &str, message: &T) {
        let bytes = postcard::to_stdvec(message).unwrap();
        writeln!(self.0, "{name}: {}", hex(&bytes)).unwrap();
    }
}

fn peer(channel: PeerChannel) -> Hello {
    Hello::Peer(PeerHello {
        cluster: Some(ClusterId([7; 16])),
        epoch: Epoch { number: 1, id: 0xabcd },
        node: NodeId::new(2),
        to: Some(NodeId::new(3)),
        nonce: Nonce([9; 16]),
        channel,
        address: "a:1".into(),
    })
}

fn address() -> NodeAddress {
    NodeAddress { node: NodeId::new(1), address: "127.0.0.1:7411".into(), kind: NodeKind::Voter }
}

fn options() -> QueryOptions {
    QueryOptions {
        read_level: Some(ReadLevel::Local),
        deadline_ms: 30_000,
        write: Some(WriteId { client: ClientId([1; 16]), seq: 5 }),
        retry: true,
        read_only: false,
        credit: 16,
    }
}

fn feed_token() -> FeedToken {
    FeedToken {
        shard: ShardId::DATA,
        epoch: Epoch { number: 1, id: 300 },
        table: TableId::new(5),
        version: SchemaVersion::new(2),
        index: Index::new(300),
        check: 0xabcd,
        skip: 1,
    }
}

fn feed_batch() -> FeedBatch {
    let column = |name: &str, ty| Column { name: name.into(), ty };
    let change = |op| Change {
        op,
        key: vec![Value::Int(7)],
        row: Some(vec![Value::Int(7), Value::Null]),
        timestamp: Timestamp::new(1, 2),
        token: feed_token(),
    };
    let ops = [FeedOp::Insert, FeedOp::Update, FeedOp::Delete, FeedOp::Upsert, FeedOp::Truncate];
    FeedBatch {
        columns: Some(FeedColumns {
            table: "T".into(),
            key: vec![column("id", SqlType::Int)],
            row: vec![column("id", SqlType::Int), column("n", SqlType::Text)],
        }),
        changes: ops.map(change).into(),
        at: feed_token(),
    }
}

fn point() -> ArchivePoint {
    ArchivePoint { epoch: Epoch { number: 1, id: 300 }, index: Index::new(300), chain: Hash([7; 32]) }
}

fn archive_report() -> ArchiveReport {
    let shards = vec![(ShardId::DATA, Index::new(300))];
    ArchiveReport { id: 9, label: "host:/backup".into(), started_ms: 1, age_ms: 2, shards }
}

fn archive_parts() -> Vec<(&'static str, ArchivePart)> {
    let base = ArchiveBase {
        cluster: ClusterId([7; 16]),
        point: point(),
        timestamp: Timestamp::new(1, 2),
        record: vec![1],
        snapshot: true,
    };
    let entries = ArchivedEntries {
        first: Index::new(301),
        last: Index::new(302),
        chain: Hash([8; 32]),
        first_time: Timestamp::new(1, 3),
        last_time: Timestamp::new(1, 4),
        bytes: vec![1, 2],
    };
    let digests = vec![TableDigest { storage: TableId::new(5), table: "t".into(), digest: Hash([1; 32]) }];
    vec![
        ("base", ArchivePart::Base(base)),
        ("snapshot", ArchivePart::Snapshot { offset: 300, bytes: vec![1], last: true }),
        ("entries", ArchivePart::Entries(entries)),
        ("mark", ArchivePart::Mark(ArchiveMark { index: Index::new(302), chain: Hash([8; 32]), digests })),
        ("beat", ArchivePart::Beat { index: Index::new(302), until_ms: 300 }),
        ("end", ArchivePart::End),
    ]
}

fn requests(golden: &mut Golden) {
    let token = Token { shard: ShardId::DATA, epoch: 1, index: Index::new(300) };
    let all = [
        ("query", Request::Query { sql: "SELECT $1".into(), params: vec![Value::Int(-1)], options: options() }),
        ("prepare", Request::Prepare { sql: "SELECT 1".into() }),
        ("execute", Request::Execute { statement: 3, params: Vec::new(), options: QueryOptions::default() }),
        ("close", Request::Close { statement: 3 }),
        ("credit", Request::Credit { request: 300, batches: 8 }),
        ("cancel", Request::Cancel { session: SessionId::new(4), key: u64::MAX, request: 9 }),
        ("status", Request::Status),
        ("watch", Request::Watch { every_ms: 1000 }),
        ("ping", Request::Ping),
        ("schema", Request::Schema),
        ("admin", Request::Admin { action: AdminAction::Switchover { to: Some(NodeId::new(2)) }, dry_run: true }),
        ("feed", Request::Feed { table: "t".into(), from: Some(feed_token()), credit: 16 }),
        ("archive", Request::Archive { shard: ShardId::DATA, after: Some(point()), once: true, credit: 16 }),
        ("archived", Request::Archived(archive_report())),
        ("forget archive", Request::ForgetArchive { id: 9 }),
    ];
    for (name, body) in all {
        golden.add(&format!("request {name}"), &ClientFrame { request: 1, body });
    }
    let levels = [
        ("linearizable", ReadLevel::Linearizable),
        ("after", ReadLevel::After(vec![token])),
        ("max_staleness", ReadLevel::MaxStaleness(500)),
        ("local", ReadLevel::Local),
    ];
    levels.iter().for_each(|(name, level)| golden.add(&format!("read level {name}"), level));
}

fn responses(golden: &mut Golden) {
    let done = Done {
        tag: "INSERT".into(),
        rows: 2,
        token: vec![Token { shard: ShardId::DATA, epoch: 1, index: Index::new(300) }],
        notices: vec![Notice { severity: "warning".into(), name: "ReplicaShortfall".into(), message: "1 of 2".into() }],
        settings: vec![("database".into(), "shop".into())],
        elapsed_us: 1234,
        catalog: CatalogVersion::new(17),
        age_ms: Some(40),
    };
    let columns = vec![Column { name: "n".into(), ty: SqlType::Decimal { precision: 10, scale: 2 } }];
    let error = WireError::sql("42P01", "no table \"t\"").detail("d").hint("h").at(7).redirect(Some("n1:1".into()));
    let table = TableInfo {
        name: "t".into(),
        kind: "table".into(),
        columns: vec![("id".into(), "INT".into())],
        primary_key: vec!["id".into()],
        foreign_keys: vec![(vec!["a".into()], "p".into(), vec!["id".into()])],
    };
    let schema = SchemaInfo {
        catalog: CatalogVersion::new(17),
        databases: vec![DatabaseInfo { name: "main".into(), tables: vec![table] }],
        functions: vec!["lower".into()],
    };
    let all = [
        ("batch", Response::Batch { columns: Some(columns.clone()), rows: vec![vec![Value::Null]], done: Some(done) }),
        ("middle batch", Response::Batch { columns: None, rows: vec![vec![Value::Bool(true)]], done: None }),
        ("error", Response::Error(error)),
        (
            "prepared",
            Response::Prepared { statement: 3, params: vec![None, Some(SqlType::Int)], columns, writes: true },
        ),
        ("status", Response::Status(Box::new(crate::status::tests::example()))),
        ("schema", Response::Schema(schema)),
        (
            "admin plan",
            Response::Admin {
                event: AdminEvent::Plan(AdminPlan { title: "t".into(), ..AdminPlan::default() }),
                last: true,
            },
        ),
        (
            "admin step",
            Response::Admin {
                event: AdminEvent::Step { step: 1, state: StepState::Done, detail: "d".into(), elapsed_ms: 300 },
                last: false,
            },
        ),
        (
            "admin outcome",
            Response::Admin {
                event: AdminEvent::Outcome(AdminOutcome {
                    done: true,
                    facts: vec![("write_gap_ms".into(), "43".into())],
                    ..AdminOutcome::default()
                }),
                last: true,
            },
        ),
        ("feed", Response::Feed(feed_batch())),
    ];
    for (name, body) in all {
        golden.add(&format!("response {name}"), &ServerFrame { request: 1, body });
    }
    for (name, part) in archive_parts() {
        golden.add(&format!("archive {name}"), &ServerFrame { request: 1, body: Response::Archive(part) });
    }
}

fn values(golden: &mut Golden) {
    use SqlType as T;
    let all = [
        Value::Null,
        Value::Bool(true),
        Value::Int(-300),
        Value::Float(1.5),
        Value::Decimal(Decimal { unscaled: -12345, scale: 2 }),
        Value::Text("héllo".into()),
        Value::Bytes(vec![0, 255]),
        Value::Date(19_000),
        Value::Time(1),
        Value::Timestamp(-1),
        Value::TimestampTz(1 << 50),
        Value::Interval(Interval { months: 1, days: -2, micros: 3 }),
        Value::Uuid([5; 16]),
        Value::Json("{}".into()),
    ];
    all.iter().for_each(|value| golden.add(&format!("value {value:?}"), value));
    let types = [
        T::Bool,
        T::SmallInt,
        T::Int,
        T::BigInt,
        T::Real,
        T::Double,
        T::Decimal { precision: 38, scale: 10 },
        T::Text,
        T::Varchar(200),
        T::Char(3),
        T::Bytes,
        T::Date,
        T::Time,
        T::Timestamp,
        T::TimestampTz,
        T::Interval,
        T::Uuid,
        T::Json,
        T::Null,
    ];
    types.iter().for_each(|ty| golden.add(&format!("type {ty}"), ty));
}

fn all() -> String {
    let mut golden = Golden::default();
    writeln!(golden.0, "preface: {}", hex(&Preface { lowest: 1, highest: 0x203 }.encode())).unwrap();
    golden.add(
        "hello client",
        &Hello::Client(ClientHello {
            agent: "quorate/0.1.0".into(),
            user: "ann".into(),
            database: Some("shop".into()),
            settings: vec![("read_level".into(), "local".into())],
        }),
    );
    let channels = [
        PeerChannel::Consensus,
        PeerChannel::Requests,
        PeerChannel::Shipping,
        PeerChannel::Founding,
        PeerChannel::Snapshots,
    ];
    for channel in channels {
        golden.add(&format!("hello peer {channel:?}"), &peer(channel));
    }
    let welcome = Welcome {
        cluster: Some(ClusterId([7; 16])),
        epoch: Epoch { number: 1, id: 0xabcd },
        node: NodeId::new(1),
        kind: NodeKind::Replica,
        version: "0.1.0".into(),
        session: SessionId::new(4),
        cancel_key: 1 << 63,
        master: Some(address()),
        nodes: vec![address()],
        database: "main".into(),
    };
    golden.add("greeting welcome", &Greeting::Welcome(Box::new(welcome)));
    golden.add("greeting peer", &Greeting::PeerWelcome { node: NodeId::new(1), nonce: Nonce([9; 16]) });
    golden.add("greeting refused", &Greeting::Refused(WireError::new(Code::Busy, "full")));
    requests(&mut golden);
    responses(&mut golden);
    Code::ALL.iter().for_each(|code| golden.add(&format!("code {code}"), code));
    values(&mut golden);
    golden.0
}

#[test]
fn bytes_are_fixed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/golden.txt");
    let now = all();
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (have, want) in now.lines().zip(golden.lines()) {
        assert_eq!(have, want);
    }
    assert_eq!(now.lines().count(), golden.lines().count());
}

#[test]
fn messages_come_back() {
    let frame =
        ClientFrame { request: 1, body: Request::Query { sql: "x".into(), params: vec![], options: options() } };
    let bytes = postcard::to_stdvec(&frame).unwrap();
    assert_eq!(postcard::from_bytes::<ClientFrame>(&bytes).unwrap(), frame);
    for cut in 0..bytes.len() {
        assert!(postcard::from_bytes::<ClientFrame>(&bytes[..cut]).is_err());
    }
}

#[test]
fn prefaces() {
    let ours = Preface { lowest: 2, highest: 4 };
    assert_eq!(Preface::decode(&ours.encode()), Some(ours));
    assert_eq!(ours.agree(Preface { lowest: 1, highest: 3 }), Some(3));
    assert_eq!(ours.agree(Preface { lowest: 4, highest: 9 }), Some(4));
    assert_eq!(ours.agree(Preface { lowest: 5, highest: 9 }), None);
    assert_eq!(ours.agree(Preface { lowest: 0, highest: 1 }), None);
    assert_eq!(Preface::decode(b"GET / HTTP/1"), None);
}
