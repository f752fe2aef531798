//! What feeds and archives have in common: a request that is answered by part after part under credit, made again behind
//! what came when the node is lost.

use super::result::CREDIT_DEFAULT;
use super::{Attempt, Call, Client, ClientError};
use crate::error::Code;
use crate::wire::{Request, Response};

/// One stream at a time. Dropping it stops the request with the next one.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    client: &'a mut Client,
    /// What the request is called in messages.
    name: &'static str,
    request: Option<u64>,
    /// Parts taken since the server last got credit.
    taken: u32,
}

impl<'a> Stream<'a> {
    pub(super) fn new(client: &'a mut Client, name: &'static str) -> Self {
        Self { client, name, request: None, taken: 0 }
    }

    /// The next part. Where none runs, `body` says what to ask for, given the credit; `part` picks the parts out of the
    /// answers. After an error it may be called again.
    pub(super) async fn next<T>(
        &mut self,
        body: impl Fn(u32) -> Request,
        part: impl Fn(Response) -> Option<T>,
    ) -> Result<T, ClientError> {
        loop {
            let response = match self.receive().await {
                Ok(response) => response,
                Err(Attempt::Lost(reason) | Attempt::Unsendable(reason)) => {
                    self.lose(&reason);
                    continue;
                }
                Err(Attempt::Late) => {
                    let call = Call { body: body(CREDIT_DEFAULT), writes: false, slot: None };
                    let first = self.client.call(call).await?;
                    self.request = Some(first.request);
                    self.taken = 0;
                    first.response
                }
            };
            match response {
                // This node cannot go on; another may, and so may this one later.
                Response::Error(error) if matches!(error.code, Code::Retry | Code::Redirect | Code::Busy) => {
                    self.lose(&error.message);
                }
                Response::Error(error) => {
                    self.end();
                    return Err(error.into());
                }
                response => {
                    self.taken += 1;
                    if let Some(part) = part(response) {
                        return Ok(part);
                    }
                    self.end();
                    return Err(self.client.out_of_step(self.name));
                }
            }
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self) {
        self.request = None;
    }

    /// The next frame of the running request; `Late` when none runs.
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
        self.end();
        self.client.lose(reason);
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if let (Some(request), Some(link)) = (self.request, &mut self.client.link) {
            link.abandoned = Some(request);
        }
    }
}
