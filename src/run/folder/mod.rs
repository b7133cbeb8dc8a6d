//! A run on the disk: what is written, and how it survives.
//!
//! | file | answers |
//! |---|---|
//! | [`run_dir`] | the folder of a run: its files, its lock, its metrics |
//! | [`checkpoint`] | how a checkpoint appears whole or not at all |
//! | [`state`] | what a checkpoint of a network holds |
//! | [`provenance`] | what a run was made of |
pub mod checkpoint;
pub mod provenance;
pub mod run_dir;
pub mod state;
