//! trainer
pub mod devices;
pub mod metrics;
pub mod optimizer;
pub mod update;
