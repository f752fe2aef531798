//! Integration tests of the node, one binary: real `quorated` processes on loopback, and SQL in this process.
#![allow(clippy::unwrap_used)]

mod backup;
mod chinook;
mod cluster;
mod doors;
mod epochs;
mod feed;
mod founding;
mod golden;
mod harness;
mod kills;
mod paxos;
mod proving;
mod proxy;
mod reads;
mod replica;
mod roles;
mod scenes;
mod slt;
mod strangers;
mod support;
mod trimming;
