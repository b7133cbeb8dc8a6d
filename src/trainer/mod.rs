//! Phases of training: distillation, RL, their updates, optimizer, checkpoints, metrics, devices.
//!
//! | file | content |
//! |---|---|
//! | [`rl`], [`distill`] | one step of each phase, in the order of the method |
//! | [`update`], [`optimizer`] | from a loss on logits to changed weights |
//! | [`score`] | log-probs, values and divergences of a batch |
//! | [`player`], [`models`] | questions to episodes; models by name |
//! | [`checkpoint`], [`state`], [`run_dir`], [`provenance`] | files of a run |
//! | [`metrics`], [`events`] | figures of a step; reports to the caller |
//! | [`guards`] | symptoms of a run that goes wrong |
//! | [`encoder`] | contrastive training of a retrieval encoder |
//! | [`devices`] | the one place that names backends |
pub mod checkpoint;
pub mod devices;
pub mod distill;
pub mod encoder;
pub mod events;
pub mod guards;
pub mod metrics;
pub mod models;
pub mod optimizer;
pub mod player;
pub mod provenance;
pub mod rl;
pub mod run_dir;
pub mod score;
pub mod state;
pub mod tiny;
pub mod update;
