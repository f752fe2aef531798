//! The simulator: whole clusters in one thread, on virtual time, everything decided by one number.
//!
//! A [`world::World`] drives the very code the daemon drives, in the driver's place: shards, machines, followers by
//! shipping, and the real segment log, of one or two shards, on a simulated disk. It executes effects as events of a queue and gives their
//! completions back. [`run::run`] makes of a seed a cluster of some size, configuration values, a workload, faults and
//! weather; clients behave as the client library does. After every event the [`invariants`] are checked; at the end the
//! faults stop, everything must converge and serve within a bound, and an [`oracle`] that sees only what clients saw
//! judges the history. What a seed does is the same every time.
//!
//! `cargo run --release -p quorate-core --example sim -- --seeds 0..1000` runs many, `--bug NAME` with a planted bug
//! ([`crate::bug`]) that must be found.
//!
//! Left out: the router's SQL, and its runner of DDL jobs (see [`schema`]).

pub mod bases;
pub mod client;
pub mod disk;
pub mod engine;
pub mod epochs;
pub mod faults;
pub mod filling;
pub mod history;
pub mod invariants;
pub mod network;
pub mod node;
pub mod oracle;
#[cfg(test)]
mod partly;
pub mod place;
pub mod plan;
pub mod process;
pub mod reads;
#[cfg(test)]
pub mod records;
pub mod rng;
pub mod roles;
pub mod run;
pub mod schema;
#[cfg(test)]
mod script;
pub mod shipping;
pub mod store;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod workload;
pub mod world;

pub use self::rng::Rng;
pub use self::run::{Options, Outcome, run};
