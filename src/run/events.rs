//! Events that a long run reports while it works, and the request to stop it.
//!
//! The trainer calls an [`Observer`] and prints nothing; the command line draws bars or lines from
//! the same events. [`Stop`] is read between steps: a phase that sees it writes a checkpoint and
//! returns, so that no step is ever half done.
use dgpo_core::settings::Phase;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Something worth showing. Steps count from 1: step n is reported when n steps of the phase are
/// done.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A phase begins, or continues after `done` steps of an earlier process. `total` 0 = unknown.
    PhaseStarted {
        phase: Phase,
        done: usize,
        total: usize,
    },
    /// Step `step` of `total` is done. Metrics carry their full names
    /// (`dgpo_core::trainer::metrics`).
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

/// A request to stop at the end of the current step, shared between the run and its callers.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Requests the stop. Returns true if it had been requested before.
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
    fn a_stop_request_reaches_every_holder() {
        let (run, hand) = (Stop::default(), Stop::default());
        let other = run.clone();
        assert!(!other.request());
        assert!(run.is_requested() && other.request());
        assert!(!hand.is_requested());
    }
}
