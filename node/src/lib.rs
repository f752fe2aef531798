//! The Quorate node: doors, router, SQL and the driver around `quorate-core`.

pub mod report;
pub mod router;
pub mod sql;
