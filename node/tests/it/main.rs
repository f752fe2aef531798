//! End to end: real `quorated` processes on loopback.

mod cluster;
mod founding;
mod replica;
mod support;
