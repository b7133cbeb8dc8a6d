//! trainer
pub mod devices;
