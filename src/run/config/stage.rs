//! Which parts of a run a stage goes through, and in which order.
//!
//! The order decides which checkpoint is the newest, which metrics a resumed run cuts off, and
//! which model a phase starts from: it is the stage's alone, since RL comes behind KD in one stage
//! and before it in another.
use dgpo_core::settings::Phase;
use serde::{Deserialize, Serialize};

/// Which phases a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Teacher episodes -> KD -> RL -> evaluation.
    Pipeline,
    /// Only the distillation phase (on teacher episodes or on trajectories from a file).
    Distill,
    /// Only the RL phase, from `model.student`.
    Rl,
    /// Only on-policy distillation: the student plays, the teacher corrects every token.
    Gkd,
    /// Distillation, then on-policy distillation.
    DistillGkd,
    /// RL, then distillation: the pipeline in inverted order.
    RlDistill,
    /// Language modelling on passages and trajectories (how the base student is made).
    Pretrain,
    /// Contrastive training of a retrieval encoder.
    Encoder,
}

impl Stage {
    /// Phases of a run, in order. Episodes of the teacher are played where the recipe names
    /// no others.
    pub fn phases(self) -> &'static [Phase] {
        match self {
            Self::Pipeline => &[Phase::Demos, Phase::Kd, Phase::Rl, Phase::Eval],
            Self::Distill => &[Phase::Demos, Phase::Kd, Phase::Eval],
            Self::Rl => &[Phase::Rl, Phase::Eval],
            Self::Gkd => &[Phase::Gkd, Phase::Eval],
            Self::DistillGkd => &[Phase::Demos, Phase::Kd, Phase::Gkd, Phase::Eval],
            Self::RlDistill => &[Phase::Rl, Phase::Demos, Phase::Kd, Phase::Eval],
            Self::Pretrain => &[Phase::Pretrain],
            Self::Encoder => &[Phase::Encoder],
        }
    }

    /// The phases that train the student, in order: each goes on with the model that the one before
    /// left, the first with `model.student`.
    pub fn training_phases(self) -> impl Iterator<Item = Phase> {
        self.phases()
            .iter()
            .copied()
            .filter(|phase| matches!(phase, Phase::Pretrain | Phase::Kd | Phase::Gkd | Phase::Rl))
    }

    /// Position of a phase among those of the stage. A phase that the stage lacks (the recipe was
    /// edited) comes before all others.
    pub fn place(self, phase: Phase) -> Option<usize> {
        self.phases().iter().position(|&known| known == phase)
    }

    /// True if the stage plays episodes with the student and rewards them.
    pub fn has_rl(self) -> bool {
        self.place(Phase::Rl).is_some()
    }
    /// True if the stage distils teacher episodes into the student.
    pub fn has_distillation(self) -> bool {
        self.place(Phase::Kd).is_some()
    }
    /// True if the stage distils the teacher into the student on the student's own episodes.
    pub fn has_gkd(self) -> bool {
        self.place(Phase::Gkd).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_found_by_its_name() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.as_str()), Some(phase));
        }
    }

    #[test]
    fn the_stage_decides_whether_rl_or_distillation_comes_first() {
        let training = |stage: Stage| stage.training_phases().collect::<Vec<_>>();
        assert_eq!(training(Stage::Pipeline), [Phase::Kd, Phase::Rl]);
        assert_eq!(training(Stage::RlDistill), [Phase::Rl, Phase::Kd]);
        assert_eq!(training(Stage::DistillGkd), [Phase::Kd, Phase::Gkd]);
        assert!(Stage::Pipeline.place(Phase::Kd) < Stage::Pipeline.place(Phase::Rl));
        assert!(Stage::RlDistill.place(Phase::Rl) < Stage::RlDistill.place(Phase::Demos));
        assert!(
            Stage::Gkd.place(Phase::Rl) < Stage::Gkd.place(Phase::Gkd),
            "what a stage lacks lies behind it"
        );
    }
}
