//! The full-screen shell: model, update, view.
//!
//! [`update::update`] is the only place that changes state, [`view::view`] the only one that draws; time and data are
//! injected, so whole screens are snapshot-tested.

pub mod actions;
pub mod model;
pub mod run;
pub mod update;
pub mod view;

#[cfg(test)]
mod tests;
