//! A shard's log for a backup as it comes, over the loss of nodes.

use super::stream::Stream;
use super::{Call, Client, ClientError};
use crate::archive::{ArchivePart, ArchivePoint, ArchiveReport};
use crate::ids::ShardId;
use crate::wire::{Request, Response};

/// A shard's log for a backup: every entry once, in order. After a loss it goes on by itself, at another node if need be,
/// behind the last entries it gave. A base whose snapshot had not come whole is begun again with another base.
#[derive(Debug)]
pub struct Archive<'a> {
    stream: Stream<'a>,
    shard: ShardId,
    after: Option<ArchivePoint>,
    once: bool,
    /// The base given, whose snapshot has not come whole yet.
    begun: Option<ArchivePoint>,
}

impl Archive<'_> {
    /// The next part.
    pub async fn next(&mut self) -> Result<ArchivePart, ClientError> {
        let Self { shard, after, once, .. } = *self;
        let body = |credit| Request::Archive { shard, after, once, credit };
        let part = |response| match response {
            Response::Archive(part) => Some(part),
            _ => None,
        };
        let part = self.stream.next(body, part).await?;
        self.follow(&part);
        Ok(part)
    }

    fn follow(&mut self, part: &ArchivePart) {
        match part {
            ArchivePart::Base(base) if base.snapshot => self.begun = Some(base.point),
            ArchivePart::Base(base) => self.after = Some(base.point),
            ArchivePart::Snapshot { last: true, .. } => self.after = self.begun.take(),
            ArchivePart::Entries(entries) => {
                if let Some(after) = &mut self.after {
                    after.index = entries.last;
                    after.chain = entries.chain;
                }
            }
            ArchivePart::End => self.stream.end(),
            _ => {}
        }
    }
}

impl Client {
    /// A shard's log for a backup: from its base, or behind a point; with `once` only what is committed by now.
    pub fn archive(&mut self, shard: ShardId, after: Option<ArchivePoint>, once: bool) -> Archive<'_> {
        Archive { stream: Stream::new(self, "archive"), shard, after, once, begun: None }
    }

    /// Tells the cluster how far an archive is.
    pub async fn archived(&mut self, report: ArchiveReport) -> Result<(), ClientError> {
        self.call(Call { body: Request::Archived(report), writes: false, slot: None }).await.map(drop)
    }

    /// Lets the cluster forget an archive that is gone on with no more.
    pub async fn forget_archive(&mut self, id: u64) -> Result<(), ClientError> {
        self.call(Call { body: Request::ForgetArchive { id }, writes: false, slot: None }).await.map(drop)
    }
}
