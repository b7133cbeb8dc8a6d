//! trainer
pub mod checkpoint;
pub mod devices;
pub mod distill;
pub mod events;
pub mod metrics;
pub mod models;
pub mod optimizer;
pub mod provenance;
pub mod rl;
pub mod run_dir;
pub mod score;
pub mod update;
