//! The Quorate node: doors, router, SQL and the driver around `quorate-core`.

pub mod admin;
pub mod clocks;
pub mod config;
pub mod ddl;
pub mod driver;
pub mod fill;
pub mod forward;
pub mod founding;
pub mod housekeeping;
pub mod metrics;
pub mod node;
pub mod peers;
pub mod proving;
pub mod report;
pub mod reporting;
pub mod restore;
pub mod router;
pub mod serve;
pub mod sessions;
pub mod shipping;
pub mod sql;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod verify;
