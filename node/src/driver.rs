//! The driver: the threads that run this node's shards.
//!
//! One *core* thread steps every shard: it takes everything that has arrived, steps, flushes once per shard, then hands
//! out the effects. One *log writer* appends what all shards want durable and syncs it together. One *applier* puts
//! committed entries into the engine and publishes how far it is; one *flusher* moves what is written behind into sled. Between them are queues that are emptied in one go.
//!
//! Invariants: persists are executed in order and reported when durable; entries are applied in order; nothing blocks the
//! core thread; a shard that fails stops by name and the others go on; a failing log or engine stops all of them.
//!
//! Left out: more than one core thread.

mod applier;
mod core;
pub mod flusher;
mod queue;
pub mod view;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_core::catalog::Catalog;
use quorate_core::error::{Fatal, Rejected};
use quorate_core::log::{BaseRecord, Log};
use quorate_core::machine::{Applied, Machine};
use quorate_core::membership::{Membership, MembershipChange, Refused};
use quorate_core::proposal::{Proposal, WriteResult};
use quorate_core::replica::{Now, PersistId};
use quorate_core::shard::{Input, Shard, View};
use quorate_core::ship::follow::{BadBatch, Follower};
use quorate_core::ship::{Pull, ShipBatch, ShipProgress};
use quorate_core::snapshot::file::Stored;
use quorate_core::snapshot::source::SnapshotSource;
use quorate_shared::ids::{Index, ReplicaId, ShardId};
use quorate_shared::status::ShardStatus;
use tokio::sync::watch;

pub(crate) use self::applier::{guarded, replay};
use self::flusher::Flusher;
use self::queue::Queue;
use self::view::ShardView;

/// Peer messages waiting for the core thread, beyond which they are dropped (the protocol repeats them).
const INBOX_MAX: usize = 32_768;

/// The node's clocks: one that only grows, for deadlines, and the wall's, for timestamps.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at 0.
    pub fn start() -> Self {
        Self(Instant::now())
    }
    /// Milliseconds since the start.
    pub fn now(self) -> Now {
        self.0.elapsed().as_millis() as Now
    }
    /// The instant of a reading.
    pub fn instant(self, now: Now) -> Instant {
        self.0 + Duration::from_millis(now)
    }
    /// The reading of an instant.
    pub fn at(self, instant: Instant) -> Now {
        instant.saturating_duration_since(self.0).as_millis() as Now
    }
    /// Milliseconds since 1970.
    pub fn wall() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// Gets the answer to a proposal; runs on the core thread and must not block.
pub type OnWritten = Box<dyn FnOnce(Result<WriteResult, Rejected>) + Send>;
/// Gets the index to wait for before reading.
pub type OnIndex = Box<dyn FnOnce(Result<Index, Rejected>) + Send>;
/// Gets the membership after a change, or why there is none.
pub type OnChanged = Box<dyn FnOnce(Result<Membership, Refused>) + Send>;
/// Gets a shard's state.
pub type OnStatus = Box<dyn FnOnce(Option<(View, ShardStatus)>) + Send>;

/// Gets why a shipped batch was not taken; is not called when it was.
pub type OnRefused = Box<dyn FnOnce(BadBatch) + Send>;
/// Gets where a stream is to begin; `None`: the shard has no follower here.
pub type OnPull = Box<dyn FnOnce(Option<Pull>) + Send>;

/// Gets a snapshot of what is applied; `None`: the shard is not here. Runs on the applier's thread and must not block.
pub type OnSnapshot = Box<dyn FnOnce(Option<SnapshotSource>) + Send>;
/// Is called when the log begins at the new base; dropped uncalled if it cannot.
pub type OnTrimmed = Box<dyn FnOnce() + Send>;

/// What can reach the core thread.
pub(crate) enum Event {
    /// For a voter's shard.
    Input(ShardId, Input),
    /// Write this.
    Propose { shard: ShardId, proposal: Box<Proposal>, deadline: Now, done: OnWritten },
    /// Change who takes part.
    Change { shard: ShardId, change: MembershipChange, done: OnChanged },
    /// Which index to wait for.
    Read { shard: ShardId, deadline: Now, done: OnIndex },
    /// Everything up to this id is durable.
    Persisted(ShardId, PersistId),
    /// Entries are in the engine.
    Applied(ShardId, Applied),
    /// Committed entries shipped to a replica.
    Shipped { batch: ShipBatch, refused: OnRefused },
    /// Where a replica's stream is to begin.
    Pull(ShardId, OnPull),
    /// The shard's state is wanted.
    Status(ShardId, OnStatus),
    /// A synced snapshot allows the shard's log to begin here.
    Trim(BaseRecord, OnTrimmed),
    /// A shard cannot go on; `None`: none of them can.
    Stop(Option<ShardId>, String),
}

/// A replica as the core thread runs it.
pub enum Part {
    /// Takes part in consensus.
    Voter(Box<Shard>),
    /// Only receives.
    Follower(Box<Follower>),
}

/// A shard's replica, opened.
pub struct OpenShard {
    /// What the rest of the node sees.
    pub view: Arc<ShardView>,
    /// Its machine.
    pub machine: Machine,
    /// How it takes part.
    pub part: Part,
}

/// Where messages of shards go.
pub trait Outgoing: Send + Sync + 'static {
    /// Puts a protocol message on the wire, or drops it.
    fn send(&self, shard: ShardId, from: ReplicaId, to: ReplicaId, message: bytes::Bytes);
    /// Bytes free on the disk, if that can be told.
    fn free_bytes(&self) -> Option<u64>;
    /// What was sent since the last time may go out now.
    fn flush(&self);
    /// How far a log-shipped replica is; for the server of its stream.
    fn progress(&self, progress: ShipProgress);
    /// A test wants this part to hang.
    fn held(&self, _part: Held) -> bool {
        false
    }
    /// A voter is behind what its leader's log still has.
    fn needs_snapshot(&self, shard: ShardId);
    /// An engine or a log has failed: the node has to be started again.
    fn failed(&self, what: Failure, why: &str);
}

/// A part of the driver that a test can hang.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Nothing is applied.
    Applier,
    /// The disk does not finish a write of the log.
    Log,
}

/// How often a part that hangs looks whether it still does.
const HELD_PAUSE: Duration = Duration::from_millis(10);

/// What has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The log cannot be written.
    Log,
    /// The log's disk is full.
    DiskFull,
    /// The engine's disk is full; it is rebuilt when there is room.
    EngineFull,
    /// The node has to begin again, in place.
    Restart,
    /// The engine; it is rebuilt at the next start.
    Engine,
    /// One shard's replica.
    Shard(ShardId),
}

/// What the threads share.
pub(crate) struct Shared {
    pub clock: Clock,
    pub inbox: Queue<Event>,
    pub writes: Queue<writer::Work>,
    pub applies: Queue<applier::Work>,
    pub views: BTreeMap<ShardId, Arc<ShardView>>,
    pub outgoing: Arc<dyn Outgoing>,
    /// When the log's write in progress began, plus one; 0: none is.
    pub sync_since: AtomicU64,
    pub catalog: RwLock<Arc<Catalog>>,
    pub catalog_version: watch::Sender<u64>,
    pub dropped: AtomicU64,
}

impl Shared {
    /// Hangs as long as a test wants it, and the node is not stopping.
    pub(crate) fn hold(&self, part: Held, stopping: impl Fn() -> bool) {
        while self.outgoing.held(part) && !stopping() {
            std::thread::sleep(HELD_PAUSE);
        }
    }

    pub(crate) fn set_catalog(&self, catalog: Catalog) {
        let version = catalog.version.get();
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        self.catalog_version.send_replace(version);
    }
}

/// The running threads. See the module.
pub struct Driver {
    shared: Arc<Shared>,
    flusher: Arc<Flusher>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Driver {
    /// Starts the threads.
    pub fn start(
        clock: Clock,
        shards: Vec<OpenShard>,
        log: Box<dyn Log>,
        catalog: Catalog,
        outgoing: Arc<dyn Outgoing>,
        flusher: Arc<Flusher>,
    ) -> Result<Self, Fatal> {
        let views = shards.iter().map(|s| (s.view.shard, s.view.clone())).collect();
        let shared = Arc::new(Shared {
            clock,
            inbox: Queue::default(),
            writes: Queue::default(),
            applies: Queue::default(),
            views,
            outgoing,
            sync_since: AtomicU64::new(0),
            catalog_version: watch::Sender::new(catalog.version.get()),
            catalog: RwLock::new(Arc::new(catalog)),
            dropped: AtomicU64::new(0),
        });
        let (mut parts, mut machines) = (BTreeMap::new(), BTreeMap::new());
        for OpenShard { view, machine, part } in shards {
            machines.insert(view.shard, machine);
            parts.insert(view.shard, part);
        }
        let core = self::core::Core::new(shared.clone(), parts);
        let writer = writer::Writer::new(shared.clone(), log);
        let applier = applier::Applier::new(shared.clone(), machines);
        let threads = vec![
            spawn("core", move || core.run())?,
            spawn("log", move || writer.run())?,
            spawn("apply", move || applier.run())?,
            spawn("flush", {
                let (shared, flusher) = (shared.clone(), flusher.clone());
                move || flusher.run(&shared)
            })?,
        ];
        Ok(Self { shared, flusher, threads: Mutex::new(threads) })
    }

    /// The clock deadlines are on.
    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// A shard of this node.
    pub fn view(&self, shard: ShardId) -> Option<&Arc<ShardView>> {
        self.shared.views.get(&shard)
    }

    /// All shards of this node.
    pub fn views(&self) -> impl Iterator<Item = &Arc<ShardView>> {
        self.shared.views.values()
    }

    /// The catalog as applied here.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.shared.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever the catalog's version does.
    pub fn catalog_versions(&self) -> watch::Receiver<u64> {
        self.shared.catalog_version.subscribe()
    }

    /// Proposes to a shard this node may lead.
    pub fn propose(&self, shard: ShardId, proposal: Box<Proposal>, deadline: Instant, done: OnWritten) {
        let deadline = self.shared.clock.at(deadline);
        self.push_bounded(Event::Propose { shard, proposal, deadline, done });
    }

    /// Asks a shard this node may lead which index to wait for.
    pub fn read(&self, shard: ShardId, deadline: Instant, done: OnIndex) {
        let deadline = self.shared.clock.at(deadline);
        self.push_bounded(Event::Read { shard, deadline, done });
    }

    /// Asks a shard this node may lead to change its membership.
    pub fn change(&self, shard: ShardId, change: MembershipChange, done: OnChanged) {
        self.shared.inbox.push(Event::Change { shard, change, done });
    }

    fn push_bounded(&self, event: Event) {
        match self.shared.inbox.try_push(event, INBOX_MAX) {
            Ok(()) => {}
            Err(Event::Propose { done, .. }) => done(Err(Rejected::Busy)),
            Err(Event::Read { done, .. }) => done(Err(Rejected::Busy)),
            Err(_) => {}
        }
    }

    /// Messages of peers.
    pub fn receive(&self, messages: Vec<(ShardId, Input)>) {
        if self.shared.inbox.len() >= INBOX_MAX {
            self.shared.dropped.fetch_add(messages.len() as u64, Ordering::Relaxed);
            return;
        }
        self.shared.inbox.push_all(messages.into_iter().map(|(shard, input)| Event::Input(shard, input)));
    }

    /// One input for a voter's shard.
    pub fn input(&self, shard: ShardId, input: Input) {
        self.shared.inbox.push(Event::Input(shard, input));
    }

    /// Committed entries shipped to a replica.
    pub fn shipped(&self, batch: ShipBatch, refused: OnRefused) {
        self.shared.inbox.push(Event::Shipped { batch, refused });
    }

    /// Where a replica's stream is to begin.
    pub fn pull(&self, shard: ShardId, done: OnPull) {
        self.shared.inbox.push(Event::Pull(shard, done));
    }

    /// A shard's state, unless it has stopped or the core thread hangs.
    pub fn status(&self, shard: ShardId) -> Option<(View, ShardStatus)> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        // Nobody waits any more when the channel is gone.
        let done: OnStatus = Box::new(move |status| drop(sender.send(status)));
        self.shared.inbox.push(Event::Status(shard, done));
        receiver.recv_timeout(Duration::from_millis(100)).ok().flatten()
    }

    /// Opens a snapshot of what is applied.
    pub fn snapshot(&self, shard: ShardId, done: OnSnapshot) {
        self.shared.applies.push(applier::Work::Snapshot(shard, done));
    }

    /// Lets a shard's log begin at `base`. `stored` is why it may: a durable snapshot at or behind that point.
    pub fn trim(&self, stored: &Stored, base: BaseRecord, done: OnTrimmed) {
        if base.shard == stored.head().shard() && base.index <= stored.head().index() {
            self.shared.inbox.push(Event::Trim(base, done));
        }
    }

    /// Bytes free on the disk, if that can be told.
    pub fn free_bytes(&self) -> Option<u64> {
        self.shared.outgoing.free_bytes()
    }

    /// Milliseconds the log's write in progress has taken so far.
    pub fn sync_running_ms(&self) -> u64 {
        match self.shared.sync_since.load(Ordering::Relaxed) {
            0 => 0,
            since => (self.shared.clock.now() + 1).saturating_sub(since),
        }
    }

    /// Peer messages dropped because the core thread could not keep up.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Stops one shard by name.
    pub fn stop_shard(&self, shard: ShardId, why: String) {
        self.shared.inbox.push(Event::Stop(Some(shard), why));
    }

    /// Stops the threads in order: what was accepted is written and applied first.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let queues: [&dyn Fn(); 4] =
            [&|| self.shared.inbox.close(), &|| self.shared.writes.close(), &|| self.shared.applies.close(), &|| {
                self.flusher.close()
            }];
        for (thread, close) in threads.into_iter().zip(queues) {
            close();
            if thread.join().is_err() {
                tracing::error!("a driver thread panicked");
            }
        }
        for view in self.shared.views.values() {
            view.stop("the node is stopping".into());
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fatal> {
    std::thread::Builder::new()
        .name(format!("quorate-{name}"))
        .spawn(run)
        .map_err(|e| Fatal::new(format!("start the {name} thread"), e))
}
