//! # dgpo-run: a run on a machine
//!
//! The life of a run on a machine. From a recipe to phases made of the steps of `dgpo_core`, with
//! data, retrieval, checkpoints, evaluation and a report.
//!
//! ## Reading order
//! 1. [`config`]: which settings exist, and what a run with them will do.
//! 2. [`pipeline`]: the phases, from the first episode of the teacher to the last evaluation.
//! 3. [`folder`]: what a run writes, and how a run that was killed goes on.
//! 4. [`data`], [`episodes`], [`retriever`]: where questions, episodes and passages come from.
//! 5. [`eval`], [`report`]: what a finished run says.
//!
//! ## Layers
//! A module imports only from modules to its left:
//! ```text
//! hub, config ─▶ data ─▶ episodes ─▶ retriever ─▶ events, devices, models ─▶ folder ─▶ eval ─▶ pipeline ─▶ report
//! ```
//!
//! ## Invariants
//! - A checkpoint is everything, and a resumed run is the same run.
//! - Nothing here prints: a run tells an [`events::Observer`] what happens.
pub mod config;
pub mod data;
pub mod devices;
pub mod episodes;
pub mod eval;
pub mod events;
pub mod folder;
pub mod hub;
pub mod models;
pub mod pipeline;
pub mod report;
pub mod retriever;
pub mod units;
