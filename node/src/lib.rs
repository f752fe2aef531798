//! The Quorate node: doors, router, SQL and the driver around `quorate-core`.

pub mod admin;
pub mod config;
pub mod driver;
pub mod forward;
pub mod metrics;
pub mod peers;
pub mod report;
pub mod router;
pub mod serve;
pub mod sql;
pub mod store;
pub mod telemetry;
