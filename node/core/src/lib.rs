//! The deterministic core of a Quorate node: everything that decides, nothing that waits.
//!
//! No tokio, no clock, no threads, no ambient randomness: time, randomness and completions arrive as parameters, so that
//! a simulator can drive the very code the daemon drives. The disk is reached in two places only, behind
//! their traits: `engine/sled.rs`, and `disk.rs` for everything else.
//!
//! From below: [`keys`], [`row`] and [`entry`] are formats; [`engine`] and [`log`] store bytes; [`mvcc`] reads versions;
//! [`machine`] applies committed entries; [`sequencer`] turns proposals into entries; [`replica`] orders entries;
//! [`shard`] holds them together as one function `step(now, input) -> effects`; [`snapshot`] is a shard's state at an index
//! in a file; [`ship`] serves committed entries to whoever pulls them; [`verify`] proves what is stored.

pub mod bug;
pub mod catalog;
pub mod disk;
pub mod engine;
pub mod entry;
pub mod epoch;
pub mod error;
pub mod expr;
pub mod join;
pub mod keys;
pub mod lag;
pub mod log;
pub mod machine;
pub mod membership;
pub mod mvcc;
pub mod proposal;
pub mod replica;
pub mod row;
pub mod sequencer;
pub mod shard;
pub mod ship;
#[cfg(any(test, feature = "planted-bugs"))]
#[allow(missing_docs, reason = "a test instrument: each module says what it is")]
pub mod sim;
pub mod snapshot;
pub mod table;
pub mod verify;
