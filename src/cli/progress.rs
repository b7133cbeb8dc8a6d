//! Shows the events of a run: a bar on a terminal, one line a step otherwise, nothing with `-q`.
//!
//! Log lines of `tracing` go through [`LogWriter`], which lifts the bar out of the way.
use super::{
    course::{Course, UnderWay},
    machine, output,
};
use dgpo_core::{settings::Phase, trainer::metrics};
use dgpo_run::{config::Recipe, events::Event, units::duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal, Write},
    sync::Mutex,
    time::Instant,
};

/// The bar on the screen, if any, so that log lines can be written above it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A label and the metrics to take its figure from, the first one recorded.
type Figure = (&'static str, &'static [&'static str]);

/// Figures that a step's line shows before the time left: with it and the step, what fits beside
/// the bar on a terminal of 80 columns.
const SHOWN_FIRST: [Figure; 3] = [
    ("reward", &[metrics::REWARD]),
    ("kl", &[metrics::KL]),
    ("tok/s", &[metrics::ROLLOUT_TOKENS_PER_SECOND, metrics::UPDATE_TOKENS_PER_SECOND]),
];
/// Figures that it shows after it; under the bar these have a line of their own, with memory.
const SHOWN_THEN: [Figure; 4] = [
    LOST,
    ("loss", &[metrics::DISTILL_LOSS]),
    ("divergence", &[metrics::DISTILL_KL]),
    ("entropy", &[metrics::ENTROPY]),
];
/// Shown where it is not 0: share of the searching episodes that the retriever lost.
const LOST: Figure = ("lost", &[metrics::LOST_SHARE]);

/// Width of the bar alone.
const BAR_COLUMNS: usize = 12;

/// Receives events and draws them on stderr.
pub struct Progress {
    is_quiet: bool,
    is_terminal: bool,
    course: Course,
    running: Option<Running>,
}

/// The phase under way.
struct Running {
    phase: Phase,
    /// Steps that an earlier process did: they say nothing about this one's speed.
    done_before: usize,
    /// The last step reported, and the number of all; 0 = unknown.
    step: usize,
    total: usize,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Running {
    fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Share of the phase's steps that this process did.
    fn share(&self) -> f64 {
        if self.total == 0 {
            0.0
        } else {
            self.step.saturating_sub(self.done_before) as f64 / self.total as f64
        }
    }
}

impl Progress {
    pub fn new(is_quiet: bool) -> Self {
        Self {
            is_quiet,
            is_terminal: io::stderr().is_terminal(),
            course: Course::default(),
            running: None,
        }
    }

    /// A run begins: from here on its phases are counted.
    pub fn follow(&mut self, recipe: &Recipe) {
        self.finish();
        self.course = Course::of(recipe);
    }

    /// The observer to hand to a run: `&mut |event| progress.on(event)`.
    pub fn on(&mut self, event: Event<'_>) {
        if self.is_quiet {
            return;
        }
        match event {
            Event::PhaseStarted { phase, done, total } => self.start(phase, done, total),
            Event::Step { phase, step, total, metrics } => self.step(phase, step, total, metrics),
            Event::Message(text) => above_the_bar(text),
            Event::CheckpointSaved { path } => {
                above_the_bar(&format!("checkpoint {}", path.display()))
            }
            Event::PhaseDone { phase } => {
                let seconds = self.running.as_ref().map_or(0.0, Running::elapsed_s);
                if let Some(running) = &self.running {
                    self.course.end(running.phase, running.share(), seconds);
                }
                self.finish();
                output::say(&format!("{phase}: done in {}", duration(seconds)));
            }
        }
    }

    /// Takes the bar off the screen; also where an error ends a phase early.
    pub fn finish(&mut self) {
        if let Some(bar) = self.running.take().and_then(|running| running.bar) {
            bar.finish_and_clear();
        }
        *bar_slot() = None;
    }

    fn start(&mut self, phase: Phase, done: usize, total: usize) {
        self.finish();
        let of = if total > 0 {
            format!(": {} steps", output::grouped(total as u64))
        } else {
            String::new()
        };
        let from =
            if done > 0 { format!(", continuing behind step {done}") } else { String::new() };
        output::say(&format!("{phase}{of}{from}{}", self.course.told_place(phase)));
        let bar = self.is_terminal.then(|| {
            let bar =
                if total > 0 { ProgressBar::new(total as u64) } else { ProgressBar::no_length() };
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let bounded = format!("{{prefix}} {{bar:{BAR_COLUMNS}}} {{pos}}/{{len}}  {{msg}}");
            let template = if total > 0 { &bounded } else { "{prefix} {spinner} {pos}  {msg}" };
            bar.set_style(
                ProgressStyle::with_template(template)
                    .expect("the templates above are well-formed"),
            );
            bar.set_prefix(phase.as_str());
            bar.set_position(done as u64);
            bar
        });
        bar_slot().clone_from(&bar);
        self.running = Some(Running {
            phase,
            done_before: done,
            step: done,
            total,
            started: Instant::now(),
            bar,
        });
    }

    fn step(&mut self, phase: Phase, step: usize, total: usize, metrics: &[(&'static str, f64)]) {
        if self.running.as_ref().is_none_or(|running| running.phase != phase) {
            self.start(phase, step.saturating_sub(1), total);
        }
        let Some(running) = &mut self.running else { return };
        (running.step, running.total) = (step, total);
        let elapsed_s = running.elapsed_s();
        let eta_s = remaining_s(elapsed_s, running.done_before, step, total);
        let of_run = eta_s.and_then(|eta_s| {
            self.course.told(UnderWay { phase, share: running.share(), elapsed_s, eta_s })
        });
        let (first, then) = step_text(metrics, machine::resident_bytes(), eta_s, of_run);
        match &running.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(format!("{first}\n   {then}"));
            }
            None if total > 0 => {
                output::say(format!("{phase} {step}/{total}  {first}  {then}").trim_end())
            }
            None => output::say(format!("{phase} {step}  {first}  {then}").trim_end()),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Seconds left at the speed of this process.
fn remaining_s(elapsed_s: f64, done_before: usize, step: usize, total: usize) -> Option<f64> {
    let n_done = step.checked_sub(done_before).filter(|&n| n > 0)?;
    (total > 0).then(|| elapsed_s / n_done as f64 * total.saturating_sub(step) as f64)
}

/// `reward 0.410  kl 0.0123  tok/s 1520  eta 3m12s` and `entropy 0.512  mem 1.20 GB  phase 3 of 4,
/// run eta 4m2s`.
fn step_text(
    metrics: &[(&'static str, f64)],
    resident_bytes: Option<u64>,
    eta_s: Option<f64>,
    of_run: Option<String>,
) -> (String, String) {
    let value = |names: &[&str]| {
        names.iter().find_map(|name| {
            metrics.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
        })
    };
    let is_shown = |label: &str, value: f64| label != LOST.0 || value != 0.0;
    let figure = |(label, names): &Figure| {
        let value = value(names).filter(|&value| is_shown(label, value));
        value.map(|value| format!("{label} {}", short(value)))
    };
    let eta = eta_s.map(|seconds| format!("eta {}", duration(seconds)));
    let memory = resident_bytes.map(|n| format!("mem {}", output::bytes(n)));
    let joined = |figures: &[Figure], last: [Option<String>; 2]| {
        figures
            .iter()
            .filter_map(figure)
            .chain(last.into_iter().flatten())
            .collect::<Vec<_>>()
            .join("  ")
    };
    (joined(&SHOWN_FIRST, [eta, None]), joined(&SHOWN_THEN, [memory, of_run]))
}

/// Three significant digits, or a whole number from 100 on.
fn short(value: f64) -> String {
    match value.abs() {
        x if !x.is_finite() => value.to_string(),
        x if x >= 100.0 => format!("{value:.0}"),
        x if x >= 0.1 || x == 0.0 => format!("{value:.3}"),
        x if x >= 0.0001 => format!("{value:.5}"),
        _ => format!("{value:.2e}"),
    }
}

fn bar_slot() -> std::sync::MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn above_the_bar(text: &str) {
    let bar = bar_slot().clone();
    match bar {
        Some(bar) => bar.suspend(|| output::say(text)),
        None => output::say(text),
    }
}

/// Writer of `tracing`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let bar = bar_slot().clone();
        let line = String::from_utf8_lossy(text);
        let shown = output::visible(&line);
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(shown.as_bytes())),
            None => io::stderr().write_all(shown.as_bytes()),
        }
        .map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_shows_reward_kl_speed_memory_and_time_left() {
        let metrics = [
            (metrics::KL, 0.0123),
            (metrics::REWARD, 0.41),
            (metrics::ROLLOUT_TOKENS_PER_SECOND, 1520.4),
            (metrics::SEARCHES, 2.0),
        ];
        let (first, then) = step_text(
            &metrics,
            Some(1_200_000_000),
            Some(192.0),
            Some("phase 3 of 4, run eta 4m02s".to_owned()),
        );
        assert_eq!(
            [first, then],
            [
                "reward 0.410  kl 0.01230  tok/s 1520  eta 3m12s",
                "mem 1.20 GB  phase 3 of 4, run eta 4m02s"
            ]
        );
    }

    #[test]
    fn a_step_that_lost_searches_shows_their_share_and_others_show_none() {
        let then = |lost: f64| {
            step_text(&[(metrics::LOST_SHARE, lost), (metrics::ENTROPY, 0.5)], None, None, None).1
        };
        assert_eq!([then(0.25), then(0.0)], ["lost 0.250  entropy 0.500", "entropy 0.500"]);
    }

    #[test]
    fn step_reward_kl_speed_and_time_left_are_seen_on_80_columns() {
        // As wide as these figures get in a run of 1,000 steps.
        let metrics = [
            (metrics::REWARD, 0.41),
            (metrics::KL, -0.000_123_4),
            (metrics::ENTROPY, 0.5),
            (metrics::DISTILL_LOSS, 0.5),
            (metrics::ROLLOUT_TOKENS_PER_SECOND, 152_000.0),
        ];
        let (first, _) = step_text(&metrics, Some(1_200_000_000), Some(3599.0), None);
        let line = format!("{} {} 1000/1000  {first}", Phase::Rl, "#".repeat(BAR_COLUMNS));
        for figure in
            ["1000/1000  ", "reward 0.410  ", "kl -0.00012  ", "tok/s 152000  ", "eta 59m59s"]
        {
            assert!(line.contains(figure), "{figure} is missing: {line}");
        }
        assert!(line.len() <= 80, "{} columns: {line}", line.len());
    }

    #[test]
    fn the_time_left_counts_the_steps_of_this_process_alone() {
        // Resumed behind step 100; 10 steps in 20 s; 90 to go at 2 s each.
        assert_eq!(remaining_s(20.0, 100, 110, 200), Some(180.0));
        assert_eq!(remaining_s(20.0, 100, 100, 200), None);
        assert_eq!(remaining_s(20.0, 0, 5, 0), None);
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(
            [0.0, 1.5, 0.0123, 1e-6, 1234.5, f64::NAN].map(short),
            ["0.000", "1.500", "0.01230", "1.00e-6", "1234", "NaN"]
        );
    }
}
