//! A shard's log for a backup as it comes, over the loss of nodes.

use super::result::CREDIT_DEFAULT;
use super::{Attempt, Call, Client, ClientError};
use crate::archive::{ArchivePart, ArchivePoint, ArchiveReport};
use crate::error::Code;
use crate::ids::ShardId;
use crate::wire::{Request, Response};

/// A shard's log for a backup: every entry once, in order. After a loss it goes on by itself, at another node if need be,
/// behind the last entries it gave. A base whose snapshot had not come whole is begun again with another base.
#[derive(Debug)]
pub struct Archive<'a> {
    client: &'a mut Client,
    shard: ShardId,
    after: Option<ArchivePoint>,
    once: bool,
    request: Option<u64>,
    /// Parts taken since the server last got credit.
    taken: u32,
    /// The base given, whose snapshot has not come whole yet.
    begun: Option<ArchivePoint>,
}

impl Archive<'_> {
    /// The next part.
    pub async fn next(&mut self) -> Result<ArchivePart, ClientError> {
        loop {
            let response = match self.receive().await {
                Ok(response) => response,
                Err(Attempt::Lost(reason) | Attempt::Unsendable(reason)) => {
                    self.lose(&reason);
                    continue;
                }
                Err(Attempt::Late) => {
                    let Self { shard, after, once, .. } = *self;
                    let body = Request::Archive { shard, after, once, credit: CREDIT_DEFAULT };
                    let first = self.client.call(Call { body, writes: false, slot: None }).await?;
                    self.request = Some(first.request);
                    self.taken = 0;
                    first.response
                }
            };
            match response {
                Response::Archive(part) => {
                    self.taken += 1;
                    self.follow(&part);
                    return Ok(part);
                }
                // This node cannot go on; another may, and so may this one later.
                Response::Error(error) if matches!(error.code, Code::Retry | Code::Redirect | Code::Busy) => {
                    self.lose(&error.message);
                }
                Response::Error(error) => {
                    self.request = None;
                    return Err(error.into());
                }
                _ => {
                    self.request = None;
                    return Err(self.client.out_of_step("archive"));
                }
            }
        }
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
            ArchivePart::End => self.request = None,
            _ => {}
        }
    }

    /// The next frame of the running stream; `Late` when none runs.
    async fn receive(&mut self) -> Result<Response, Attempt> {
        let (Some(request), Some(link)) = (self.request, &mut self.client.link) else { return Err(Attempt::Late) };
        if self.taken >= CREDIT_DEFAULT / 2 {
            link.credit(request, std::mem::take(&mut self.taken)).await?;
        }
        match link.receive(request, None).await {
            Err(Attempt::Late) => Err(Attempt::Lost("no answer in time".into())),
            other => other,
        }
    }

    fn lose(&mut self, reason: &str) {
        self.request = None;
        self.client.lose(reason);
    }
}

impl Drop for Archive<'_> {
    fn drop(&mut self) {
        if let (Some(request), Some(link)) = (self.request, &mut self.client.link) {
            link.abandoned = Some(request);
        }
    }
}

impl Client {
    /// A shard's log for a backup: from its base, or behind a point; with `once` only what is committed by now.
    pub fn archive(&mut self, shard: ShardId, after: Option<ArchivePoint>, once: bool) -> Archive<'_> {
        Archive { client: self, shard, after, once, request: None, taken: 0, begun: None }
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
