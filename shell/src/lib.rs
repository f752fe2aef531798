//! The Quorate shell.

pub mod tui;
