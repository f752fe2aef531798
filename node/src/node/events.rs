//! What peers say, acted on: protocol messages go to the driver, requests to whoever answers them, readers to the streams.
//!
//! Invariant: nothing here waits: what takes time answers from a task or a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use quorate_core::error::Rejected;
use quorate_core::replica::Protocol;
use quorate_core::shard::Input;
use quorate_core::ship::chain_at;
use quorate_shared::ids::{Hash, Index, NodeId, Nonce, ReplicaId, ShardId};
use tokio::net::TcpStream;

use crate::admin::actions::Runner;
use crate::driver::{Clock, Driver};
use crate::forward::{Forwarder, NodeRouter};
use crate::housekeeping::bases::Holds;
use crate::peers::message::{Answer, Ask, Founding, HASHES_MAX, Reply, Request, Response};
use crate::peers::{Heard, Outbox, PeerEvents};
use crate::proving::{Prove, Proved};
use crate::report::Reports;
use crate::reporting::NodeReports;
use crate::router::Router;
use crate::shipping::Server;

/// What peers say, acted on.
pub(super) struct Events {
    pub(super) node: NodeId,
    pub(super) nonce: Nonce,
    pub(super) voters: Vec<NodeId>,
    pub(super) replicator: Protocol,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) reports: Arc<NodeReports>,
    pub(super) runner: Arc<Runner>,
    pub(super) data: PathBuf,
    pub(super) holds: Arc<Holds>,
    pub(super) founding: std::sync::OnceLock<Arc<Founding>>,
    pub(super) server: std::sync::OnceLock<Server>,
}

impl Events {
    fn request(&self, driver: &Driver, from: NodeId, request: Request, answers: &Arc<Outbox>) {
        let Request { id, deadline_ms, body, .. } = request;
        let deadline = Instant::now() + Duration::from_millis(deadline_ms.min(3_600_000));
        let answers = answers.clone();
        match body {
            Ask::Prove(ask) => self.prove(id, *ask, answers),
            Ask::Propose { shard, proposal } => {
                let done = move |result| Response::send(&answers, id, Reply::Proposed(result));
                driver.propose(shard, proposal, deadline, Box::new(done));
            }
            Ask::ReadIndex { shard } => {
                let done = move |result| Response::send(&answers, id, Reply::ReadIndex(result));
                driver.read(shard, deadline, Box::new(done));
            }
            Ask::Report => self.report(id, &answers),
            Ask::Clock => Response::send(&answers, id, Reply::Clock(Clock::wall())),
            Ask::Progress { shard, report } if report.node == from => driver.input(shard, Input::Report(report)),
            Ask::Progress { .. } | Ask::Here => {}
            Ask::Change { shard, change } => {
                let done = move |result| Response::send(&answers, id, Reply::Changed(result));
                driver.change(shard, change, Box::new(done));
            }
            body @ (Ask::Transfer { .. }
            | Ask::Leader { .. }
            | Ask::Membership { .. }
            | Ask::Reserve { .. }
            | Ask::Release { .. }) => {
                Response::send(&answers, id, self.runner.answer(from, &body));
            }
        }
    }

    fn prove(&self, id: u64, ask: Prove, answers: Arc<Outbox>) {
        let Some(prover) = self.runner.prover().cloned() else {
            return Response::send(&answers, id, Reply::Proved(Box::new(Proved::Refused("it is starting".into()))));
        };
        tokio::spawn(async move {
            let proved = prover.answer(ask).await;
            Response::send(&answers, id, Reply::Proved(Box::new(proved)));
        });
    }

    fn report(&self, id: u64, answers: &Arc<Outbox>) {
        let (reports, answers) = (self.reports.clone(), answers.clone());
        tokio::task::spawn_blocking(move || {
            Response::send(&answers, id, Reply::Report(Box::new(reports.local_report())));
        });
    }
}

#[async_trait]
impl PeerEvents for Events {
    fn consensus(&self, messages: Vec<(ShardId, Input)>) {
        if let Some(driver) = self.forwarder.driver() {
            driver.receive(messages);
        }
    }

    fn disconnected(&self, peer: NodeId) {
        let Some(driver) = self.forwarder.driver() else { return };
        for view in driver.views() {
            if let Some(member) = view.membership().member_on(peer) {
                driver.input(view.shard, Input::Disconnected { peer: member.replica });
            }
        }
    }

    fn admits(&self, shard: ShardId, from: (NodeId, ReplicaId), to: ReplicaId) -> bool {
        self.forwarder.admits(shard, from, to)
    }

    fn requests(&self, from: NodeId, requests: Vec<Request>, answers: &Arc<Outbox>) {
        for request in requests {
            match (self.forwarder.driver(), &request.body) {
                (Some(driver), _) => self.request(driver, from, request, answers),
                (None, Ask::Report) => self.report(request.id, answers),
                (None, Ask::Propose { .. }) => {
                    Response::send(answers, request.id, Reply::Proposed(Err(Rejected::NotLeader(None))));
                }
                (None, Ask::ReadIndex { .. }) => {
                    Response::send(answers, request.id, Reply::ReadIndex(Err(Rejected::NotLeader(None))));
                }
                (None, Ask::Clock) => Response::send(answers, request.id, Reply::Clock(Clock::wall())),
                (None, Ask::Progress { .. } | Ask::Here) => {}
                (None, body) => Response::send(answers, request.id, self.runner.answer(from, body)),
            }
        }
    }

    fn removed(&self, node: NodeId) -> bool {
        self.forwarder.driver().is_some_and(|driver| driver.catalog().has_removed(node))
    }

    fn who(&self, _voters: &[NodeId]) -> Answer {
        let router = NodeRouter(self.forwarder.clone());
        Answer {
            node: self.node,
            nonce: self.nonce,
            voters: self.voters.clone(),
            founding: self.founding.get().map(|f| (**f).clone()),
            epochs: self.forwarder.epochs(),
            master: router.master(),
            nodes: router.nodes(),
            replicator: self.replicator,
        }
    }

    fn hashes(&self, shard: ShardId, at: &[Index]) -> Vec<Option<Hash>> {
        let Some(server) = self.server.get() else { return Vec::new() };
        let applied = server.driver.view(shard).map(|view| view.applied()).unwrap_or_default();
        let hash = |index: &Index| match *index <= applied {
            // What cannot be read is not known.
            true => chain_at(&*server.log, shard, *index).ok().flatten(),
            false => None,
        };
        at.iter().take(HASHES_MAX).map(hash).collect()
    }

    async fn ship(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId, heard: Heard) {
        let Some(server) = self.server.get() else { return };
        if let Err(why) = server.serve(stream, buffer, reader, heard).await {
            tracing::debug!(%reader, %why, "a reader's stream has ended");
        }
    }

    async fn give(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId) {
        let given = crate::fill::serve(self.data.clone(), self.holds.clone(), stream, buffer, reader);
        if let Err(why) = given.await {
            tracing::debug!(%reader, %why, "a snapshot was not given to its end");
        }
    }
}
