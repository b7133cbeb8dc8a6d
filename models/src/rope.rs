//! Rotary position embeddings: half-split layout, f32 tables, Llama 3 frequency scaling.
//!
//! Pair i of a head is (x_i, x_{i + hd/2}) and turns by the angle position * inv_freq_i. burn's
//! `RotaryEncoding` pairs neighbours (2i, 2i+1), which is another permutation than the weights of
//! Qwen and Llama were trained with.
//!
//! Tables are computed on the host for the positions of a pass (about 30 ns an angle, once for all
//! layers and heads) and hold each angle once, [positions, hd/2]. Angles are products in f32, as in
//! the reference; their cosine is exact to rounding even for large angles, which a GPU's is not.
use crate::{
    Backend,
    config::{DecoderConfig, RopeScaling},
};
use burn::tensor::{DType, Tensor, TensorData};
use dgpo_kernels::rotary::rotary;
use std::f32::consts::TAU;

/// Inverse frequencies after scaling, [hd/2]: theta^(-2i/hd), for Llama 3 divided by `factor` where
/// the wavelength is long.
///
/// With L = original_max_position_embeddings and wavelength w = 2 pi / f: f stays for w < L /
/// high_freq_factor, becomes f / factor for w > L / low_freq_factor, and in between (1 - s) f /
/// factor + s f with s = (L / w - low_freq_factor) / (high_freq_factor - low_freq_factor).
/// # Source
/// `transformers/modeling_rope_utils.py:_compute_llama3_parameters`
pub fn inv_freq(config: &DecoderConfig) -> Vec<f32> {
    (0..config.head_dim / 2)
        .map(|i| {
            // In f32 step by step, as the reference does it: another last bit of a frequency moves
            // an angle at position 2000 by 1e-4.
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let wavelength_over_tau = config.rope_theta.powf(f64::from(exponent)) as f32;
            scaled(1.0 / wavelength_over_tau, &config.rope_scaling)
        })
        .collect()
}

fn scaled(frequency: f32, scaling: &RopeScaling) -> f32 {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    } = *scaling
    else {
        return frequency;
    };
    let original_length = original_max_position_embeddings as f32;
    let [factor, low_freq_factor, high_freq_factor] =
        [factor, low_freq_factor, high_freq_factor].map(|x| x as f32);
    let wavelength = TAU / frequency;
    if wavelength < original_length / high_freq_factor {
        frequency
    } else if wavelength > original_length / low_freq_factor {
        frequency / factor
    } else {
        let smooth =
            (original_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// (cos, sin) of every position, each [positions, hd/2] in row-major order.
pub fn tables(config: &DecoderConfig, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let n_distinct = positions.iter().max().map_or(0, |max| max + 1);
    if n_distinct >= positions.len() {
        return angles(config, positions.iter().copied());
    }
    // A batch in which rows repeat positions: each angle once, then copies.
    let (cos, sin) = angles(config, 0..n_distinct);
    let half = config.head_dim / 2;
    let spread = |table: &[f32]| {
        positions
            .iter()
            .flat_map(|position| &table[position * half..(position + 1) * half])
            .copied()
            .collect()
    };
    (spread(&cos), spread(&sin))
}

fn angles(config: &DecoderConfig, positions: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
    let inv_freq = inv_freq(config);
    positions
        .flat_map(|position| {
            inv_freq.iter().map(move |frequency| f64::from(position as f32 * frequency))
        })
        .map(|angle| (angle.cos() as f32, angle.sin() as f32))
        .unzip()
}

/// The tables of one forward pass on the device.
#[derive(Clone, Debug)]
pub struct Rotation<B: Backend> {
    /// [P, hd/2]; token n uses row n mod P.
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotation<B> {
    /// For `positions` of P tokens. P = T when all rows of a batch have the same positions, else P
    /// = B T.
    pub fn new(config: &DecoderConfig, positions: &[usize], device: &B::Device) -> Self {
        let (cos, sin) = tables(config, positions);
        let shape = [positions.len(), config.head_dim / 2];
        let upload =
            |values| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        Self { cos: upload(cos), sin: upload(sin) }
    }

    /// Turns every head of every token. x [N, heads * hd] -> the same shape and dtype.
    pub fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rotary(x, self.cos.clone(), self.sin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;

    fn config(rope_scaling: RopeScaling) -> DecoderConfig {
        DecoderConfig {
            family: Family::Llama,
            vocab_size: 8,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 4,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-6,
            rope_theta: 100.0,
            rope_scaling,
            is_tied: true,
            has_qkv_bias: false,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: vec![],
        }
    }

    #[test]
    fn frequencies_fall_geometrically() {
        // 100^(-0/4), 100^(-2/4)
        assert_eq!(inv_freq(&config(RopeScaling::None)), [1.0, 0.1]);
    }

    #[test]
    fn llama3_keeps_short_and_divides_long_wavelengths() {
        // Wavelengths 2 pi and 20 pi = 62.8. With L = 64: short below 16, long above 32.
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 2.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        assert_eq!(inv_freq(&config(scaling)), [1.0, 0.1 / 8.0]);
    }

    #[test]
    fn repeated_positions_have_the_tables_of_single_ones() {
        let config = config(RopeScaling::None);
        let (cos, sin) = tables(&config, &[1, 0, 1, 2, 2]);
        let row = |position: usize| tables(&config, &[position]);
        assert_eq!(cos, [row(1).0, row(0).0, row(1).0, row(2).0, row(2).0].concat());
        assert_eq!(sin, [row(1).1, row(0).1, row(1).1, row(2).1, row(2).1].concat());
    }

    #[test]
    fn tables_hold_the_cosine_and_sine_of_each_angle() {
        let (cos, sin) = tables(&config(RopeScaling::None), &[0, 3]);
        let want = |f: fn(f64) -> f64| [f(0.0), f(0.0), f(3.0), f(0.3)];
        for (got, want) in cos.iter().zip(want(f64::cos)).chain(sin.iter().zip(want(f64::sin))) {
            assert!((f64::from(*got) - want).abs() < 1e-7);
        }
    }
}
