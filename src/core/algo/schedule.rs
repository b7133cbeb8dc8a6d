//! The learning rate as a pure function of (step, number of steps): linear warm-up, then constant,
//! cosine or linear to 0.
use crate::settings::{AdamWRecipe, Decay};

/// Learning rate of step `step` (from 0) of `n_steps`.
///
/// Warm-up step i of W uses lr · (i + 1)/W; with p = (step - W)/(n_steps - W) after it, cosine is
/// lr · (1 + cos(pi p))/2 and linear lr · (1 - p).
/// # Source
/// `method §4.8`
// Differs from the reference: its first warm-up step has rate 0, a whole rollout thrown away.
pub fn learning_rate(recipe: &AdamWRecipe, step: usize, n_steps: usize) -> f64 {
    // Rounded, so that 28.5 % of 1000 steps is 285 whatever the last bit of the product is.
    let n_warmup = (recipe.warmup * n_steps as f64).round() as usize;
    if step < n_warmup {
        return recipe.lr * (step + 1) as f64 / n_warmup as f64;
    }
    let progress =
        ((step - n_warmup) as f64 / n_steps.saturating_sub(n_warmup).max(1) as f64).min(1.0);
    recipe.lr
        * match recipe.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(warmup: f64, decay: Decay) -> AdamWRecipe {
        AdamWRecipe {
            lr: 2.0,
            warmup,
            decay,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
        }
    }

    #[test]
    fn the_published_warm_up_ends_at_step_285_of_1000() {
        let recipe = recipe(0.285, Decay::Constant);
        assert_eq!(learning_rate(&recipe, 0, 1000), 2.0 / 285.0);
        assert_eq!(learning_rate(&recipe, 284, 1000), 2.0);
        assert_eq!(learning_rate(&recipe, 999, 1000), 2.0);
    }

    #[test]
    fn cosine_and_linear_are_at_half_in_the_middle_and_end_near_zero() {
        for decay in [Decay::Cosine, Decay::Linear] {
            let recipe = recipe(0.0, decay);
            assert_eq!(learning_rate(&recipe, 0, 10), 2.0);
            assert!((learning_rate(&recipe, 5, 10) - 1.0).abs() < 1e-12);
            assert!(learning_rate(&recipe, 10, 10).abs() < 1e-12);
        }
    }

    #[test]
    fn no_step_and_all_warm_up_are_finite() {
        assert_eq!(learning_rate(&recipe(0.0, Decay::Constant), 0, 0), 2.0);
        assert_eq!(learning_rate(&recipe(1.0, Decay::Cosine), 3, 4), 2.0);
    }
}
