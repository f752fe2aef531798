//! Bit flips: what a closed or killed node's files come to when one bit of them is not what was written.
//!
//! A *scene* is a node's data directory as it was left: log segments, a snapshot, an engine. For each flip a copy gets one
//! random bit of one file turned over and goes through what a node and its operator do: open, apply what the log has more,
//! verify, and (for the engine) scrub. It must be *noticed*, with the right file named; or, if nothing complains, *without
//! effect*: the bit is in space that nobody uses, or of something that the log says again. That is decided by comparing:
//! every key and value of the tree, history, clients' results, sequences and checkpoints included, must be what they are
//! without the flip (of a log: the hash chain up to the last entry). Anything else is *missed*.
//!
//! Scenes: `closed`, after a clean close, when the engine is sealed and the log must be whole to its end; `killed`, when
//! the engine has no seal and the end of the log may be an interrupted write, and what the engine lost is applied again.
//! Damage of what was written last in a killed node's log cannot be told from an interrupted write; such flips are counted
//! apart (`torn`): the open says that it cut the tail.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_core::disk::RealDisk;
use quorate_core::engine::sled::{SledEngine, trust};
use quorate_core::engine::{Engine, KeyRange, Tree};
use quorate_core::entry::{self, Body, Entry, Transaction};
use quorate_core::error::Fatal;
use quorate_core::keys::Key;
use quorate_core::log::segment::{SegmentLog, open_read_only};
use quorate_core::log::{BaseRecord, HardState, Log, LogEntry, LogReader, LogRecord, Membership};
use quorate_core::machine::{Machine, Scrub};
use quorate_core::snapshot::file::{Writer, verify as verify_snapshot};
use quorate_core::verify::{ChainWalk, TreeWalk};
use quorate_shared::ids::{
    ClientId, Epoch, Hash, Index, IndexId, ReplicaId, ShardId, TableId, Term, Timestamp, WriteId,
};

const S1: ShardId = ShardId::DATA;
const R: ReplicaId = ReplicaId::new(1);
const BOOT: &str = "boot";
const CACHE: u64 = 16 << 20;
const SEGMENT: u64 = 256 << 10;
const ENTRIES: u64 = 1500;

/// What kind of file a flip is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    Log,
    Snapshot,
    Engine,
}

/// What came of a flip.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seen {
    /// Opening noticed it.
    Open,
    /// Verifying did.
    Verify,
    /// The scrub did.
    Scrub,
    /// The end of a killed node's log was cut, and the open said so.
    Torn,
    /// Nothing complained, and everything read is what was written.
    NoEffect,
    /// Nothing complained, and something is not what was written.
    Missed,
}

/// How often each was seen.
pub type Tally = BTreeMap<(&'static str, Class, Seen), u64>;

/// A small generator, so that a flip has a number.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// A node's directory as it was left.
pub struct Scene {
    name: &'static str,
    closed: bool,
    dir: tempfile::TempDir,
    files: BTreeMap<Class, Vec<PathBuf>>,
    /// Everything in the tree, as it must be once the log is applied.
    truth: Vec<(Bytes, Bytes)>,
    /// The engine had applied so much when it was last flushed.
    flushed: Index,
}

fn base() -> BaseRecord {
    BaseRecord::founding(S1, Membership::default(), Epoch { number: 1, id: 2 })
}

fn entries() -> Vec<LogEntry> {
    let mut random = Random(7);
    let mut chain = base().chain;
    let mut out = Vec::new();
    for i in 1..=ENTRIES {
        let columns = Bytes::from((random.below(400)).to_be_bytes().to_vec());
        let key = Key::Data { storage: TableId::new(7), index: IndexId::PRIMARY, columns }.encode();
        // Some are large: the engine cuts them into chunks.
        let size = if random.below(40) == 0 { 9_000 } else { 20 + random.below(300) };
        let row =
            (random.below(8) != 0).then(|| Bytes::from((0..size).map(|_| random.next() as u8).collect::<Vec<_>>()));
        // Clients' results and sequences are in no digest.
        let client = (i % 3 == 0).then_some(WriteId { client: ClientId([(i % 7) as u8; 16]), seq: i });
        let sequences = if i % 50 == 0 { vec![(TableId::new(7), i as i64)] } else { Vec::new() };
        let t = Transaction { write: client, writes: vec![(key, row)], sequences, ..Transaction::default() };
        let body = Body::Write(vec![t]);
        let e = Entry { index: Index::new(i), previous: chain, timestamp: Timestamp::new(i, 0), body };
        let e = e.logged(Term::new(1));
        chain = entry::chain(chain, &e);
        out.push(e);
    }
    out
}

fn dump(tree: &dyn Tree) -> Result<Vec<(Bytes, Bytes)>, Fatal> {
    tree.scan(&KeyRange { start: Bytes::new(), end: None }, false).collect()
}

fn tree_name() -> String {
    format!("{S1}-{R}")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &target)
        } else {
            fs::copy(item.path(), target).map(|_| ()).unwrap()
        }
    }
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for item in fs::read_dir(dir).unwrap().flatten() {
        if item.path().is_dir() { walk(&item.path(), out) } else { out.push(item.path()) }
    }
}

/// Scratch space, in memory where the system has that.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Scene {
    /// Makes one.
    pub fn new(closed: bool) -> Self {
        let work = scratch();
        let data = work.path().join("data");
        let entries = entries();
        let (mut log, _, _) = SegmentLog::open_on(RealDisk::shared(), &data.join("log"), SEGMENT).unwrap();
        log.append(R, S1, &[LogRecord::Base(base())]).unwrap();
        for group in entries.chunks(10) {
            let commit = group.last().unwrap().index;
            let hard = HardState { term: Term::new(1), vote: R, commit };
            log.append(R, S1, &[LogRecord::Entries(group.to_vec()), LogRecord::Hard(hard)]).unwrap();
            log.sync().unwrap();
        }
        let opened = trust::open_trusted(&data, BOOT, CACHE).unwrap();
        let tree = opened.engine.tree(&tree_name()).unwrap();
        let mut machine = Machine::open(tree.clone(), &base()).unwrap();
        let half = entries.len() / 2;
        machine.apply(&entries[..half]).unwrap();
        opened.engine.flush().unwrap();
        machine.apply(&entries[half..]).unwrap();
        let truth = dump(&*tree).unwrap();
        let source = machine.snapshot();
        Writer::begin(RealDisk::shared(), &data.join("snapshots"), source).unwrap().finish().unwrap();
        let dir = scratch();
        let flushed = if closed { ENTRIES } else { half as u64 };
        if closed {
            drop((machine, tree));
            trust::close(&data, BOOT, opened.engine).unwrap();
            copy(&data, dir.path());
        } else {
            // As the files are when the process is killed now.
            copy(&data, dir.path());
        }
        let mut files = BTreeMap::new();
        for (class, name) in [(Class::Log, "log"), (Class::Snapshot, "snapshots"), (Class::Engine, "engine")] {
            let mut found = Vec::new();
            walk(&dir.path().join(name), &mut found);
            let names = found.into_iter().filter(|f| fs::metadata(f).unwrap().len() > 0);
            let names = names.map(|f| f.strip_prefix(dir.path()).unwrap().to_owned());
            files.insert(class, names.collect());
        }
        let name = if closed { "closed" } else { "killed" };
        let scene = Self { name, closed, dir, files, truth, flushed: Index::new(flushed) };
        for class in [Class::Log, Class::Snapshot, Class::Engine] {
            let whole = scratch();
            copy(scene.dir.path(), whole.path());
            assert_eq!(scene.look(whole.path(), class, &PathBuf::new()).0, Seen::NoEffect, "{name} {class:?}, no flip");
        }
        scene
    }

    /// Flips one bit and looks what comes of it; what was said.
    pub fn flip(&self, random: &mut Random) -> (Class, Seen, String) {
        let class = [Class::Log, Class::Snapshot, Class::Engine][random.below(3) as usize];
        let files = &self.files[&class];
        // Every byte of the class is as likely.
        let lens: Vec<u64> = files.iter().map(|f| fs::metadata(self.dir.path().join(f)).unwrap().len()).collect();
        let mut at = random.below(lens.iter().sum());
        let file = lens.iter().position(|len| {
            let here = at < *len;
            at -= if here { 0 } else { *len };
            here
        });
        let file = &files[file.unwrap()];
        let bit = random.below(8);
        let work = scratch();
        copy(self.dir.path(), work.path());
        let path = work.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at as usize] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let (seen, said) = self.look(work.path(), class, file);
        (class, seen, format!("{} {} byte {at} bit {bit}: {seen:?}: {said}", self.name, file.display()))
    }

    fn look(&self, data: &Path, class: Class, file: &Path) -> (Seen, String) {
        match class {
            Class::Log => self.look_at_log(data, file),
            Class::Snapshot => self.look_at_snapshot(data),
            Class::Engine => {
                let look = catch_unwind(AssertUnwindSafe(|| self.look_at_engine(data)));
                look.unwrap_or_else(|_| (Seen::Open, "the engine panicked".into()))
            }
        }
    }

    fn look_at_log(&self, data: &Path, file: &Path) -> (Seen, String) {
        let log = data.join("log");
        let named = |segment: u64| file == Path::new("log").join(format!("{segment:010}.seg")) || file == Path::new("");
        // Read-only first: opening moves damaged files aside.
        let verified = open_read_only(&log, |_| {});
        let (_, reader, report) = match SegmentLog::open_on(RealDisk::shared(), &log, SEGMENT) {
            Ok(opened) => opened,
            Err(fatal) => return (Seen::Open, fatal.to_string()),
        };
        if let Some(lost) = report.lost {
            return (Seen::Open, lost.reason);
        }
        if let Some(torn) = report.torn {
            assert!(named(torn.segment), "another file was named");
            // A node that was closed cleanly cannot have been interrupted, so there it is damage.
            return (if self.closed { Seen::Open } else { Seen::Torn }, format!("{torn:?}"));
        }
        drop(reader);
        match verified {
            Err(fatal) => (Seen::Verify, fatal.to_string()),
            Ok((_, found)) if found.damage.is_some() => (Seen::Verify, found.damage.unwrap_or_default()),
            Ok((_, found)) if !found.stray.is_empty() => {
                assert!(named(found.stray[0].0), "another file was named");
                (Seen::Verify, format!("stray bytes {:?}", found.stray))
            }
            Ok((reader, _)) => match self.log_equals(&reader) {
                true => (Seen::NoEffect, String::new()),
                false => (Seen::Missed, String::new()),
            },
        }
    }

    fn log_equals(&self, reader: &dyn LogReader) -> bool {
        let Some(walk) = ChainWalk::new(reader, S1, vec![]) else { return false };
        let Ok((proof, damage)) = walk.run() else { return false };
        let last = entries().iter().fold(base().chain, entry::chain);
        damage.is_empty() && proof.last == Index::new(ENTRIES) && proof.chain == last
    }

    fn look_at_snapshot(&self, data: &Path) -> (Seen, String) {
        for path in fs::read_dir(data.join("snapshots")).unwrap().flatten().map(|item| item.path()) {
            if let Err(fatal) = verify_snapshot(&RealDisk, &path) {
                return (Seen::Verify, fatal.to_string());
            }
        }
        (Seen::NoEffect, String::new())
    }

    fn look_at_engine(&self, data: &Path) -> (Seen, String) {
        let sealed = trust::check_seal(data);
        let opened = match trust::open_trusted(data, BOOT, CACHE) {
            Ok(opened) => opened,
            Err(fatal) => return (Seen::Open, fatal.to_string()),
        };
        if let Some(why) = opened.rebuilt {
            return (Seen::Open, why);
        }
        assert!(sealed.is_empty(), "the seal is checked at open");
        match self.content(&opened.engine) {
            Err((seen, why)) => (seen, why),
            Ok(content) if content == self.truth => (Seen::NoEffect, String::new()),
            Ok(content) => (Seen::Missed, self.differs(&content)),
        }
    }

    /// By the first byte of the keys, how many are missing or other, and how many there are too many.
    fn differs(&self, content: &[(Bytes, Bytes)]) -> String {
        let kinds = |of: &[(Bytes, Bytes)], without: &[(Bytes, Bytes)]| {
            let mut kinds: BTreeMap<u8, usize> = BTreeMap::new();
            let without: std::collections::BTreeSet<_> = without.iter().collect();
            of.iter().filter(|item| !without.contains(item)).for_each(|(k, _)| *kinds.entry(k[0]).or_default() += 1);
            kinds
        };
        format!("lacks {:?}, has {:?}", kinds(&self.truth, content), kinds(content, &self.truth))
    }

    /// What is in the engine once the log is applied; or who noticed that it is damaged.
    fn content(&self, engine: &SledEngine) -> Result<Vec<(Bytes, Bytes)>, (Seen, String)> {
        let open = |fatal: Fatal| (Seen::Open, fatal.to_string());
        let tree = engine.tree(&tree_name()).map_err(open)?;
        let mut machine = Machine::open(tree.clone(), &base()).map_err(open)?;
        let index = machine.state().index;
        if index < self.flushed {
            return Err((Seen::Open, format!("at entry {index}, behind its checkpoint at {}", self.flushed)));
        }
        let entries = entries();
        let chain = |upto: u64| entries.iter().take(upto as usize).fold(base().chain, entry::chain);
        if index.get() > ENTRIES || machine.state().chain != chain(index.get()) {
            return Err((Seen::Open, format!("another hash at entry {index} than the log")));
        }
        machine.apply(&entries[index.get() as usize..]).map_err(open)?;
        let scrub = |fatal: Fatal| (Seen::Scrub, fatal.to_string());
        let mut scrubbing = Scrub::of_tree(tree.clone()).map_err(scrub)?;
        let wrong = loop {
            if let Some(wrong) = scrubbing.step(1000).map_err(scrub)? {
                break wrong;
            }
        };
        if !wrong.is_empty() {
            return Err((Seen::Scrub, format!("the rows of {wrong:?} are not what was applied")));
        }
        let verify = |fatal: Fatal| (Seen::Verify, fatal.to_string());
        let (_, _, damage) = TreeWalk::new(tree.clone(), &base()).and_then(TreeWalk::run).map_err(verify)?;
        if let Some(damage) = damage.first() {
            return Err((Seen::Verify, damage.what.clone()));
        }
        dump(&*tree).map_err(verify)
    }
}

/// The hash of nothing, for whoever wants to know that the suite is the one it was.
pub fn fingerprint() -> Hash {
    entries().iter().fold(base().chain, entry::chain)
}

/// Flips `count` bits in both scenes, in turn; every flip's number is its seed. `each` hears what was said.
pub fn run(numbers: std::ops::Range<u64>, mut each: impl FnMut(u64, Seen, &str)) -> Tally {
    let scenes = [Scene::new(true), Scene::new(false)];
    let mut tally = Tally::new();
    for number in numbers {
        let scene = &scenes[(number % 2) as usize];
        let (class, seen, said) = scene.flip(&mut Random(number.wrapping_mul(0x1234_5678_9abc_def1)));
        each(number, seen, &said);
        *tally.entry((scene.name, class, seen)).or_default() += 1;
    }
    tally
}
