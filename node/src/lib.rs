//! The Quorate node: doors, router, SQL and the driver around `quorate-core`.

pub mod admin;
pub mod metrics;
pub mod report;
pub mod router;
pub mod serve;
pub mod sql;
pub mod telemetry;
