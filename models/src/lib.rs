//! One decoder (Llama 3; Qwen2.5 is the same plus QKV bias), the BERT encoder, KV cache, heads and
//! checkpoints.
//!
//! No words of reinforcement learning here: tokens in, hidden states, log-probs and values out.
//! Modules write `impl<B: Backend>`; the struct fields are named so that the path of a parameter is
//! its Hugging Face name. Letters of all shapes: B rows, T tokens, N = B T tokens of all rows, D
//! model, H heads, K kv heads, hd the size of a head, V vocabulary.
#![warn(missing_docs)]

pub mod bert;
pub mod cache;
pub mod config;
pub mod decoder;
mod error;
pub mod files;
pub mod heads;
pub mod init;
mod linear;
pub mod norm;
pub mod rope;
pub mod suggest;
pub mod weights;

pub use error::{ModelError, TensorProblem};

use burn::tensor::backend::AutodiffBackend;
use dgpo_kernels::KernelOps;

/// Every bound a model needs, in one name.
pub trait Backend: burn::tensor::backend::Backend + KernelOps {}
impl<B: burn::tensor::backend::Backend + KernelOps> Backend for B {}

/// A backend that records gradients, over an inner one that does not.
pub trait TrainBackend: AutodiffBackend<InnerBackend: Backend> + Backend {}
impl<B: AutodiffBackend<InnerBackend: Backend> + Backend> TrainBackend for B {}
