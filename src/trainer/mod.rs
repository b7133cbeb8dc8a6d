//! Phases of training: distillation, RL, their updates, optimizer, checkpoints, metrics, devices.
//!
//! | file | answers |
//! |---|---|
//! | [`rl`], [`distill`] | one step of each phase, in the order of the method |
//! | [`update`], [`optimizer`] | from a loss on logits to changed weights |
//! | [`score`] | what finished networks think of a batch |
//! | [`player`], [`models`] | models by name; questions to episodes |
//! | [`checkpoint`], [`state`], [`run_dir`], [`provenance`] | what is written, and how it survives |
//! | [`metrics`], [`events`] | what is measured and who hears of it |
//! | [`guards`] | by which signs a run that goes wrong is known |
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
