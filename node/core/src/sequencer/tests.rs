//! The sequencer with a real machine over an engine in memory: scripts (`testscripts/`) and a comparison with a naive model.

mod harness;
mod model;
mod scripts;
mod text;
