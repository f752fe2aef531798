//! Lag that cannot lie: what the leader knows of every replica, in the leader's own time.

use quorate_shared::ids::{Index, NodeId};
use quorate_shared::status::NodeKind;
use serde::{Deserialize, Serialize};

/// How far a replica says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReaderReport {
    /// Who says so.
    pub node: NodeId,
    /// Voter or replica.
    pub kind: NodeKind,
    /// Highest index sent to it, as the server of its stream knows; for voters from the protocol.
    pub sent: Index,
    /// Highest index durable there.
    pub durable: Index,
    /// Highest index applied there.
    pub applied: Index,
}
