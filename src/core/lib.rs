//! The heart of DGPO.
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
