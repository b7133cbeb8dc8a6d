//! Guards: seven symptoms of a run that goes wrong, read off the metrics of its steps.
//!
//! | symptom | metric | alarm |
//! |---|---|---|
//! | not finite | updates skipped | more than `max_skipped` in a row, or any in the last step |
//! | entropy collapse | entropy of the policy | below `min_entropy_share` of the first mean |
//! | repetition | repeated 8-grams of a response | above `max_repetition` |
//! | invalid actions | their number an episode | `max_invalid_actions` above the first mean |
//! | reward collapse | reward | below `min_reward_share` of the best mean, if above 0.1 |
//! | log-prob mismatch | sampler's against trainer's log-probs | above `max_logprob_diff` |
//! | lost searches | fraction of the searching episodes that were lost | above `max_lost_share` |
//!
//! The first alarm is also raised where the student cannot play because its logits are not finite
//! ([`Guards::unplayable`]). All but the first compare the mean over the last `guards.window`
//! steps; a phase is looked at by the metrics it has. Pure: no clock, no I/O. The state is a part
//! of the checkpoint, so that a run that was killed and resumed raises the same alarms at the same
//! steps.
use super::metrics::{
    ENTROPY, INVALID_ACTIONS, LOGPROB_DIFF_MEAN, LOST_SHARE, Metrics, REPETITION, REWARD,
    SKIPPED_UPDATES,
};
use crate::settings::{GuardAction, GuardsRecipe, Phase};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt};

/// Best reward below which no collapse is reported: a few lucky answers come and go.
const REWARD_WORTH_KEEPING: f64 = 0.1;

/// State of the guards of one phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guards {
    skipped: SkippedRun,
    entropy: Watch,
    repetition: Watch,
    invalid_actions: Watch,
    reward: Watch,
    logprob_diff: Watch,
    lost_share: Watch,
}

/// Consecutive steps that skipped updates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct SkippedRun {
    /// Updates skipped up to the last step; `None` before the first.
    total: Option<usize>,
    n_updates: usize,
    /// First step of the run.
    since: usize,
    is_alarmed: bool,
}

/// The last steps of a metric. Kept in f32, which JSON gives back to the last bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Watch {
    /// (step, value), oldest first. A value that was not finite is left out: its step skipped an
    /// update, which has a guard of its own.
    recent: VecDeque<(usize, f32)>,
    /// (step, mean of the window up to it) of the mean that later ones are compared with: the
    /// first, or the best.
    reference: Option<(usize, f32)>,
    is_alarmed: bool,
}

/// The symptoms of a run that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Losses or gradients were not finite too often in a row.
    NotFinite,
    /// The policy's entropy fell below its threshold.
    EntropyCollapse,
    /// The agent writes in loops.
    Repetition,
    /// Turns without an action became frequent.
    InvalidActions,
    /// The reward fell far below what it had been.
    RewardCollapse,
    /// Rollout and update compute different log-probs.
    LogProbMismatch,
    /// Searches fail.
    LostSearches,
}

/// The symptoms that are read off means over a window.
const WINDOWED: [Symptom; 6] = [
    Symptom::EntropyCollapse,
    Symptom::Repetition,
    Symptom::InvalidActions,
    Symptom::RewardCollapse,
    Symptom::LogProbMismatch,
    Symptom::LostSearches,
];

/// An alarm of a guard.
#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    /// The phase that was running.
    pub phase: Phase,
    /// The step of the alarm.
    pub step: usize,
    /// The symptom that was seen.
    pub sign: Symptom,
    /// Value and threshold, in words.
    pub seen: String,
    /// The first step whose own figure was beyond the threshold.
    pub first_bad_step: usize,
}

impl Alarm {
    /// The symptom and its step.
    pub fn what(&self) -> String {
        let Self { phase, step, sign, seen, first_bad_step } = self;
        format!("{phase} step {step}: {}: {seen}; first bad step {first_bad_step}", sign.name())
    }

    /// The key of the learning rate to lower, where that helps.
    pub fn rate_to_lower(&self) -> Option<&'static str> {
        match (self.sign, self.phase) {
            (Symptom::LogProbMismatch, _) => None,
            (_, Phase::Rl) => Some("optim.actor.lr"),
            _ => Some("optim.distill.lr"),
        }
    }

    /// The likely cause, and what to change.
    pub fn advice(&self) -> String {
        let (cause, keys) = self.sign.cause_and_keys(self.phase);
        format!(
            "likely cause: {cause}; hint: {keys} ({} is the threshold{})",
            self.sign.threshold_key(),
            self.sign.of_what()
        )
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.advice())
    }
}

impl Guards {
    /// True if a student is trained in this phase; the others play a teacher, train a retriever, or
    /// only measure.
    pub fn watches(phase: Phase) -> bool {
        !matches!(phase, Phase::Demos | Phase::Encoder | Phase::Eval)
    }

    /// Records a finished step (`step` of `total`, counted from 1) and returns the alarms it
    /// raises; each is raised once, until its figure has recovered.
    pub fn observe(
        &mut self,
        recipe: &GuardsRecipe,
        phase: Phase,
        (step, total): (usize, usize),
        metrics: &Metrics,
    ) -> Vec<Alarm> {
        if recipe.action == GuardAction::Off || !Self::watches(phase) {
            return Vec::new();
        }
        let mut alarms = Vec::new();
        if let Some(n_skipped) = metrics.get(SKIPPED_UPDATES) {
            let seen = self.skipped.look(recipe, (step, total), n_skipped as usize);
            alarms.extend(seen.map(|(seen, first_bad_step)| Alarm {
                phase,
                step,
                sign: Symptom::NotFinite,
                seen,
                first_bad_step,
            }));
        }
        for sign in WINDOWED {
            let value = metrics.get(sign.metric()).filter(|value| value.is_finite());
            let seen =
                value.and_then(|value| self.watch(sign).look(sign, recipe, step, value as f32));
            alarms.extend(seen.map(|(seen, first_bad_step)| Alarm {
                phase,
                step,
                sign,
                seen,
                first_bad_step,
            }));
        }
        if recipe.action == GuardAction::Stop {
            // The run ends after this step. When it is resumed, the alarm is known and the recipe
            // perhaps changed. A guard that still compared with the better steps would stop the run
            // again at once, so its state is reset. The other guards keep theirs.
            for alarm in &alarms {
                match alarm.sign {
                    Symptom::NotFinite => {
                        self.skipped =
                            SkippedRun { total: self.skipped.total, ..SkippedRun::default() }
                    }
                    sign => *self.watch(sign) = Watch::default(),
                }
            }
        }
        alarms
    }

    /// The alarm of a student that cannot play after `step`: `why` names the logits that are not
    /// finite. No threshold applies.
    pub fn unplayable(&self, phase: Phase, step: usize, why: &str) -> Alarm {
        // Skipped updates change no weight, so the damage was done before the first of them, or by
        // the last update where none was skipped.
        let first_bad_step = if self.skipped.n_updates > 0 { self.skipped.since } else { step };
        Alarm {
            phase,
            step,
            sign: Symptom::NotFinite,
            seen: format!(
                "the student cannot play: {why} (nor can any checkpoint from the first bad step \
                 on)"
            ),
            first_bad_step,
        }
    }

    fn watch(&mut self, sign: Symptom) -> &mut Watch {
        match sign {
            Symptom::NotFinite => unreachable!("counted, not a mean over a window"),
            Symptom::EntropyCollapse => &mut self.entropy,
            Symptom::Repetition => &mut self.repetition,
            Symptom::InvalidActions => &mut self.invalid_actions,
            Symptom::RewardCollapse => &mut self.reward,
            Symptom::LogProbMismatch => &mut self.logprob_diff,
            Symptom::LostSearches => &mut self.lost_share,
        }
    }
}

impl SkippedRun {
    /// The alarm of skipped updates, if there is a new one. `n_skipped` counts from the start of
    /// the phase.
    fn look(
        &mut self,
        recipe: &GuardsRecipe,
        (step, total): (usize, usize),
        n_skipped: usize,
    ) -> Option<(String, usize)> {
        // A checkpoint that was written without guards does not say how many of these are old; all
        // are taken as old.
        let before = self.total.replace(n_skipped).unwrap_or(if step == 1 { 0 } else { n_skipped });
        let n_new = n_skipped.saturating_sub(before);
        if n_new == 0 {
            (self.n_updates, self.is_alarmed) = (0, false);
            return None;
        }
        if self.n_updates == 0 {
            self.since = step;
        }
        self.n_updates += n_new;
        // After the last step no other update can make up for a skipped one.
        let is_beyond = self.n_updates > recipe.max_skipped || step == total;
        let is_news =
            recipe.max_skipped > 0 && is_beyond && !std::mem::replace(&mut self.is_alarmed, true);
        let Self { n_updates, since, .. } = *self;
        is_news.then(|| {
            let seen =
                format!("{n_updates} updates were skipped without a step behind them that learned");
            (format!("{seen}, because a loss or a gradient was not a finite number"), since)
        })
    }
}

impl Watch {
    /// The alarm of a windowed symptom, if there is a new one.
    fn look(
        &mut self,
        sign: Symptom,
        recipe: &GuardsRecipe,
        step: usize,
        value: f32,
    ) -> Option<(String, usize)> {
        self.recent.push_back((step, value));
        while self.recent.len() > recipe.window {
            self.recent.pop_front();
        }
        if self.recent.len() < recipe.window {
            return None;
        }
        let mean = self.recent.iter().map(|&(_, value)| f64::from(value)).sum::<f64>()
            / self.recent.len() as f64;
        let (limit, than) = self.limit(sign, recipe, step, mean)?;
        let is_beyond = |value: f64| if sign.is_fall() { value < limit } else { value > limit };
        if !is_beyond(mean) {
            self.is_alarmed = false;
            return None;
        }
        if std::mem::replace(&mut self.is_alarmed, true) {
            return None;
        }
        // The mean is beyond the limit, so at least one of its values is.
        let first = self
            .recent
            .iter()
            .find(|&&(_, value)| is_beyond(f64::from(value)))
            .map_or(step, |&(step, _)| step);
        let steps = if recipe.window == 1 {
            "this step".to_owned()
        } else {
            format!("the last {} steps", recipe.window)
        };
        Some((format!("mean {} of {steps} is {}, {than}", sign.quantity(), figure(mean)), first))
    }

    /// The limit of the mean, as a number and in words; `None` where the guard is off or has no
    /// reference to compare with.
    fn limit(
        &mut self,
        sign: Symptom,
        recipe: &GuardsRecipe,
        step: usize,
        mean: f64,
    ) -> Option<(f64, String)> {
        let threshold = sign.threshold(recipe);
        if threshold == 0.0 {
            return None;
        }
        let new = (step, mean as f32);
        match sign {
            Symptom::NotFinite
            | Symptom::Repetition
            | Symptom::LogProbMismatch
            | Symptom::LostSearches => Some((threshold, format!("above {threshold}"))),
            Symptom::EntropyCollapse => {
                let first = f64::from(self.reference.get_or_insert(new).1);
                Some((
                    threshold * first,
                    format!("below {threshold} of what it was at first ({})", figure(first)),
                ))
            }
            Symptom::InvalidActions => {
                let first = f64::from(self.reference.get_or_insert(new).1);
                Some((
                    first + threshold,
                    format!(
                        "more than {threshold} above what they were at first ({})",
                        figure(first)
                    ),
                ))
            }
            Symptom::RewardCollapse => {
                let best = self.reference.get_or_insert(new);
                if new.1 > best.1 {
                    *best = new;
                }
                let (at, best) = (best.0, f64::from(best.1));
                let than = format!("below {threshold} of the best ({} at step {at})", figure(best));
                (best > REWARD_WORTH_KEEPING).then_some((threshold * best, than))
            }
        }
    }
}

impl Symptom {
    /// Its name in an alarm's text.
    fn name(self) -> &'static str {
        match self {
            Self::NotFinite => "numbers that are not finite",
            Self::EntropyCollapse => "entropy collapse",
            Self::Repetition => "repetition",
            Self::InvalidActions => "burst of invalid actions",
            Self::RewardCollapse => "reward collapse",
            Self::LogProbMismatch => "log-prob mismatch",
            Self::LostSearches => "lost searches",
        }
    }

    fn metric(self) -> &'static str {
        match self {
            Self::NotFinite => SKIPPED_UPDATES,
            Self::EntropyCollapse => ENTROPY,
            Self::Repetition => REPETITION,
            Self::InvalidActions => INVALID_ACTIONS,
            Self::RewardCollapse => REWARD,
            Self::LogProbMismatch => LOGPROB_DIFF_MEAN,
            Self::LostSearches => LOST_SHARE,
        }
    }

    /// The quantity of the metric, with its unit.
    fn quantity(self) -> &'static str {
        match self {
            Self::NotFinite => "number of skipped updates",
            Self::EntropyCollapse => "entropy (nats a token)",
            Self::Repetition => "share of repeated 8-grams in a response",
            Self::InvalidActions => "number of invalid actions an episode",
            Self::RewardCollapse => "reward",
            Self::LogProbMismatch => {
                "difference of the sampler's and the trainer's log-probs (nats a token)"
            }
            Self::LostSearches => "share of searching episodes lost to the retriever",
        }
    }

    /// True if small values are the bad ones.
    fn is_fall(self) -> bool {
        matches!(self, Self::EntropyCollapse | Self::RewardCollapse)
    }

    fn threshold(self, recipe: &GuardsRecipe) -> f64 {
        match self {
            Self::NotFinite => recipe.max_skipped as f64,
            Self::EntropyCollapse => recipe.min_entropy_share,
            Self::Repetition => recipe.max_repetition,
            Self::InvalidActions => recipe.max_invalid_actions,
            Self::RewardCollapse => recipe.min_reward_share,
            Self::LogProbMismatch => recipe.max_logprob_diff,
            Self::LostSearches => recipe.max_lost_share,
        }
    }

    fn threshold_key(self) -> &'static str {
        match self {
            Self::NotFinite => "guards.max_skipped",
            Self::EntropyCollapse => "guards.min_entropy_share",
            Self::Repetition => "guards.max_repetition",
            Self::InvalidActions => "guards.max_invalid_actions",
            Self::RewardCollapse => "guards.min_reward_share",
            Self::LogProbMismatch => "guards.max_logprob_diff",
            Self::LostSearches => "guards.max_lost_share",
        }
    }

    /// The quantity that the threshold belongs to, where that is not the symptom itself.
    fn of_what(self) -> &'static str {
        if self == Self::NotFinite { " of skipped updates" } else { "" }
    }

    /// The usual cause of the symptom, and the keys of the recipe that change it.
    fn cause_and_keys(self, phase: Phase) -> (&'static str, String) {
        let is_rl = phase == Phase::Rl;
        let lr = if is_rl { "optim.actor.lr" } else { "optim.distill.lr" };
        // The settings that hold the policy in RL; the other phases have only their teacher.
        let hold =
            if is_rl { ", or raise kl.coef (with kl.mode selective or uniform)" } else { "" };
        match self {
            // Actor and critic skip their updates each for itself, and are counted together.
            Self::NotFinite => (
                "a learning rate too large for this model, or a float type too narrow for it",
                format!(
                    "lower {lr}{}, or set model.dtype to \"f32\"",
                    if is_rl { " or optim.critic.lr" } else { "" }
                ),
            ),
            Self::EntropyCollapse => (
                "the policy writes the same whatever the question is, and explores nothing",
                if is_rl {
                    format!("raise rl.entropy_coef, lower {lr}{hold}")
                } else {
                    format!("lower {lr}")
                },
            ),
            Self::Repetition => ("the policy has fallen into a loop", format!("lower {lr}{hold}")),
            Self::InvalidActions => {
                ("the policy is forgetting the tags of the protocol", format!("lower {lr}{hold}"))
            }
            Self::RewardCollapse => (
                "updates too large, or too weak a pull towards the reference: the policy has left \
                 what it could do",
                format!("lower {lr}{hold}"),
            ),
            Self::LogProbMismatch => (
                "rollout and update do not run the same distribution: rounding of the float type, \
                 or a sampler that leaves tokens out",
                "set model.dtype to \"f32\", episode.top_p to 1 and episode.top_k to 0".to_owned(),
            ),
            Self::LostSearches => (
                "the retriever fails, and the student learns from the episodes that did not \
                 search: not to",
                "mend the retriever, and set retriever.max_lost_share to 0".to_owned(),
            ),
        }
    }
}

/// A number with three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        x if x >= 0.1 || x == 0.0 => format!("{value:.3}"),
        x if x >= 0.001 => format!("{value:.5}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests;
