//! Archives of the log that are kept outside: named in the catalog, so that one that is gone on with no more is missed
//! whatever happens to the nodes; how far each is, as last heard here.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_core::catalog::{ArchiveDesc, Catalog, Descriptor};
use quorate_core::keys::{CatalogKey, Key};
use quorate_core::proposal::{Op, Proposal};
use quorate_shared::archive::ArchiveReport;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Index, ShardId};

use super::NodeStreams;
use crate::forward::NodeRouter;
use crate::report::ArchiveHeard;
use crate::router::{ProposeError, Router};

/// How long writing to the catalog may take.
const CATALOG_WAIT: Duration = Duration::from_secs(5);
/// Archives a cluster knows at once.
const ARCHIVES_MAX: usize = 64;
/// Bytes of a label.
const LABEL_BYTES_MAX: usize = 512;

/// What was last heard of an archive.
struct Heard {
    at: Instant,
    age: Duration,
    shards: Vec<(ShardId, Index)>,
}

/// What this node has heard of archives since it started.
#[derive(Default)]
pub struct Archives(Mutex<BTreeMap<u64, Heard>>);

impl Archives {
    /// The catalog's archives with what was heard of them here.
    pub fn of(&self, catalog: &Catalog) -> Vec<ArchiveHeard> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|id, _| catalog.archives.contains_key(id));
        let known = catalog.archives.values().map(|desc| {
            let heard = all.get(&desc.id);
            ArchiveHeard {
                id: desc.id,
                label: desc.label.clone(),
                started_ms: desc.started_ms,
                age_ms: heard.map(|heard| (heard.at.elapsed() + heard.age).as_millis() as u64),
                shards: heard.map(|heard| heard.shards.clone()).unwrap_or_default(),
            }
        });
        known.collect()
    }

    fn hear(&self, report: &ArchiveReport) {
        let heard =
            Heard { at: Instant::now(), age: Duration::from_millis(report.age_ms), shards: report.shards.clone() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(report.id, heard);
    }
}

impl NodeStreams {
    pub(super) async fn note_archive(&self, report: &ArchiveReport) -> Result<(), WireError> {
        if report.label.len() > LABEL_BYTES_MAX {
            return Err(WireError::new(Code::Invalid, "the label of the archive is too long"));
        }
        let catalog = NodeRouter(self.forwarder.clone()).catalog();
        if !catalog.archives.contains_key(&report.id) {
            if catalog.archives.len() >= ARCHIVES_MAX {
                let error = WireError::new(Code::Invalid, format!("the cluster knows {ARCHIVES_MAX} archives already"));
                return Err(error.hint("forget those that are gone on with no more: quorate backup --forget ID"));
            }
            let desc = ArchiveDesc { id: report.id, label: report.label.clone(), started_ms: report.started_ms };
            self.write_archive(report.id, None, Some(&desc)).await?;
        }
        self.reports.archives.hear(report);
        if let Some(source) = self.source.get() {
            report.shards.iter().for_each(|(shard, index)| source.holds.hold(*shard, report.id, *index));
        }
        Ok(())
    }

    pub(super) async fn drop_archive(&self, id: u64) -> Result<(), WireError> {
        let catalog = NodeRouter(self.forwarder.clone()).catalog();
        let known = catalog.archives.get(&id);
        let known =
            known.ok_or_else(|| WireError::new(Code::NotFound, format!("the cluster knows no archive {id:016x}")))?;
        self.write_archive(id, Some(known), None).await
    }

    async fn write_archive(
        &self,
        id: u64,
        expect: Option<&ArchiveDesc>,
        value: Option<&ArchiveDesc>,
    ) -> Result<(), WireError> {
        let put = Op::Put {
            key: Key::Catalog(CatalogKey::Archive(id)).encode(),
            expect: expect.map(Descriptor::encode),
            value: value.map(Descriptor::encode),
        };
        let proposal = Proposal { ops: vec![put], ..Proposal::default() };
        let deadline = Instant::now() + CATALOG_WAIT;
        match self.forwarder.propose_anywhere(ShardId::META, &proposal, deadline).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Wire(error)) => Err(error),
            // Somebody else has written it meanwhile, or it is not known whether it was: the next report tells.
            Err(ProposeError::Rejected(rejected)) => Err(WireError::new(Code::Retry, rejected.to_string())),
        }
    }
}
