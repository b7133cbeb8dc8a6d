//! Random numbers by (seed, purpose, step, episode, turn, position).
//!
//! Counter-based randomness: a [`Key`] is a 64-bit digest of the path that leads to a decision, and
//! a number is a pure function of (key, counter). Nothing is ever advanced, so a row's draws cannot
//! depend on its neighbours, on the batch size or on the order in which rows finish, and a resumed
//! run draws what the uninterrupted one would have drawn.
//!
//! The mixer is SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014), applied to the key and the counter one after the other.

/// Purpose of a random number. Two purposes never share a stream, even under the same seed and
/// step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Weight initialisation.
    Init = 1,
    /// The order of training questions or teacher episodes.
    Shuffle = 2,
    /// Sampling tokens in a training rollout.
    Rollout = 3,
    /// Sampling tokens of teacher episodes.
    Teacher = 4,
    /// Sampling tokens in an evaluation (unused when greedy).
    Eval = 5,
    /// The built-in world.
    World = 6,
    /// Levels and entry points of the nearest-neighbour graph, sampled benchmark queries.
    Index = 7,
    /// Resampling questions for the intervals of an evaluation.
    Bootstrap = 8,
    /// Sampling tokens in the episodes of ARCap (unused when greedy).
    Arcap = 9,
    /// DistiLLM: whose episodes a step learns from, which ones of the replay buffer, the held-out
    /// ones; sampling tokens of new ones.
    StudentOutputs = 10,
    /// Changes to valid files, for `dgpo fuzz`.
    Fuzz = 11,
}

/// A position in the tree of random decisions.
///
/// ```
/// use dgpo_core::rng::{Key, Purpose};
///
/// let key = Key::new(7, Purpose::Rollout).fold(3);
/// assert_eq!(key.uniform(0), key.uniform(0), "a number is a function of key and counter");
/// assert_ne!(key.uniform(0), key.fold(1).uniform(0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

/// SplitMix64's output function: a bijection of 64-bit words whose outputs pass BigCrush over
/// consecutive inputs.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The golden-ratio increment of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Key {
    /// The root key of a run.
    pub const fn new(seed: u64, purpose: Purpose) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN))).fold(purpose as u64)
    }

    /// The child key number `n`: a step, an episode, a turn.
    pub const fn fold(self, n: u64) -> Self {
        Self(mix(self.0.wrapping_add(GOLDEN) ^ mix(n.wrapping_mul(GOLDEN).wrapping_add(1))))
    }

    /// 64 random bits of this key at `counter`.
    pub const fn bits(self, counter: u64) -> u64 {
        self.fold(counter).0
    }

    /// A uniform number in [0, 1) with 53 random bits.
    pub fn uniform(self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number (Box-Muller on two uniforms of the key's children).
    pub fn normal(self, counter: u64) -> f64 {
        let pair = self.fold(counter);
        let radius = (-2.0 * (1.0 - pair.uniform(0)).ln()).sqrt();
        radius * (std::f64::consts::TAU * pair.uniform(1)).cos()
    }

    /// A uniform integer in `0..n` (n > 0). The bias of the multiply-shift is below n / 2^64.
    pub fn below(self, counter: u64, n: usize) -> usize {
        ((u128::from(self.bits(counter)) * n as u128) >> 64) as usize
    }

    /// A uniformly random order of `0..n` (Fisher-Yates).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_depends_on_every_part_of_its_path() {
        let at = |seed, purpose, step, position| Key::new(seed, purpose).fold(step).bits(position);
        let base = at(0, Purpose::Rollout, 0, 0);
        for other in [
            at(1, Purpose::Rollout, 0, 0),
            at(0, Purpose::Eval, 0, 0),
            at(0, Purpose::Rollout, 1, 0),
            at(0, Purpose::Rollout, 0, 1),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_numbers_have_the_mean_and_variance_of_the_unit_interval() {
        let key = Key::new(3, Purpose::World);
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| key.uniform(i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        // Standard errors: 0.289/sqrt(n) = 0.002 for the mean, about 0.0005 for the variance; five
        // of each.
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.0025, "variance {variance}");
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = Key::new(1, Purpose::Shuffle).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }
}
