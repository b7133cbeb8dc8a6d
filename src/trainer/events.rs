//! What a long run tells the outside while it works, and how the outside tells it to stop.
//!
//! The trainer calls an [`Observer`] and prints nothing; the command line draws bars or lines from the same events. [`Stop`] is read between
//! steps: a phase that sees it writes a checkpoint and returns, so that no step is ever half done.
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A part of a run, in the order in which a pipeline goes through them. The order decides which checkpoint is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Contrastive training of the retrieval encoder.
    Encoder,
    /// Language modelling.
    Pretrain,
    /// The teacher plays questions.
    Demos,
    /// Distillation on teacher episodes.
    Kd,
    /// PPO.
    Rl,
    /// Evaluation on held-out questions.
    Eval,
}

impl Phase {
    pub const ALL: [Self; 6] = [Self::Encoder, Self::Pretrain, Self::Demos, Self::Kd, Self::Rl, Self::Eval];

    /// The name in metrics, checkpoint folders and progress lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Pretrain => "pretrain",
            Self::Demos => "demos",
            Self::Kd => "kd",
            Self::Rl => "rl",
            Self::Eval => "eval",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something worth showing. Steps count from 1: step n is reported when n steps of the phase are done.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A phase begins, or goes on behind `done` steps of an earlier process. `total` 0 = unknown.
    PhaseStarted {
        phase: Phase,
        done: usize,
        total: usize,
    },
    /// Step `step` of `total` is done. Metrics carry their full names (see `trainer::metrics`).
    Step {
        phase: Phase,
        step: usize,
        total: usize,
        metrics: &'a [(&'static str, f64)],
    },
    /// A sentence for the reader of the log.
    Message(&'a str),
    /// A checkpoint is complete on disk.
    CheckpointSaved {
        path: &'a Path,
    },
    PhaseDone {
        phase: Phase,
    },
}

/// Receives the events of a run, in order, on the thread that trains.
pub type Observer<'a> = dyn FnMut(Event<'_>) + 'a;

/// A request to stop at the next step's end, shared between the run and whoever may ask.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks. Returns whether somebody had asked before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
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
    fn a_stop_request_reaches_every_holder() {
        let (run, hand) = (Stop::default(), Stop::default());
        let other = run.clone();
        assert!(!other.request());
        assert!(run.is_requested() && other.request());
        assert!(!hand.is_requested());
    }
}
