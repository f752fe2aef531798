//! What every Quorate program shares: ids, values, limits, the wire, the cluster's picture, and (feature `client`) the client.
//!
//! Invariants: without default features nothing here needs tokio, so that `node/core` stays free of it. Only
//! [`wire`], [`status`], [`anchor`] and the values inside them are serialized; their bytes are fixed by golden tests.

pub mod admin;
pub mod anchor;
pub mod archive;
pub mod duration;
pub mod error;
pub mod feed;
pub mod ids;
pub mod limits;
pub mod status;
pub mod url;
pub mod value;
pub mod wire;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod codec;
