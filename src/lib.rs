//! # dgpo: training compact language models to search like agents
//!
//! Four crates in this folder, each importing only from those above it, so that Cargo holds the
//! order; `dgpo_kernels` and `dgpo_models` lie beneath them.
//!
//! | crate | folder | answers |
//! |---|---|---|
//! | `dgpo_core` | `src/core` | what is DGPO? Its page has the reading order, the data flow and the invariants |
//! | `dgpo_run` | `src/run` | how does a run live on a machine? |
//! | `dgpo_lab` | `src/lab` | how is it proven and measured? |
//! | `dgpo` | `src` | the program: [`cli`], the only place that prints |
pub mod cli;
