//! The Quorate shell.

pub mod demo;
pub mod tui;
