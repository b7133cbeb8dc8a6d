//! The form of whitening that DGPO does not use.
use dgpo_core::algo::advantage::{WHITEN_EPS, masked_mean_and_variance};

/// As `dgpo_core::algo::advantage::whiten`, but the mean stays: only the scale becomes 1.
pub fn whiten_keep_mean(values: &mut [f32], mask: &[bool]) {
    if let Some((mean, variance)) = masked_mean_and_variance(values, mask) {
        let scale = 1.0 / (variance + WHITEN_EPS).sqrt();
        values.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * scale + mean) as f32);
    }
}
