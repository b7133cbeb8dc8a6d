//! Seeded normal numbers for new weights: a pure function of (seed, parameter, element).
//!
//! Contract: element i of a parameter never depends on how many numbers were drawn before it, so
//! the same seed gives the same weights on every device, backend and thread count, and adding a
//! parameter at the end of a model leaves the others as they were. Counter-based: the counter is
//! hashed by SplitMix64's finaliser, two hashes make one pair of normals by Box-Muller.
//!
//! [`NewParameters`] hands out burn parameters that are lazy: a parameter that a checkpoint
//! overwrites is never drawn, so loading a model costs neither the time (tens of nanoseconds an
//! element) nor the memory of a random one.

use burn::{
    module::{Param, ParamId},
    nn::{Embedding, Linear},
    tensor::{DType, Shape, Tensor, TensorData, backend::Backend},
};
use std::f64::consts::TAU;

/// The increment of SplitMix64 (2^64 divided by the golden ratio, odd).
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
/// 2^-53: the spacing of doubles in [0.5, 1), which turns 53 random bits into a uniform number.
const UNIFORM_STEP: f64 = 1.0 / (1u64 << 53) as f64;

/// `n` independent numbers from normal(0, `std`) for the parameter with the given index (its place
/// in the model's visiting order).
///
/// Elements 2k and 2k+1 are `std * sqrt(-2 ln u) * (cos, sin)(2 pi v)` with u in (0, 1], v in [0,
/// 1) hashed from (seed, parameter_index, k).
/// # Source
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (finaliser); Box and
/// Muller 1958.
pub fn normal(seed: u64, parameter_index: u64, n: usize, std: f64) -> Vec<f32> {
    let key = mix(mix(seed.wrapping_add(GOLDEN_GAMMA))
        .wrapping_add(parameter_index.wrapping_mul(GOLDEN_GAMMA)));
    let mut out = Vec::with_capacity(n + 1);
    for pair in 0..n.div_ceil(2) as u64 {
        // `1 - u` moves [0, 1) to (0, 1], where the logarithm is finite.
        let u = 1.0 - uniform(key, 2 * pair);
        let v = uniform(key, 2 * pair + 1);
        let radius = std * (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (TAU * v).sin_cos();
        out.push((radius * cos) as f32);
        out.push((radius * sin) as f32);
    }
    out.truncate(n);
    out
}

/// Makes the parameters of a new model in visiting order: each random one gets the next parameter
/// index.
pub struct NewParameters<'a, B: Backend> {
    seed: u64,
    /// Standard deviation of every random parameter (Hugging Face's `initializer_range`).
    std: f64,
    device: &'a B::Device,
    next_index: u64,
}

impl<'a, B: Backend> NewParameters<'a, B> {
    /// Parameters drawn from `seed`, one stream of numbers a parameter.
    pub fn new(seed: u64, std: f64, device: &'a B::Device) -> Self {
        Self { seed, std, device, next_index: 0 }
    }

    /// Weight normal(0, std), bias 0. weight `[d_input, d_output]`, bias `[d_output]`.
    pub fn linear(&mut self, d_input: usize, d_output: usize, has_bias: bool) -> Linear<B> {
        Linear {
            weight: self.normal([d_input, d_output]),
            bias: has_bias.then(|| self.constant([d_output], 0.0)),
        }
    }

    /// Weight normal(0, std), [n_embeddings, d_model].
    pub fn embedding(&mut self, n_embeddings: usize, d_model: usize) -> Embedding<B> {
        Embedding { weight: self.normal([n_embeddings, d_model]) }
    }

    /// The next random parameter, f32.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Param<Tensor<B, D>> {
        let (seed, std, index) = (self.seed, self.std, self.next_index);
        self.next_index += 1;
        self.lazy(shape, move |n| normal(seed, index, n, std))
    }

    /// A parameter filled with one value (norm weights 1, biases 0), f32. It takes no index.
    pub fn constant<const D: usize>(&self, shape: [usize; D], value: f32) -> Param<Tensor<B, D>> {
        self.lazy(shape, move |n| vec![value; n])
    }

    fn lazy<const D: usize>(
        &self,
        shape: [usize; D],
        values: impl Fn(usize) -> Vec<f32> + Send + Sync + 'static,
    ) -> Param<Tensor<B, D>> {
        let make = move |device: &B::Device, is_require_grad: bool| {
            let data = TensorData::new(values(shape.iter().product()), shape);
            Tensor::from_data(data, (device, DType::F32)).set_require_grad(is_require_grad)
        };
        Param::uninitialized(ParamId::new(), make, self.device.clone(), true, Shape::from(shape))
    }
}

/// Uniform in [0, 1) from the top 53 bits of the hashed counter.
fn uniform(key: u64, counter: u64) -> f64 {
    (mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA))) >> 11) as f64
        * UNIFORM_STEP
}

/// SplitMix64's finaliser: a bijection of u64 in which every input bit flips every output bit with
/// probability near one half.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_splitmix64() {
        // First outputs of SplitMix64 seeded with 1234567 (the published test vector of the
        // reference implementation, also on Rosetta Code).
        let expected =
            [6_457_827_717_110_365_317u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (i, want) in expected.into_iter().enumerate() {
            assert_eq!(
                mix(1_234_567u64.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN_GAMMA))),
                want
            );
        }
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        const N: usize = 200_000;
        let std = 0.02;
        let x = normal(7, 3, N, std);
        let moment =
            |k: i32| x.iter().map(|&v| (f64::from(v) / std).powi(k)).sum::<f64>() / N as f64;
        // Five standard errors of each sample moment: sqrt(Var(z^k) / N) with Var = 1, 2, 15, 96.
        for (k, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let tolerance = 5.0 * f64::sqrt(variance / N as f64);
            assert!((moment(k) - want).abs() < tolerance, "moment {k} = {}", moment(k));
        }
    }

    #[test]
    fn a_shorter_draw_is_a_prefix_of_a_longer_one() {
        assert_eq!(normal(1, 2, 5, 1.0), normal(1, 2, 1000, 1.0)[..5]);
        assert!(normal(1, 2, 0, 1.0).is_empty());
    }

    #[test]
    fn a_parameter_holds_the_numbers_of_its_index() {
        let device = Default::default();
        let mut new = NewParameters::<burn::backend::Flex>::new(5, 0.5, &device);
        let first = new.linear(3, 2, true);
        let second = new.embedding(4, 3);
        assert_eq!(first.weight.val().into_data().to_vec::<f32>().unwrap(), normal(5, 0, 6, 0.5));
        assert_eq!(first.bias.unwrap().val().into_data().to_vec::<f32>().unwrap(), [0.0; 2]);
        assert_eq!(second.weight.val().into_data().to_vec::<f32>().unwrap(), normal(5, 1, 12, 0.5));
    }

    #[test]
    fn seeds_and_parameters_give_uncorrelated_numbers() {
        const N: usize = 20_000;
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>() / N as f64
        };
        let base = normal(0, 0, N, 1.0);
        for other in [normal(0, 1, N, 1.0), normal(1, 0, N, 1.0), normal(1, 1, N, 1.0)] {
            assert!(dot(&base, &other).abs() < 5.0 / (N as f64).sqrt());
        }
    }
}
