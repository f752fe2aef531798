//! A table's changes as they come, over the loss of nodes.

use super::result::CREDIT_DEFAULT;
use super::{Attempt, Call, Client, ClientError};
use crate::error::Code;
use crate::feed::{FeedBatch, FeedToken};
use crate::wire::{Request, Response};

/// A table's changes: each at least once, in log order. After a loss it goes on by itself, at another node if need be,
/// behind the last batch it gave.
#[derive(Debug)]
pub struct Feed<'a> {
    client: &'a mut Client,
    table: String,
    from: Option<FeedToken>,
    request: Option<u64>,
    /// Batches taken since the server last got credit.
    taken: u32,
}

impl<'a> Feed<'a> {
    pub(super) fn new(client: &'a mut Client, table: String, from: Option<FeedToken>) -> Self {
        Self { client, table, from, request: None, taken: 0 }
    }

    /// The next changes; an empty batch says only how far the feed is. After an error it may be called again: it goes on
    /// behind the last batch it gave.
    pub async fn next(&mut self) -> Result<FeedBatch, ClientError> {
        loop {
            let response = match self.receive().await {
                Ok(response) => response,
                Err(Attempt::Lost(reason) | Attempt::Unsendable(reason)) => {
                    self.lose(&reason);
                    continue;
                }
                Err(Attempt::Late) => {
                    let (table, from) = (self.table.clone(), self.from);
                    let body = Request::Feed { table, from, credit: CREDIT_DEFAULT };
                    let first = self.client.call(Call { body, writes: false, slot: None }).await?;
                    self.request = Some(first.request);
                    self.taken = 0;
                    first.response
                }
            };
            match response {
                Response::Feed(batch) => {
                    self.taken += 1;
                    self.from = Some(batch.at);
                    return Ok(batch);
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
                    return Err(self.client.out_of_step("feed"));
                }
            }
        }
    }

    /// Behind what was given last; `None` before the first batch of a feed from now.
    pub fn token(&self) -> Option<FeedToken> {
        self.from
    }

    /// The next frame of the running feed; `Late` when none runs.
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

impl Drop for Feed<'_> {
    fn drop(&mut self) {
        if let (Some(request), Some(link)) = (self.request, &mut self.client.link) {
            link.abandoned = Some(request);
        }
    }
}

impl Client {
    /// A table's committed changes as they come: from now, or behind a token.
    pub fn feed(&mut self, table: impl Into<String>, from: Option<FeedToken>) -> Feed<'_> {
        Feed::new(self, table.into(), from)
    }
}
