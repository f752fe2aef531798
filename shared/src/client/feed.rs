//! A table's changes as they come, over the loss of nodes.

use super::stream::Stream;
use super::{Client, ClientError};
use crate::feed::{FeedBatch, FeedToken};
use crate::wire::{Request, Response};

/// A table's changes: each at least once, in log order. After a loss it goes on by itself, at another node if need be,
/// behind the last batch it gave.
#[derive(Debug)]
pub struct Feed<'a> {
    stream: Stream<'a>,
    table: String,
    from: Option<FeedToken>,
}

impl Feed<'_> {
    /// The next changes; an empty batch says only how far the feed is. After an error it may be called again: it goes on
    /// behind the last batch it gave.
    pub async fn next(&mut self) -> Result<FeedBatch, ClientError> {
        let (table, from) = (&self.table, self.from);
        let body = |credit| Request::Feed { table: table.clone(), from, credit };
        let part = |response| match response {
            Response::Feed(batch) => Some(batch),
            _ => None,
        };
        let batch = self.stream.next(body, part).await?;
        self.from = Some(batch.at);
        Ok(batch)
    }

    /// Behind what was given last; `None` before the first batch of a feed from now.
    pub fn token(&self) -> Option<FeedToken> {
        self.from
    }
}

impl Client {
    /// A table's committed changes as they come: from now, or behind a token.
    pub fn feed(&mut self, table: impl Into<String>, from: Option<FeedToken>) -> Feed<'_> {
        Feed { stream: Stream::new(self, "feed"), table: table.into(), from }
    }
}
