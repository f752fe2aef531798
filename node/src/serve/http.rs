//! The `http` door: `/metrics` for Prometheus, `/status` for programs, `/health` for load balancers.
//!
//! All three show the cluster's picture or this node's part of it; nothing can be changed here.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::Router as Routes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use quorate_shared::status::{ClusterStatus, NodeKind};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Meters, render};
use crate::report::{NodeReport, NodeState, Reports};
use crate::router::Router;

/// What the door shows.
#[derive(Clone)]
pub struct Shown {
    /// The cluster's picture.
    pub router: Arc<dyn Router>,
    /// This node.
    pub reports: Arc<dyn Reports>,
    /// What the doors count.
    pub meters: Arc<Meters>,
}

/// Serves a listener until it is told to stop.
pub async fn serve(shown: Shown, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let routes = Routes::new()
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/health", get(health))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /metrics, /status and /health\n") })
        .with_state(shown);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let picture = shown.router.picture().await;
    let text = render(&shown.reports.local_report(), &picture, &shown.meters);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn status(State(shown): State<Shown>) -> Json<ClusterStatus> {
    Json(shown.router.picture().await)
}

async fn health(State(shown): State<Shown>) -> (StatusCode, String) {
    match sick(&shown.reports.local_report()) {
        None => (StatusCode::OK, "ok\n".into()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// Why this node cannot serve, if it cannot. A full disk is no reason: reads go on.
pub fn sick(report: &NodeReport) -> Option<String> {
    match &report.state {
        NodeState::Forming(whom) => return Some(format!("there is no cluster yet: {whom}")),
        NodeState::LostLog(why) => return Some(format!("this voter has lost its log: {why}")),
        NodeState::Removed(why) => return Some(format!("this node was removed from its cluster: {why}")),
        NodeState::Stopped(why) => return Some(format!("a replica has stopped: {why}")),
        NodeState::Ready => {}
    }
    // A replica goes on answering `local` reads when it is cut off.
    let leaderless = report.shards.iter().find(|shard| report.kind == NodeKind::Voter && shard.status.leader.is_none());
    leaderless.map(|shard| format!("{} has no leader", shard.shard))
}
