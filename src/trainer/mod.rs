//! trainer
pub mod devices;
pub mod distill;
pub mod encoder;
pub mod metrics;
pub mod models;
pub mod optimizer;
pub mod rl;
pub mod score;
pub mod update;
