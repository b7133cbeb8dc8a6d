//! Play until served: what every phase does when the retriever fails.
//!
//! A step that lost searches must not be learned from, and an evaluation that lost some is no
//! figure. The episodes that are left are those that did not search, and what learns from them
//! learns not to. So where more than `retriever.max_lost_share` of the episodes that searched was
//! lost, the same episodes are played again: same model, same questions, same keys, so that what
//! comes out is what an undisturbed retriever would have given, bit for bit. Pauses grow between
//! the attempts, and a stop request ends them. After `retriever.max_outage_s`, or at once where the
//! server refuses a search instead of failing at it, the run ends with its checkpoint and in the
//! retriever's own words.
//!
//! An attempt that can no longer succeed is cut short: from the first loss too many on, nothing is
//! asked ([`Watched`]), and the engine is stopped at its next step.
use super::PipelineError;
use crate::{config::RetrieverRecipe, events::Stop};
use dgpo_core::{
    env::search::{Hit, Retriever, SearchError},
    rollout::Episode,
};
use std::{
    cell::{Cell, OnceCell},
    time::{Duration, Instant},
};

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A stop request is seen after so long.
const NAP: Duration = Duration::from_millis(50);

/// The patience of a caller with its retriever.
pub struct Waiting<'a> {
    pub recipe: &'a RetrieverRecipe,
    pub stop: &'a Stop,
    /// Told before each pause what was lost and why.
    pub say: Box<dyn FnMut(&str) + 'a>,
}

/// Counts of an attempt: what it asked of the retriever and what of that was lost, in episodes that
/// searched or in queries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    pub n_asked: usize,
    pub n_lost: usize,
    /// The retriever's words, of the first loss.
    pub why: Option<String>,
}

impl Losses {
    pub fn of_episodes<'e>(episodes: impl IntoIterator<Item = &'e Episode>) -> Self {
        let mut losses = Self::default();
        for episode in episodes {
            losses.n_asked += usize::from(episode.has_searched());
            losses.n_lost += usize::from(episode.lost_to().is_some());
            losses.why = losses.why.or_else(|| episode.lost_to().map(str::to_owned));
        }
        losses
    }

    pub fn of_results<T>(results: &[Result<T, SearchError>]) -> Self {
        let lost = || results.iter().filter_map(|result| result.as_ref().err());
        Self {
            n_asked: results.len(),
            n_lost: lost().count(),
            why: lost().next().map(SearchError::to_string),
        }
    }

    /// The most that a recipe accepts.
    fn is_at_most(&self, share: f64) -> bool {
        self.n_lost as f64 <= share * self.n_asked as f64
    }
}

/// Result of the attempt that was served, and how long it took.
#[derive(Debug)]
pub struct Served<T> {
    pub value: T,
    pub seconds: f64,
}

impl Waiting<'_> {
    /// Attempts `what` until the retriever has served it. An attempt asks the retriever it is given
    /// and hands back what it did and lost; `n` is the number of episodes (or queries) it is about.
    /// # Errors
    /// [`PipelineError::RetrieverDown`] if the outage lasts too long or is none but a refusal,
    /// [`PipelineError::Stopped`] after a stop request, and what `attempt` fails with.
    pub fn until_served<T>(
        &mut self,
        what: &str,
        retriever: &dyn Retriever,
        n: usize,
        mut attempt: impl FnMut(&Watched<'_>) -> Result<(T, Losses), PipelineError>,
    ) -> Result<Served<T>, PipelineError> {
        let share = self.recipe.max_lost_share;
        let longest =
            Duration::try_from_secs_f64(self.recipe.max_outage_s).unwrap_or(Duration::MAX);
        let mut pause = self.first_pause();
        let mut outage = None;
        loop {
            let (started, watched) = (Instant::now(), Watched::new(retriever, share * n as f64));
            let losses = match attempt(&watched) {
                Ok((value, losses)) if losses.is_at_most(share) => {
                    return Ok(Served { value, seconds: started.elapsed().as_secs_f64() });
                }
                Ok((_, losses)) => losses,
                Err(PipelineError::Stopped) if watched.has_lost_too_much() => watched.losses(),
                Err(error) => return Err(error),
            };
            if self.stop.is_requested() {
                return Err(PipelineError::Stopped);
            }
            if watched.is_refused.get() {
                let lasting = "and it refuses them, which waiting does not change".to_owned();
                return Err(self.down(what, losses, lasting, true));
            }
            let so_far = outage.get_or_insert_with(Instant::now).elapsed();
            if so_far >= longest {
                let lasting = format!(
                    "and for longer than retriever.max_outage_s = {}",
                    self.recipe.max_outage_s
                );
                return Err(self.down(what, losses, lasting, false));
            }
            let left = longest - so_far;
            (self.say)(&format!(
                "{what}: {}; it is played again in {:.1?}, for {:.0?} more at most",
                told(&losses),
                pause.min(left),
                left
            ));
            self.pause(pause.min(left))?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Twice the last pause of a request's own retries.
    fn first_pause(&self) -> Duration {
        let doublings = i32::try_from(self.recipe.max_retries).unwrap_or(i32::MAX);
        let seconds = self.recipe.first_pause_s * 2f64.powi(doublings);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE)
    }

    fn pause(&self, pause: Duration) -> Result<(), PipelineError> {
        let until = Instant::now() + pause;
        while !self.stop.is_requested() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
        Err(PipelineError::Stopped)
    }

    fn down(&self, what: &str, losses: Losses, lasting: String, is_refused: bool) -> PipelineError {
        let Losses { n_asked, n_lost, why } = losses;
        let (what, why) = (what.to_owned(), why.unwrap_or_default());
        PipelineError::RetrieverDown {
            is_refused,
            what,
            n_lost,
            n_asked,
            max_lost_share: self.recipe.max_lost_share,
            lasting,
            why,
        }
    }
}

/// "12 of 40 that searched were lost to the retriever: ...", without the advice: there is time for
/// that at the end.
fn told(losses: &Losses) -> String {
    let why = losses.why.as_deref().unwrap_or_default();
    let why = why.split("; hint: ").next().unwrap_or_default();
    format!(
        "{} of {} that searched were lost to the retriever: {why}",
        losses.n_lost, losses.n_asked
    )
}

/// A retriever under watch for one attempt: once it has failed too many queries, it is not asked
/// any more.
pub struct Watched<'r> {
    inner: &'r dyn Retriever,
    /// Losses that are too many whatever else the attempt asks.
    most: f64,
    n_asked: Cell<usize>,
    n_lost: Cell<usize>,
    first: OnceCell<SearchError>,
    /// True once a search was refused: the attempts to come would ask the same again.
    is_refused: Cell<bool>,
}

impl<'r> Watched<'r> {
    fn new(inner: &'r dyn Retriever, most: f64) -> Self {
        Self {
            inner,
            most,
            n_asked: Cell::new(0),
            n_lost: Cell::new(0),
            first: OnceCell::new(),
            is_refused: Cell::new(false),
        }
    }

    /// True once the attempt is lost: the play may stop then, as after a stop request.
    pub fn has_lost_too_much(&self) -> bool {
        self.n_lost.get() as f64 > self.most
    }

    /// So far, in queries.
    fn losses(&self) -> Losses {
        let why = self.first.get().map(SearchError::to_string);
        Losses { n_asked: self.n_asked.get(), n_lost: self.n_lost.get(), why }
    }
}

impl Retriever for Watched<'_> {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        if let (Some(error), true) = (self.first.get(), self.has_lost_too_much()) {
            return queries.iter().map(|_| Err(error.clone())).collect();
        }
        let mut results = self.inner.search(queries, top_k);
        if results.len() != queries.len() {
            // With a result too many or too few nobody knows whose is whose.
            let why = format!(
                "the retriever returned {} results for {} queries",
                results.len(),
                queries.len()
            );
            results = queries.iter().map(|_| Err(SearchError::failed(why.clone()))).collect();
        }
        let lost = results.iter().filter_map(|result| result.as_ref().err());
        self.n_asked.set(self.n_asked.get() + queries.len());
        self.n_lost.set(self.n_lost.get() + lost.clone().count());
        self.is_refused.set(self.is_refused.get() || lost.clone().any(|error| error.is_refusal));
        if let Some(error) = lost.into_iter().next() {
            self.first.get_or_init(|| error.clone());
        }
        results
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
