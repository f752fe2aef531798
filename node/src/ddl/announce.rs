//! Announcing: from a planned change of the catalog to a proposal to `s0`, and the wait for its outcome.
//!
//! Every announcement takes a job number, so all of them are in one order: of two that were planned on the same catalog
//! the second is refused, and plans again. A table with an unfinished job is waited for.
//!
//! Invariants: a statement that was sent before finds the job it announced (by its write id) and waits for that one.

use std::sync::Arc;
use std::time::Instant;

use quorate_core::catalog::{Catalog, Counters, JobDesc};
use quorate_core::error::Rejected;
use quorate_core::proposal::{Op, Proposal};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, DatabaseId, Epoch, ShardId, TableId, Token, WriteId};
use quorate_shared::wire::{Done, Notice};

use super::job::{ANNOUNCED, PUBLIC, ROLLED_BACK, Work, is_running, put};
use crate::router::{ProposeError, Router};
use crate::sql::reject;
use crate::sql::write::{ATTEMPTS_MAX, WriteContext};

/// Finished jobs that are kept for those who wait for them.
const FINISHED_KEPT: usize = 64;

/// Why a plan cannot be made.
#[derive(Debug)]
pub enum Stop {
    /// It is wrong.
    Error(WireError),
    /// Another job works on this table: wait for it, then plan again.
    Busy(u64),
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Self {
        Stop::Error(error)
    }
}

/// A change of the catalog in the making: what is put, and what a job has to do.
#[derive(Default)]
pub struct Edit {
    counters: Counters,
    /// Descriptors to write at once.
    pub puts: Vec<Op>,
    /// What is left to a job; without changes there is none.
    pub work: Work,
    /// Remarks.
    pub notices: Vec<Notice>,
}

impl Edit {
    /// An empty edit of this catalog.
    pub fn new(catalog: &Catalog) -> Self {
        Self { counters: catalog.counters.unwrap_or_default(), ..Self::default() }
    }

    /// The next id of a table, view or storage.
    pub fn next_table(&mut self) -> TableId {
        let id = TableId::new(self.counters.table);
        self.counters.table += 1;
        id
    }

    /// The next id of a database.
    pub fn next_database(&mut self) -> DatabaseId {
        let id = DatabaseId::new(self.counters.database);
        self.counters.database += 1;
        id
    }

    /// Something was ignored or is worth a word.
    pub fn notice(&mut self, name: &str, message: impl Into<String>) {
        self.notices.push(Notice { severity: "notice".into(), name: name.into(), message: message.into() });
    }

    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.work == Work::default()
    }
}

/// Fails with [`Stop::Busy`] if an unfinished job works on the table.
///
/// # Errors
/// [`Stop::Busy`].
pub fn check_free(catalog: &Catalog, table: TableId) -> Result<(), Stop> {
    for (id, job) in &catalog.jobs {
        if is_running(job) && Work::decode(&job.work).is_none_or(|w| w.touches(table)) {
            return Err(Stop::Busy(*id));
        }
    }
    Ok(())
}

/// Plans on the newest catalog, announces, and waits until it is done.
///
/// # Errors
/// The plan's or the job's; `unknown` when the deadline passes while the job goes on.
pub async fn announce(
    ctx: &WriteContext<'_>,
    tag: &str,
    mut plan: impl FnMut(&Catalog, &mut Edit) -> Result<(), Stop> + Send,
) -> Result<Done, WireError> {
    if let Some(done) = earlier(ctx, tag).await? {
        return Ok(done);
    }
    let deadline = ctx.options.deadline;
    let mut catalog = Arc::clone(&ctx.catalog);
    // A session that just saw its own DDL plans on it, even if this statement was parsed earlier.
    if ctx.router.catalog().version > catalog.version {
        catalog = ctx.router.catalog();
    }
    for _ in 0..ATTEMPTS_MAX {
        let mut edit = Edit::new(&catalog);
        match plan(&catalog, &mut edit) {
            Ok(()) => {}
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Busy(job)) => {
                // Its outcome is its own; what counts is that it is over.
                if let Err(error) = wait(&ctx.router, job, deadline).await
                    && error.code == Code::Unknown
                {
                    return Err(
                        WireError::sql("55P03", "another change of this table is not finished").hint("try again later")
                    );
                }
                catalog = ctx.router.catalog();
                continue;
            }
        }
        if edit.is_empty() {
            return Ok(Done { tag: tag.into(), notices: edit.notices, ..Done::default() });
        }
        let notices = std::mem::take(&mut edit.notices);
        let (ops, job) = finish(edit, &catalog, ctx.options.write);
        let proposal = Proposal { write: ctx.options.write, ops, ..Proposal::default() };
        match ctx.propose(ShardId::META, proposal).await {
            Ok(result) => {
                let version = CatalogVersion::new(result.index.get());
                ctx.router.catalog_at_least(version, deadline).await.map_err(|_| pending())?;
                if result.duplicate {
                    return match earlier(ctx, tag).await? {
                        Some(done) => Ok(done),
                        None => Ok(done(tag, notices, &ctx.router.identity().epoch, version)),
                    };
                }
                if let Some(job) = job {
                    wait(&ctx.router, job, deadline).await?;
                }
                return Ok(done(tag, notices, &ctx.router.identity().epoch, ctx.router.catalog().version));
            }
            Err(ProposeError::Rejected(Rejected::CatalogChanged)) => {
                catalog = ctx.router.catalog_at_least(catalog.version.next(), deadline).await?;
            }
            Err(error) => return Err(reject::propose_error(error)),
        }
    }
    Err(reject::wire_error(Rejected::CatalogChanged))
}

fn done(tag: &str, notices: Vec<Notice>, epoch: &Epoch, version: CatalogVersion) -> Done {
    let index = quorate_shared::ids::Index::new(version.get());
    Done {
        tag: tag.into(),
        notices,
        token: vec![Token { shard: ShardId::META, epoch: epoch.number, index }],
        catalog: version,
        ..Done::default()
    }
}

/// If the statement was sent before and executed: its outcome.
async fn earlier(ctx: &WriteContext<'_>, tag: &str) -> Result<Option<Done>, WireError> {
    let Some(write) = ctx.options.write.filter(|_| ctx.options.retry) else { return Ok(None) };
    let question = Proposal { write: Some(write), ..Proposal::default() };
    let known =
        ctx.router.propose(ShardId::META, question, ctx.options.deadline).await.map_err(reject::propose_error)?;
    if !known.duplicate {
        return Ok(None);
    }
    let version = CatalogVersion::new(known.index.get());
    let catalog = ctx.router.catalog_at_least(version, ctx.options.deadline).await.map_err(|_| pending())?;
    let job = catalog.jobs.iter().find(|(_, job)| Work::decode(&job.work).is_some_and(|w| w.write == Some(write)));
    if let Some((id, _)) = job {
        wait(&ctx.router, *id, ctx.options.deadline).await?;
    }
    Ok(Some(done(tag, Vec::new(), &ctx.router.identity().epoch, ctx.router.catalog().version)))
}

/// The proposal's operations, and the job's number if there is one.
fn finish(edit: Edit, catalog: &Catalog, write: Option<WriteId>) -> (Vec<Op>, Option<u64>) {
    let mut counters = edit.counters;
    let id = counters.job;
    // Taken even without a job: it is what puts announcements in one order.
    counters.job += 1;
    let mut ops = vec![put(catalog.counters.as_ref(), Some(&counters))];
    ops.extend(edit.puts);
    let has_job = edit.work != Work::default();
    if has_job {
        let work = Work { write, ..edit.work };
        let table = work.changes.first().map(|c| c.table).unwrap_or_default();
        let job = JobDesc { id, table, state: ANNOUNCED.into(), work: work.encode(), error: None };
        ops.push(put(None, Some(&job)));
    }
    let finished: Vec<&JobDesc> = catalog
        .jobs
        .values()
        .filter(|job| !is_running(job) && Work::decode(&job.work).is_none_or(|w| w.purge.is_empty()))
        .collect();
    let surplus = finished.len().saturating_sub(FINISHED_KEPT);
    ops.extend(finished.into_iter().take(surplus).map(|job| put(Some(job), None)));
    (ops, has_job.then_some(id))
}

/// Waits until a job is over.
///
/// # Errors
/// Why it was rolled back; `unknown` when the deadline passes first.
pub async fn wait(router: &Arc<dyn Router>, id: u64, deadline: Instant) -> Result<(), WireError> {
    loop {
        let catalog = router.catalog();
        match catalog.jobs.get(&id) {
            None => return Ok(()),
            Some(job) if job.state == PUBLIC => return Ok(()),
            Some(job) if job.state == ROLLED_BACK => {
                let error = job.error.as_deref().and_then(|bytes| postcard::from_bytes(bytes).ok());
                return Err(error.unwrap_or_else(|| WireError::new(Code::Invalid, "the change was rolled back")));
            }
            Some(_) => {}
        }
        if Instant::now() >= deadline || router.catalog_at_least(catalog.version.next(), deadline).await.is_err() {
            return Err(pending());
        }
    }
}

fn pending() -> WireError {
    WireError::new(Code::Unknown, "the change was announced; the wait for its end was given up")
        .hint("it goes on in the background and ends public or rolled back")
}

/// Founds the catalog: counters and the first database.
pub(super) async fn found(router: &Arc<dyn Router>) {
    let database = quorate_core::catalog::DatabaseDesc {
        id: DatabaseId::new(1),
        name: quorate_shared::limits::DATABASE_DEFAULT.to_owned(),
    };
    let counters = Counters { database: 2, ..Counters::default() };
    let ops = vec![put(None, Some(&counters)), put(None, Some(&database))];
    let deadline = Instant::now() + std::time::Duration::from_secs(5);
    // Another node may have done it; then this is refused, and all is well.
    let proposal = Proposal { ops, ..Proposal::default() };
    if let Ok(result) = router.propose(ShardId::META, proposal, deadline).await {
        let _ = router.catalog_at_least(CatalogVersion::new(result.index.get()), deadline).await;
    }
}
