//! trainer
pub mod devices;
pub mod encoder;

pub mod metrics;
pub mod optimizer;
pub mod update;
