//! DistiLLM's adaptive scheduler: the probability φ that a distillation step learns from the
//! student's own episodes (method §5.4).
//!
//! φ rises only while the student gets worse on held-out teacher episodes: as long as those still
//! teach it something, they are used. With r ~ U(0, 1), step i of n (from 1) and a replay buffer,
//!
//! ```text
//! r < φ (1 − i/n), or r < φ and a buffer with room    the student plays; its episodes are buffered
//! r < φ otherwise                                     episodes of the buffer
//! r ≥ φ                                               teacher episodes
//! ```
//! # Source
//! `jongwooko/distillm:finetune.py` (`adaptive_threshold`, `samp_threshold`), `distillm/buffer.py`
use crate::settings::StudentOutputsRecipe;
use serde::{Deserialize, Serialize};

/// The author of the episodes that a step learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The teacher, offline.
    Teacher,
    /// The student as it is now.
    Student,
    /// The student as it was: episodes of the replay buffer.
    Replay,
}

impl Author {
    /// 0, 1, 2: as metrics record it.
    pub fn number(self) -> f64 {
        match self {
            Self::Teacher => 0.0,
            Self::Student => 1.0,
            Self::Replay => 2.0,
        }
    }
}

/// The probability φ and the held-out loss that moves it. Part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudentShare {
    /// φ.
    pub share: f64,
    /// The held-out loss that a new one is compared with; `None` before the first.
    pub prev_loss: Option<f64>,
}

impl StudentShare {
    /// φ and no loss yet.
    pub fn new(recipe: &StudentOutputsRecipe) -> Self {
        Self { share: recipe.initial_share, prev_loss: None }
    }

    /// Takes the loss on held-out teacher episodes into account: φ rises where the loss has risen
    /// by `loss_eps` since φ rose last. A loss that is not finite is ignored.
    pub fn observe(&mut self, loss: f64, recipe: &StudentOutputsRecipe) {
        match self.prev_loss {
            _ if !loss.is_finite() => {}
            None => self.prev_loss = Some(loss),
            // A loss that fell is not kept, as in the published script: the comparison stays with
            // the highest so far.
            Some(prev_loss) if loss >= prev_loss + recipe.loss_eps => {
                self.share = (self.share + recipe.increment).min(1.0);
                self.prev_loss = Some(loss);
            }
            Some(_) => {}
        }
    }

    /// The author of the episodes of step `step` (from 0) of `n_steps`, decided by a number `r`
    /// drawn from [0, 1).
    pub fn author(&self, r: f64, step: usize, n_steps: usize, is_buffer_full: bool) -> Author {
        let share_of_new = self.share * (1.0 - (step + 1) as f64 / n_steps as f64);
        match r < self.share {
            false => Author::Teacher,
            true if r < share_of_new || !is_buffer_full => Author::Student,
            true => Author::Replay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> StudentOutputsRecipe {
        StudentOutputsRecipe {
            initial_share: 0.25,
            increment: 0.5,
            loss_eps: 0.125,
            ..StudentOutputsRecipe::default()
        }
    }

    #[test]
    fn the_share_rises_only_where_the_held_out_loss_rose_enough_and_never_above_one() {
        let mut share = StudentShare::new(&recipe());
        let mut after = |loss: f64| {
            share.observe(loss, &recipe());
            (share.share, share.prev_loss)
        };
        assert_eq!(after(f64::NAN), (0.25, None));
        assert_eq!(after(2.0), (0.25, Some(2.0)), "the first value is only remembered");
        assert_eq!(after(2.0625), (0.25, Some(2.0)), "less than loss_eps");
        assert_eq!(after(1.0), (0.25, Some(2.0)), "a loss that fell is not remembered");
        assert_eq!(after(1.5), (0.25, Some(2.0)), "so a rise from there does not count");
        assert_eq!(after(2.125), (0.75, Some(2.125)), "exactly loss_eps counts");
        assert_eq!(after(2.25), (1.0, Some(2.25)), "1.25 would be more than all");
        assert_eq!(after(f64::INFINITY), (1.0, Some(2.25)));
    }

    #[test]
    fn a_step_is_the_teachers_from_the_share_on() {
        let share = StudentShare { share: 0.5, prev_loss: None };
        for is_full in [false, true] {
            assert_eq!(share.author(0.5, 0, 10, is_full), Author::Teacher);
            assert_eq!(share.author(0.99, 9, 10, is_full), Author::Teacher);
            assert_ne!(share.author(0.49, 0, 10, is_full), Author::Teacher);
        }
    }

    #[test]
    fn new_episodes_become_rarer_over_training_once_the_buffer_is_full() {
        let share = StudentShare { share: 0.5, prev_loss: None };
        // Step 3 of 10 (from 0) is the fourth: new below 0.5 · 0.6.
        assert_eq!(share.author(0.29, 3, 10, true), Author::Student);
        assert_eq!(share.author(0.31, 3, 10, true), Author::Replay);
        assert_eq!(share.author(0.31, 3, 10, false), Author::Student, "the buffer is filled first");
        assert_eq!(share.author(0.0, 9, 10, true), Author::Replay, "the last step plays nothing");
    }

    #[test]
    fn without_a_share_every_step_is_the_teachers() {
        let share = StudentShare::new(&StudentOutputsRecipe::default());
        assert_eq!(share.author(0.0, 0, 10, false), Author::Teacher);
    }
}
