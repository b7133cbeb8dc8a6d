//! Every equation, as pure functions: no I/O, no model, no tokenizer.
pub mod advantage;
pub mod distill;
pub mod kl;
pub mod ppo;
pub mod reward;
pub mod schedule;
