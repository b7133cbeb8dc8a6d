//! trainer
pub mod checkpoint;
pub mod devices;
pub mod events;
pub mod provenance;
pub mod run_dir;
