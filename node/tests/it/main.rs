//! End to end: real `quorated` processes on loopback.
#![allow(clippy::unwrap_used)]

mod cluster;
mod doors;
mod founding;
mod replica;
mod support;
