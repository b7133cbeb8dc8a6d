//! # dgpo: training compact language models to search like agents
//!
//! A student of half a billion parameters learns to interleave `<think>`, `<search>`,
//! `<information>` and `<answer>`: first by distillation from a teacher's *correct* episodes (KD),
//! then by PPO in which only its *wrong* episodes are pulled towards the teacher (DGPO,
//! Distillation-Guided Policy Optimization). Everything it takes is here, in Rust on burn.
//!
//! ## Reading order
//! 1. [`rollout::episode`]: what an episode is, token by token, with one worked example. The types
//!    everyone meets.
//! 2. [`env`]: the protocol. Text in, observation out.
//! 3. [`algo`]: every equation as a pure function: reward, KL, advantages, PPO, distillation.
//! 4. [`trainer::rl`]: one RL step, in the order of the method; [`trainer::distill`]: one
//!    distillation step; [`trainer::guards`]: when a run is stopped; [`pipeline`]: phases made of
//!    them.
//! 5. [`engine`], [`retriever`]: how episodes are played fast, and where passages come from.
//! 6. [`report`]: what a finished run looks like; [`reproduce`]: all rows of the paper beside its
//!    numbers.
//! 7. `dgpo_models` and `dgpo_kernels` (crates beside this one): the decoder, the encoder,
//!    attention with its backward pass.
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
//! kernels ─▶ models ─▶ engine ─┐
//! rng, contained, hub, config ─▶ data ─▶ tokenizer ─▶ retriever ─▶ env ─▶ rollout ─▶ algo ─▶ trainer ─▶ eval ─▶ pipeline ─▶ report ─▶ reproduce ─▶ conformance ─▶ portability ─▶ fuzz ─▶ bench ─▶ cli
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
//! - A checkpoint is everything, and a resumed run is the same run.
//! - Only `cli` prints.
pub mod algo;
pub mod bench;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod contained;
pub mod data;
pub mod engine;
pub mod env;
pub mod eval;
pub mod fuzz;
pub mod hub;
pub mod pipeline;
pub mod portability;
pub mod report;
pub mod reproduce;
pub mod retriever;
pub mod rng;
pub mod rollout;
pub mod tokenizer;
pub mod trainer;
