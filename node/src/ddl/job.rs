//! DDL jobs: what is to be done to which tables, and the task that does it on the master.
//!
//! A job is announced by the session that wants it (see [`mod@super::announce`]) and run by [`run_jobs`] on whichever node
//! leads `s0`: **announced** → *fenced* on the data shard (writers maintain, nobody reads) → filled and validated →
//! **public**, or **rolled back**. Tables that turn out to be empty go straight to their last definition. After that the
//! storages that nobody uses any more are purged in small steps.
//!
//! Invariants: each definition of a job has a schema version of its own, so the version that the shard has tells which
//! step was last: every step may be repeated by another master; descriptors are written with their old bytes as
//! precondition. Jobs on different tables run side by side.
//! Left out: removing the entries of a dropped index (its id is never used again; they go with the table).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_core::catalog::{Catalog, Descriptor, JobDesc, TableDesc};
use quorate_core::engine::KeyRange;
use quorate_core::error::Rejected;
use quorate_core::keys;
use quorate_core::mvcc::Snapshot;
use quorate_core::proposal::{Op, Proposal, ReadCheck, WriteResult};
use quorate_core::table::TableDef;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{DatabaseId, IndexId, SchemaVersion, ShardId, TableId, WriteId};
use quorate_shared::value::Value;
use quorate_shared::wire::ReadLevel;
use serde::{Deserialize, Serialize};

use crate::router::{ProposeError, Router};
use crate::sql::reject;

/// Just announced.
pub const ANNOUNCED: &str = "announced";
/// The shard maintains the new definition; old rows are being filled in or validated.
pub const FENCED: &str = "fenced";
/// Done.
pub const PUBLIC: &str = "public";
/// Undone; the job has the error.
pub const ROLLED_BACK: &str = "rolled back";

/// Rows that are filled or validated in one proposal.
const BATCH_ROWS: usize = 500;
/// Keys that are purged in one proposal: other writes wait behind it.
const PURGE_KEYS: u32 = 500;
/// Reads that began before a table was dropped may go on for so long before its rows go.
const PURGE_AFTER: Duration = Duration::from_secs(60);
/// How long one step waits for its shard.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a step that failed for reasons that pass.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What a job does.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Work {
    /// The statement's id: a retry finds its job by it.
    pub write: Option<WriteId>,
    /// For people: `CREATE TABLE x`.
    pub what: String,
    /// What becomes of tables; fenced all in one entry.
    pub changes: Vec<Change>,
    /// Tables that must not change meanwhile, beside those that are changed (parents of new foreign keys).
    pub uses: Vec<TableId>,
    /// Views that go.
    pub views: Vec<TableId>,
    /// The database that goes.
    pub database: Option<DatabaseId>,
    /// Storages to purge once the job is public.
    pub purge: Vec<TableId>,
    /// The tables' numbers start again at 1 (TRUNCATE ... RESTART IDENTITY).
    pub restart: bool,
}

/// What becomes of one table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The table.
    pub table: TableId,
    /// Where its rows live.
    pub shard: ShardId,
    /// What the shard has before; `None`: the table is new.
    pub before: Option<TableDef>,
    /// Taken at once if the table has no rows.
    pub if_empty: Option<TableDef>,
    /// The definition for tables with rows; `None`: the table goes.
    pub fenced: Option<TableDef>,
    /// The table must have no rows, else this is why the job is rolled back.
    pub not_empty: Option<WireError>,
    /// What follows when old rows must be filled in or validated first.
    pub fill: Option<Fill>,
}

/// How old rows are taken into a new definition.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// Index entries must be written.
    pub backfill: bool,
    /// Constraints to validate by name; for NOT NULL the column's name.
    pub validate: Vec<String>,
    /// The definition after that.
    pub public: TableDef,
    /// The definition if a row does not fit.
    pub rolled_back: TableDef,
}

impl Work {
    /// Its stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Serializing plain data into memory cannot fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From stored bytes; `None` if a newer version wrote them.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// Whether it touches a table.
    pub fn touches(&self, table: TableId) -> bool {
        self.uses.contains(&table) || self.changes.iter().any(|c| c.table == table)
    }
}

/// Whether a job still has to reach its end; what it purges after that does not count.
pub fn is_running(job: &JobDesc) -> bool {
    job.state != PUBLIC && job.state != ROLLED_BACK
}

/// Runs jobs for ever, whenever this node is the master. The node spawns it once and aborts it when it stops.
pub async fn run_jobs(router: Arc<dyn Router>) {
    let running: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let mut first = true;
    loop {
        if router.is_master() {
            let catalog = router.catalog();
            if catalog.counters.is_none() {
                super::found(&router).await;
            }
            for (id, job) in &catalog.jobs {
                let purges = job.state == PUBLIC && Work::decode(&job.work).is_some_and(|w| !w.purge.is_empty());
                if (is_running(job) || purges) && lock(&running).insert(*id) {
                    let (router, running, id) = (Arc::clone(&router), Arc::clone(&running), *id);
                    tokio::spawn(async move {
                        run_job(&router, id).await;
                        lock(&running).remove(&id);
                    });
                }
            }
        }
        // Woken by any change of the catalog, and now and then for a change of master.
        let version = router.catalog().version.next();
        let pause = if first { Duration::from_millis(50) } else { Duration::from_millis(500) };
        first = !router.is_master();
        let woken = router.catalog_at_least(version, Instant::now() + pause).await;
        if woken.is_err() {
            // A router that fails at once must not make this loop spin.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one job until it is finished or this node is no longer the master.
async fn run_job(router: &Arc<dyn Router>, id: u64) {
    while router.is_master() {
        let catalog = router.catalog();
        let Some(job) = catalog.jobs.get(&id) else { return };
        let Some(work) = Work::decode(&job.work) else {
            tracing::error!(job = id, "a DDL job was written by a newer version");
            return;
        };
        let runner = Runner { router, catalog: &catalog, job, work };
        let stepped = match job.state.as_str() {
            ANNOUNCED => runner.fence().await,
            FENCED => runner.fill().await,
            PUBLIC if !runner.work.purge.is_empty() => runner.purge().await,
            _ => return,
        };
        if let Err(error) = stepped {
            tracing::debug!(job = id, %error, "a step of a DDL job is tried again");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

struct Runner<'a> {
    router: &'a Arc<dyn Router>,
    catalog: &'a Catalog,
    job: &'a JobDesc,
    work: Work,
}

/// Where the shard is with a job.
enum Reached {
    /// At the definitions of this step.
    Now(Vec<Option<TableDef>>),
    /// The fence is refused for good.
    Refused(WireError),
}

impl Runner<'_> {
    /// Announced → public for tables without rows and for what needs no filling; else fenced.
    async fn fence(&self) -> Result<(), WireError> {
        let empties = self.work.changes.iter().any(|c| c.if_empty.is_some());
        if empties && let Some(defs) = self.fence_empty().await? {
            return self.publish(PUBLIC, defs, None).await;
        }
        if let Some(error) = self.work.changes.iter().find_map(|c| c.not_empty.clone()) {
            return self.undo_announced(error).await;
        }
        match self.propose_fence(|c| c.fenced.clone(), |c| c.before.as_ref().map(|d| d.version), Vec::new()).await? {
            Reached::Now(defs) => {
                let state = if self.work.changes.iter().any(|c| c.fill.is_some()) { FENCED } else { PUBLIC };
                self.publish(state, defs, None).await
            }
            Reached::Refused(error) => self.undo_announced(error).await,
        }
    }

    /// Tries to go straight to the last definitions; `None` if a table has rows.
    async fn fence_empty(&self) -> Result<Option<Vec<Option<TableDef>>>, WireError> {
        let mut reads = Vec::new();
        for change in self.work.changes.iter().filter(|c| c.if_empty.is_some()) {
            let (Some(before), Some(empty)) = (&change.before, &change.if_empty) else { continue };
            let point = self.router.read(change.shard, &ReadLevel::Linearizable, deadline()).await?;
            // A master before us may have come to the point of fencing it.
            if current_version(&point.snapshot, change.table)? == Some(empty.version) {
                continue;
            }
            let range = keys::index_range(before.storage, IndexId::PRIMARY);
            if point.snapshot.scan(&range, false).next().transpose().map_err(|e| reject::read_error(&e))?.is_some() {
                return Ok(None);
            }
            reads.push(check(range, &point.snapshot));
        }
        let target = |c: &Change| c.if_empty.clone().or_else(|| c.fenced.clone());
        match self.propose_fence(target, |c| c.before.as_ref().map(|d| d.version), reads).await {
            Ok(Reached::Now(defs)) => Ok(Some(defs)),
            // A row came meanwhile, or another step was reached: the long way finds out.
            Ok(Reached::Refused(_)) => Ok(None),
            Err(error) if error.code == Code::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fences all tables in one entry, or finds that it has been done.
    async fn propose_fence(
        &self,
        target: impl Fn(&Change) -> Option<TableDef>,
        expect: impl Fn(&Change) -> Option<SchemaVersion>,
        reads: Vec<ReadCheck>,
    ) -> Result<Reached, WireError> {
        let defs: Vec<Option<TableDef>> = self.work.changes.iter().map(&target).collect();
        let mut ops: Vec<Op> = self
            .work
            .changes
            .iter()
            .zip(&defs)
            .map(|(c, def)| Op::Fence { table: c.table, expect: expect(c), def: def.clone().map(Box::new) })
            .collect();
        if self.work.restart {
            let old = self.work.changes.iter().filter_map(|c| c.before.as_ref());
            ops.extend(old.map(|def| Op::Restart { table: def.id, expect: def.version }));
        }
        let Some(shard) = self.work.changes.first().map(|c| c.shard) else { return Ok(Reached::Now(defs)) };
        match self.propose(shard, ops, reads).await {
            Ok(_) => Ok(Reached::Now(defs)),
            Err(ProposeError::Rejected(Rejected::StaleCatalog { table, current })) => {
                let at = self.work.changes.iter().position(|c| c.table == table);
                let wanted = at.and_then(|at| defs[at].as_ref()).map(|d| d.version);
                if at.is_some() && wanted == current {
                    return Ok(Reached::Now(defs));
                }
                Ok(Reached::Refused(
                    WireError::new(Code::Internal, "the shard has another definition than the catalog")
                        .detail(format!("table {table}: {current:?}")),
                ))
            }
            Err(ProposeError::Rejected(Rejected::Conflict)) => Err(reject::wire_error(Rejected::Conflict)),
            Err(ProposeError::Rejected(rejected)) if is_final(&rejected) => {
                Ok(Reached::Refused(reject::wire_error(rejected)))
            }
            Err(error) => Err(reject::propose_error(error)),
        }
    }

    /// Fenced → public or rolled back.
    async fn fill(&self) -> Result<(), WireError> {
        let mut failed = None;
        for change in &self.work.changes {
            if let (Some(fill), Some(fenced)) = (&change.fill, &change.fenced)
                && failed.is_none()
            {
                failed = self.fill_table(change, fenced, fill).await?;
            }
        }
        let undone = failed.is_some();
        let target = |c: &Change| match &c.fill {
            Some(fill) if undone => Some(fill.rolled_back.clone()),
            Some(fill) => Some(fill.public.clone()),
            None => c.fenced.clone(),
        };
        // Only the tables that were filled have a next definition.
        let ops: Vec<(Option<TableDef>, Op)> = self
            .work
            .changes
            .iter()
            .filter(|c| c.fill.is_some())
            .map(|c| {
                let def = target(c);
                let expect = c.fenced.as_ref().map(|d| d.version);
                (def.clone(), Op::Fence { table: c.table, expect, def: def.map(Box::new) })
            })
            .collect();
        let shard = self.work.changes.first().map_or(ShardId::DATA, |c| c.shard);
        let last = ops.first().and_then(|(def, _)| def.as_ref()).map(|d| d.version);
        match self.propose(shard, ops.into_iter().map(|(_, op)| op).collect(), Vec::new()).await {
            Ok(_) => {}
            Err(ProposeError::Rejected(Rejected::StaleCatalog { current, .. })) if current == last => {}
            Err(error) => return Err(reject::propose_error(error)),
        }
        let defs = self.work.changes.iter().map(target).collect();
        self.publish(if undone { ROLLED_BACK } else { PUBLIC }, defs, failed).await
    }

    /// Fills and validates one table's rows; gives the reason if one does not fit.
    async fn fill_table(
        &self,
        change: &Change,
        fenced: &TableDef,
        fill: &Fill,
    ) -> Result<Option<WireError>, WireError> {
        let point = self.router.read(change.shard, &ReadLevel::Linearizable, deadline()).await?;
        match current_version(&point.snapshot, change.table)? {
            Some(version) if version == fenced.version => {}
            Some(version) if version == fill.public.version => return Ok(None),
            // Rolled back by a master before us; only the reason is lost.
            Some(version) if version == fill.rolled_back.version => {
                return Ok(Some(WireError::sql("40000", "existing rows do not fit; the change was rolled back")));
            }
            _ => return Err(WireError::new(Code::Retry, "the shard is not fenced yet")),
        }
        let mut from = keys::index_range(fenced.storage, IndexId::PRIMARY);
        loop {
            let (batch, next) = self.batch(&point.snapshot, fenced, from).await?;
            if batch.is_empty() {
                return Ok(None);
            }
            let mut ops = Vec::new();
            if fill.backfill {
                ops.push(Op::Backfill { table: change.table, keys: batch.clone() });
            }
            for constraint in &fill.validate {
                ops.push(Op::Validate { table: change.table, keys: batch.clone(), constraint: constraint.clone() });
            }
            match self.propose(change.shard, ops, Vec::new()).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(rejected)) if is_final(&rejected) => {
                    let error = reject::wire_error(rejected);
                    return Ok(Some(error.hint("rows that are there do not fit; the change was rolled back")));
                }
                Err(error) => return Err(reject::propose_error(error)),
            }
            let Some(next) = next else { return Ok(None) };
            from = next;
        }
    }

    /// The next rows' primary keys and the range after them; read off the async threads.
    async fn batch(
        &self,
        snapshot: &Snapshot,
        def: &TableDef,
        range: KeyRange,
    ) -> Result<(Vec<Vec<Value>>, Option<KeyRange>), WireError> {
        let (snapshot, def) = (snapshot.clone(), def.clone());
        let read = move || -> Result<_, WireError> {
            let mut out = Vec::with_capacity(BATCH_ROWS);
            let mut last = None;
            for item in snapshot.scan(&range, false).take(BATCH_ROWS) {
                let (key, _) = item.map_err(|e| reject::read_error(&e))?;
                out.push(keys::decode_primary_key(&def, &key).map_err(|e| reject::read_error(&e.into()))?);
                last = Some(key);
            }
            let next = last.filter(|_| out.len() == BATCH_ROWS).map(|key| {
                let mut start = key.to_vec();
                start.push(0);
                KeyRange { start: Bytes::from(start), end: range.end.clone() }
            });
            Ok((out, next))
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| WireError::new(Code::Internal, "reading a table failed"))?
    }

    /// Nothing was fenced: new tables disappear again, the job ends with the reason.
    async fn undo_announced(&self, error: WireError) -> Result<(), WireError> {
        let defs = self.work.changes.iter().map(|c| c.before.clone()).collect();
        self.publish(ROLLED_BACK, defs, Some(error)).await
    }

    /// Writes the tables' descriptors and the job's new state in one entry of `s0`.
    async fn publish(
        &self,
        state: &str,
        defs: Vec<Option<TableDef>>,
        error: Option<WireError>,
    ) -> Result<(), WireError> {
        let mut ops = Vec::new();
        for (change, def) in self.work.changes.iter().zip(defs) {
            let Some(old) = self.catalog.table_by_id(change.table) else { continue };
            let new = def.map(|def| TableDesc { public: true, def, ..old.clone() });
            if new.as_ref() != Some(old) {
                ops.push(put(Some(old), new.as_ref()));
            }
        }
        let mut work = self.work.clone();
        if state == PUBLIC {
            for view in self.catalog.views.values().filter(|v| self.work.views.contains(&v.id)) {
                ops.push(put(Some(view), None));
            }
            if let Some(database) = self.work.database.and_then(|id| self.catalog.database_by_id(id)) {
                ops.push(put(Some(database), None));
            }
        } else if state == ROLLED_BACK {
            work.purge.clear();
        }
        let job = JobDesc {
            state: state.into(),
            // What is public or undone needs no definitions any more, only what is left to purge.
            work: if state == FENCED { work.encode() } else { Work { changes: Vec::new(), ..work }.encode() },
            error: error.map(|e| postcard::to_stdvec(&e).unwrap_or_default()),
            ..self.job.clone()
        };
        ops.push(put(Some(self.job), Some(&job)));
        self.catalog_step(ops).await
    }

    /// Removes rows that no table has any more, a bounded step at a time.
    async fn purge(&self) -> Result<(), WireError> {
        tokio::time::sleep(PURGE_AFTER).await;
        for storage in &self.work.purge {
            loop {
                let op = Op::Purge { storage: *storage, limit: PURGE_KEYS };
                let result = self.propose(ShardId::DATA, vec![op], Vec::new()).await.map_err(reject::propose_error)?;
                if result.rows == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let work = Work { purge: Vec::new(), ..self.work.clone() };
        let job = JobDesc { work: work.encode(), ..self.job.clone() };
        self.catalog_step(vec![put(Some(self.job), Some(&job))]).await
    }

    /// Changes the catalog and waits until this node has applied it.
    async fn catalog_step(&self, ops: Vec<Op>) -> Result<(), WireError> {
        match self.propose(ShardId::META, ops, Vec::new()).await {
            Ok(result) => {
                let version = quorate_shared::ids::CatalogVersion::new(result.index.get());
                self.router.catalog_at_least(version, deadline()).await.map(drop)
            }
            // Another master was faster: look again at a newer catalog.
            Err(ProposeError::Rejected(Rejected::CatalogChanged)) => {
                self.router.catalog_at_least(self.catalog.version.next(), deadline()).await.map(drop)
            }
            Err(error) => Err(reject::propose_error(error)),
        }
    }

    async fn propose(&self, shard: ShardId, ops: Vec<Op>, reads: Vec<ReadCheck>) -> Result<WriteResult, ProposeError> {
        self.router.propose(shard, Proposal { ops, reads, ..Proposal::default() }, deadline()).await
    }
}

/// A descriptor's new value, with the old one as precondition.
pub fn put<D: Descriptor>(old: Option<&D>, new: Option<&D>) -> Op {
    let key = old.or(new).map(|d| d.key().encode()).unwrap_or_default();
    Op::Put { key, expect: old.map(Descriptor::encode), value: new.map(Descriptor::encode) }
}

/// The definition version a shard has for a table, as of a snapshot.
fn current_version(snapshot: &Snapshot, table: TableId) -> Result<Option<SchemaVersion>, WireError> {
    let key = keys::Key::Table(table).encode();
    let bytes = snapshot.tree.get(&key).map_err(|e| reject::read_error(&e))?;
    let def = bytes
        .map(|b| {
            quorate_core::entry::decode_table(&b)
                .ok_or_else(|| WireError::new(Code::Internal, "a stored table definition is malformed"))
        })
        .transpose()?;
    Ok(def.map(|d| d.version))
}

fn check(range: KeyRange, snapshot: &Snapshot) -> ReadCheck {
    ReadCheck { end: range.end.unwrap_or_default(), start: range.start, seen: snapshot.timestamp }
}

fn deadline() -> Instant {
    Instant::now() + STEP_TIMEOUT
}

/// Whether a refusal is about the data or the definition, so that asking again gives the same.
fn is_final(rejected: &Rejected) -> bool {
    matches!(
        rejected,
        Rejected::Duplicate { .. }
            | Rejected::NotNull { .. }
            | Rejected::Check { .. }
            | Rejected::NoParent { .. }
            | Rejected::HasChildren { .. }
            | Rejected::Value { .. }
            | Rejected::TooLarge { .. }
    )
}
