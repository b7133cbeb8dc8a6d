//! The learning of a run: one step of RL and of distillation, from played episodes to changed
//! weights.
//!
//! | file | answers |
//! |---|---|
//! | [`rl`], [`distill`] | one step of each phase, in the order of the method |
//! | [`update`], [`optimizer`] | from a loss on logits to changed weights |
//! | [`score`] | what finished networks think of a batch |
//! | [`player`] | questions to episodes |
//! | [`metrics`] | what is measured |
//! | [`guards`] | by which signs a run that goes wrong is known |
pub mod distill;
pub mod guards;
pub mod metrics;
pub mod optimizer;
pub mod player;
pub mod rl;
pub mod score;
pub mod update;
