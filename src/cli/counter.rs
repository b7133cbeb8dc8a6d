//! Progress of work that counts items (passages, vectors): a bar on a terminal, a line every tenth
//! otherwise, nothing with `-q`.
use super::output;
use dgpo_run::units::duration;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    time::Instant,
};

/// Lines a stage prints where stderr is no terminal.
const N_LINES: usize = 10;

/// Follows one stage after the other.
pub struct Counter {
    is_quiet: bool,
    is_terminal: bool,
    stage: Option<Stage>,
}

struct Stage {
    name: &'static str,
    started: Instant,
    /// Start of this process: a resumed build starts in the middle.
    first: usize,
    next_line: usize,
    bar: Option<ProgressBar>,
}

impl Counter {
    pub fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_terminal: io::stderr().is_terminal(), stage: None }
    }

    /// `done` of `total` items of the stage are finished.
    pub fn tick(&mut self, name: &'static str, done: usize, total: usize) {
        if self.is_quiet {
            return;
        }
        if self.stage.as_ref().is_none_or(|stage| stage.name != name) {
            self.finish();
            let bar = self.is_terminal.then(|| {
                let template = "{prefix:<8} {bar:24} {pos}/{len}  {per_sec}  eta {eta}";
                let style = ProgressStyle::with_template(template)
                    .expect("the template above is well-formed");
                ProgressBar::new(total as u64).with_style(style).with_prefix(name)
            });
            self.stage =
                Some(Stage { name, started: Instant::now(), first: done, next_line: done, bar });
        }
        let Some(stage) = &mut self.stage else { return };
        if let Some(bar) = &stage.bar {
            bar.set_position(done as u64);
        } else if done >= stage.next_line {
            output::say(&line(
                name,
                done,
                total,
                stage.first,
                stage.started.elapsed().as_secs_f64(),
            ));
            stage.next_line = (done + total.div_ceil(N_LINES)).min(total.max(done + 1));
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.stage.take().and_then(|stage| stage.bar) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `encode 10,240/64,873  153/s  eta 5m57s`
fn line(name: &str, done: usize, total: usize, first: usize, elapsed_s: f64) -> String {
    let mut text =
        format!("{name} {}/{}", output::grouped(done as u64), output::grouped(total as u64));
    let rate = (done - first) as f64 / elapsed_s;
    if rate > 0.0 && rate.is_finite() {
        text +=
            &format!("  {rate:.0}/s  eta {}", duration((total - done.min(total)) as f64 / rate));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_counts_what_this_process_did() {
        assert_eq!(line("encode", 1500, 2000, 1000, 10.0), "encode 1,500/2,000  50/s  eta 10s");
        assert_eq!(line("encode", 1000, 2000, 1000, 0.0), "encode 1,000/2,000");
    }
}
