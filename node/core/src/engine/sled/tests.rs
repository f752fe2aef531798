//! The engine on sled: what comes back, what is noticed, what is not trusted.

use proptest::prelude::*;

use super::*;
use crate::engine::memory::MemoryEngine;
use crate::engine::mirror::MirrorEngine;

const CACHE: u64 = 8 << 20;

/// In memory where the system has that: these tests are about bytes, and a sync of a busy disk takes long.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn batch(writes: &[(&[u8], Option<Vec<u8>>)]) -> Batch {
    let writes = writes.iter().map(|(k, v)| (Bytes::copy_from_slice(k), v.clone().map(Bytes::from)));
    Batch { writes: writes.collect() }
}

fn everything() -> KeyRange {
    KeyRange { start: Bytes::new(), end: None }
}

/// Keys in sled itself, overflow chunks included.
fn stored_keys(dir: &Path) -> usize {
    SledEngine::open(dir, CACHE).unwrap().db.open_tree("t").unwrap().len()
}

#[test]
fn golden_values() {
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut out = Vec::new();
    encode_inline(&mut out, b"key", b"value");
    assert_eq!(hex(&out), "07c603630076616c7565");
    assert!(matches!(parse(b"key", &out), Some(Stored::Inline(b"value"))));
    assert!(parse(b"kez", &out).is_none(), "the key is under the checksum");
    encode_pointer(&mut out, b"key", 7, 5000);
    assert_eq!(hex(&out), "2d97a2710100000000000000070000138800000002");
    assert_eq!(hex(&chunk_key(7, 1)), "ff000000000000000700000001");
}

#[test]
fn large_values_overflow_and_leave_nothing_behind() {
    let dir = directory();
    let big = |n: usize| Some((0..n).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
    {
        let engine = SledEngine::open(dir.path(), CACHE).unwrap();
        let tree = engine.tree("t").unwrap();
        for n in [0, 1, ENGINE_VALUE_BYTES_MAX - HEAD, ENGINE_VALUE_BYTES_MAX - HEAD + 1, CHUNK, CHUNK + 1, 300_000] {
            tree.write(batch(&[(b"a", big(n)), (b"b", big(n / 2))])).unwrap();
            assert_eq!(tree.get(b"a").unwrap().map(|v| v.to_vec()), big(n));
            let seen: Vec<usize> = tree.scan(&everything(), true).map(|r| r.unwrap().1.len()).collect();
            assert_eq!(seen, [n / 2, n]);
        }
        assert!(tree.write(batch(&[(&[ENGINE_PREFIX, 1], big(1))])).is_err());
        engine.flush().unwrap();
    }
    {
        let engine = SledEngine::open(dir.path(), CACHE).unwrap();
        let tree = engine.tree("t").unwrap();
        assert_eq!(tree.get(b"a").unwrap().map(|v| v.to_vec()), big(300_000));
        tree.write(batch(&[(b"a", None), (b"b", big(3))])).unwrap();
        assert_eq!(tree.scan(&everything(), false).count(), 1);
    }
    assert_eq!(stored_keys(dir.path()), 2, "one, and the sum");
}

#[test]
fn a_value_that_was_changed_underneath_is_an_error_and_stops_the_engine() {
    let dir = directory();
    let engine = SledEngine::open(dir.path(), CACHE).unwrap();
    let tree = engine.tree("t").unwrap();
    tree.write(batch(&[(b"a", Some(vec![1; 100])), (b"b", Some(vec![2; 9000]))])).unwrap();
    let raw = engine.db.open_tree("t").unwrap();
    let mut stored = raw.get(b"a").unwrap().unwrap().to_vec();
    stored[50] ^= 1;
    raw.insert(b"a", stored).unwrap();
    assert!(tree.scan(&everything(), false).next().unwrap().is_err());
    assert!(tree.get(b"b").is_err() && engine.flush().is_err());
}

#[test]
fn a_value_that_lacks_its_chunks_is_an_error() {
    let dir = directory();
    let engine = SledEngine::open(dir.path(), CACHE).unwrap();
    let tree = engine.tree("t").unwrap();
    tree.write(batch(&[(b"b", Some(vec![2; 9000]))])).unwrap();
    engine.db.open_tree("t").unwrap().remove(chunk_key(1, 2)).unwrap();
    assert!(tree.get(b"b").unwrap_err().to_string().contains("62"));
}

#[test]
fn what_is_missing_or_back_is_noticed() {
    let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = (0..200u8).map(|n| (vec![1, n], Some(vec![n; 30]))).collect();
    let rows: Vec<(&[u8], Option<Vec<u8>>)> = rows.iter().map(|(k, v)| (&k[..], v.clone())).collect();
    let checked = |tree: &dyn Tree| loop {
        match tree.check(50) {
            Ok(false) => {}
            other => return other,
        }
    };
    // What sled does with a damaged message: a change is not there.
    type Loss = fn(&sled::Tree, sled::IVec);
    let losses: [Loss; 4] = [
        |_, _| {},
        |tree, _| drop(tree.remove([1, 7]).unwrap()),
        |tree, older| drop(tree.insert([1, 3], older).unwrap()),
        |tree, _| drop(tree.remove(chunk_key(2, 1)).unwrap()),
    ];
    for (number, lose) in losses.into_iter().enumerate() {
        let dir = directory();
        let engine = SledEngine::open(dir.path(), CACHE).unwrap();
        let tree = engine.tree("t").unwrap();
        tree.write(batch(&rows)).unwrap();
        let older = engine.db.open_tree("t").unwrap().get([1, 3]).unwrap().unwrap();
        tree.write(batch(&[(&[1, 3], Some(vec![9])), (&[1, 4], None), (&[1, 200], Some(vec![5; 9000]))])).unwrap();
        tree.write(batch(&[(&[1, 200], Some(vec![6; 9000])), (&[1, 201], Some(vec![]))])).unwrap();
        lose(&engine.db.open_tree("t").unwrap(), older);
        drop((tree, engine));
        let engine = SledEngine::open(dir.path(), CACHE).unwrap();
        let tree = engine.tree("t").unwrap();
        assert_eq!(checked(&*tree).is_ok(), number == 0, "loss {number}");
        assert_eq!(engine.damage().is_some(), number != 0);
    }
}

#[test]
fn a_tree_without_its_sum_does_not_open() {
    let dir = directory();
    {
        let engine = SledEngine::open(dir.path(), CACHE).unwrap();
        engine.tree("t").unwrap().write(batch(&[(b"a", Some(vec![1]))])).unwrap();
        engine.db.open_tree("t").unwrap().remove(sum::KEY).unwrap();
    }
    let engine = SledEngine::open(dir.path(), CACHE).unwrap();
    assert!(engine.tree("t").err().unwrap().to_string().contains("sum"));
}

/// Batches between the steps of a round, and across openings, never make a round fail.
#[test]
fn rounds_go_on_while_batches_are_written() {
    let dir = directory();
    let mut random = crate::sim::Rng::new(5);
    let mut engine = SledEngine::open(dir.path(), CACHE).unwrap();
    let mut tree = engine.tree("t").unwrap();
    let mut rounds = 0;
    for n in 0..2000u64 {
        let key = |random: &mut crate::sim::Rng| vec![1, random.below(120) as u8];
        let (a, b) = (key(&mut random), key(&mut random));
        let size = if random.below(10) == 0 { 9000 } else { random.below(50) };
        let value = (random.below(4) != 0).then(|| vec![n as u8; size]);
        tree.write(batch(&[(&a, value), (&b, Some(vec![n as u8]))])).unwrap();
        rounds += u32::from(tree.check(random.below(20)).unwrap());
        if n % 500 == 499 {
            drop((tree, engine));
            engine = SledEngine::open(dir.path(), CACHE).unwrap();
            tree = engine.tree("t").unwrap();
        }
    }
    assert!(rounds > 20, "{rounds}");
}

#[test]
fn readers_are_never_torn_by_a_writer_of_large_values() {
    let dir = directory();
    let engine = SledEngine::open(dir.path(), CACHE).unwrap();
    let tree = engine.tree("t").unwrap();
    let write = |n: u8| tree.write(batch(&[(b"a", Some(vec![n; 10_000 + usize::from(n)]))])).unwrap();
    write(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let tree = &tree;
        let readers: Vec<_> = [false, true]
            .map(|scan| {
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) || rounds == 0 {
                        let value = if scan {
                            tree.scan(&everything(), false).next().unwrap().unwrap().1
                        } else {
                            tree.get(b"a").unwrap().unwrap()
                        };
                        assert_eq!(value.len(), 10_000 + usize::from(value[0]));
                        assert!(value.iter().all(|b| *b == value[0]));
                        rounds += 1;
                    }
                })
            })
            .into();
        (1..100).for_each(write);
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    });
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Get(Vec<u8>),
    Scan(Vec<u8>, Option<Vec<u8>>, bool),
    Flush,
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(0..3u8, 1..4), prop::collection::vec(0..0xffu8, 1..20)]
}

fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    let sized = prop_oneof![5 => 0..300usize, 1 => 4000..14_000usize];
    prop::option::weighted(0.7, (sized, any::<u8>()).prop_map(|(n, b)| vec![b; n]))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec((key(), value()), 1..6).prop_map(Step::Write),
        3 => key().prop_map(Step::Get),
        3 => (key(), prop::option::of(key()), any::<bool>()).prop_map(|(a, b, r)| Step::Scan(a, b, r)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// sled and memory give the same answers; the mirror compares each one.
    #[test]
    fn agrees_with_memory(steps in prop::collection::vec(step(), 1..40)) {
        let dir = directory();
        let memory = Arc::new(MemoryEngine::new());
        let open = || MirrorEngine::new(Arc::new(SledEngine::open(dir.path(), CACHE).unwrap()), memory.clone());
        let mut engine = open();
        let mut tree = engine.tree("t").unwrap();
        for s in steps {
            match s {
                Step::Write(writes) => {
                    let list: Vec<_> = writes.iter().map(|(k, v)| (&k[..], v.clone())).collect();
                    tree.write(batch(&list)).unwrap();
                }
                Step::Get(key) => drop(tree.get(&key).unwrap()),
                Step::Scan(start, end, reverse) => {
                    let range = KeyRange { start: Bytes::from(start), end: end.map(Bytes::from) };
                    tree.scan(&range, reverse).for_each(|item| drop(item.unwrap()));
                }
                Step::Flush => engine.flush().unwrap(),
                Step::Reopen => {
                    drop((tree, engine));
                    engine = open();
                    tree = engine.tree("t").unwrap();
                }
            }
        }
        tree.scan(&everything(), false).for_each(|item| drop(item.unwrap()));
    }
}
