//! Shuffling with a cursor: epochs of a seeded permutation, resumable by (epoch, cursor).
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampler {
    pub seed: u64,
    pub n_items: usize,
    pub epoch: u64,
    pub cursor: usize,
}
impl Sampler {
    pub fn new(seed: u64, n_items: usize) -> Self {
        Self { seed, n_items, epoch: 0, cursor: 0 }
    }
    /// The next `n` indexes; an epoch's end runs on into the next epoch's permutation.
    pub fn next(&mut self, _n: usize) -> Vec<usize> {
        todo!()
    }
}
