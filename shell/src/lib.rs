//! The Quorate shell.

pub mod bench;
pub mod demo;
pub mod tui;
