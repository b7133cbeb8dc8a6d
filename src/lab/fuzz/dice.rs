//! Random choices of one case: a key and a counter, so that a case is the same whichever process
//! works on it.
use dgpo_core::rng::{Key, Purpose};

pub(super) struct Dice {
    key: Key,
    n_thrown: u64,
}

impl Dice {
    /// Those of a case.
    pub(super) fn new(seed: u64, reader: u64, case: u64) -> Self {
        Self { key: Key::new(seed, Purpose::Fuzz).fold(reader).fold(case), n_thrown: 0 }
    }

    /// In `0..n`; 0 where there is nothing to choose from.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.n_thrown += 1;
        self.key.below(self.n_thrown, n.max(1))
    }

    /// True once in `n` times.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    pub(super) fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
