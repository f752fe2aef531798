//! End to end: real `quorated` processes on loopback.
#![allow(clippy::unwrap_used)]

mod cluster;
mod founding;
mod replica;
mod support;
