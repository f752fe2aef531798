//! The Quorate shell: one session, three front ends (line shell, script, full screen).
//!
//! Text becomes a command, a command an outcome, an outcome a rendering; each step is a pure function where it can be.
//! stdout is data, stderr is narration, and the exit code says what to do next ([`exit::Exit`]).

pub mod admin;
pub mod args;
pub mod backup;
pub mod bench;
pub mod collect;
pub mod command;
pub mod config;
pub mod demo;
pub mod exit;
pub mod feed;
pub mod output;
pub mod prove;
pub mod render;
pub mod repl;
pub mod script;
pub mod session;
pub mod start;
pub mod tui;
