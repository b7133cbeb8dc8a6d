//! # dgpo-core: the heart
//!
//! What is DGPO? A student of half a billion parameters learns to interleave `<think>`, `<search>`,
//! `<information>` and `<answer>`: first by distillation from a teacher's *correct* episodes (KD),
//! then by PPO in which only its *wrong* episodes are pulled towards the teacher (DGPO,
//! Distillation-Guided Policy Optimization). This crate plays the episodes and takes the steps. It
//! knows no recipe file, no run folder, no network and no command line: settings are plain structs
//! ([`settings`]), and passages come from whoever implements [`env::search::Retriever`].
//!
//! ## Reading order
//! 1. [`rollout::episode`]: what an episode is, token by token, with one worked example. The types
//!    everyone meets.
//! 2. [`mod@env`]: the protocol. Text in, observation out.
//! 3. [`algo`]: every equation as a pure function: reward, KL, advantages, PPO, distillation.
//! 4. [`trainer::rl`]: one RL step, in the order of the method; [`trainer::distill`]: one
//!    distillation step; [`trainer::guards`]: when a run is stopped.
//! 5. [`engine`], [`rollout::play`]: how episodes are played fast.
//! 6. `dgpo_models` and `dgpo_kernels`: the decoder, attention with its backward pass.
//!
//! `examples/kd_step.rs` and `examples/dgpo_step.rs` take one step of each kind with nothing but
//! this crate: `cargo run --release -p dgpo-core --example dgpo_step`. A kernel of one's own with
//! its gradient is `kernels/examples/custom_kernel.rs`.
//!
//! Phases made of these steps, and everything else that a run needs on a machine, are in
//! `dgpo_run`.
//!
//! ## Data flow of one RL step
//! ```text
//! Question ──env──▶ prompt text ──tokenizer──▶ ids ──engine(actor)──▶ agent ids ─┐
//!     ▲                                           ▲                             text
//!     │                              observation ids ◀──tokenizer── env + retriever ◀┘   (up to max_turns times)
//! sampler                                         ▼
//!                                             Episode { segments, reward }
//!                                                 ▼
//!   RolloutBatch { ids, loss_mask, old_log_probs (actor), ref_log_probs (teacher, wrong episodes), values (critic) }
//!                                                 ▼
//!                        token rewards ─▶ GAE ─▶ PPO update of actor and critic ─▶ metrics, checkpoint
//! ```
//!
//! ## Letters in shapes
//! B rows, T tokens (columns), N loss tokens, V vocabulary, D model width, H query heads, K
//! key/value heads.
//!
//! ## Layers
//! A module imports only from modules to its left:
//! ```text
//! rng, contained, text, question ─▶ settings ─▶ tokenizer ─▶ engine ─▶ env ─▶ rollout ─▶ algo ─▶ trainer
//! ```
//!
//! ## Invariants
//! - There is one forward pass. Rollout, log-probs, critic and evaluation call the same function; a
//!   cache is an optional argument.
//! - Tokens in, tokens out: the ids that were sampled are the ids that are trained on. Nothing is
//!   decoded and encoded again.
//! - Masks come from the author of a segment, never from comparing ids with pad or eos.
//! - A mean over tokens is a sum divided by the token count of the whole optimizer step: the
//!   micro-batch size never changes a result.
//! - Tensors that record gradients exist only inside an update; everything else runs on the inner
//!   backend.
//! - Randomness is a function of (seed, purpose, step, episode, turn, position): [`rng::Key`].
#![warn(missing_docs)]

pub mod algo;
pub mod contained;
pub mod engine;
pub mod env;
pub mod question;
pub mod rng;
pub mod rollout;
pub mod settings;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod tokenizer;
pub mod trainer;
