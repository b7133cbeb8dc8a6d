//! trainer
pub mod devices;
pub mod optimizer;
