//! dgpo: training compact language models to search like agents.
pub mod algo;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod data;
pub mod engine;
pub mod env;
pub mod eval;
pub mod hub;
pub mod retriever;
pub mod rng;
pub mod rollout;
pub mod tokenizer;
pub mod trainer;
