//! Figures of a set of episodes, for a training step and an evaluation alike.
use super::{Episode, Status};
use crate::env::reward::substring_match;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Length in tokens of a run that counts as repeated when it occurs again: longer than the
/// protocol's tags and the names of the world, shorter than a sentence.
const REPEATED_RUN: usize = 8;

/// Means over episodes (`method §7.3`). Episodes whose retriever failed are counted in
/// `retriever_failed` and in nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpisodeStats {
    /// Episodes, failed ones included.
    pub n_episodes: usize,
    /// Exact match = mean outcome reward.
    pub em: f64,
    /// A gold answer occurs inside the prediction. Reported, never trained on.
    pub substring_em: f64,
    /// Executed searches an episode.
    pub searches: f64,
    /// Searches an episode that found no passage. Evaluations written before it was measured read
    /// as 0.
    #[serde(default)]
    pub nothing_found: f64,
    /// Fraction of episodes one of whose searches brought a passage with a gold answer.
    pub hit_ratio: f64,
    /// Fraction of executed searches whose passages were cut to `episode.max_obs_length`.
    /// Evaluations written before it was measured read as 0.
    #[serde(default)]
    pub observations_cut: f64,
    /// Invalid actions an episode.
    pub invalid_actions: f64,
    /// Fraction of a response's agent-token 8-grams that occurred in it before. Evaluations written
    /// before it was measured read as 0.
    #[serde(default)]
    pub repetition: f64,
    /// Tokens after the prompt, and those of them the agent wrote.
    pub response_tokens: f64,
    /// Tokens the agent wrote, an episode.
    pub agent_tokens: f64,
    /// Fractions of episodes by how they ended.
    pub answered: f64,
    /// Fraction of episodes that ran out of turns or tokens.
    pub truncated: f64,
    /// Fraction of all episodes that were lost to the retriever.
    pub retriever_failed: f64,
    /// The same as a fraction of the episodes that searched. Evaluations written before it was
    /// measured read as 0.
    #[serde(default)]
    pub lost_share: f64,
}

impl EpisodeStats {
    /// The means over some episodes; those lost to the retriever count in its two fractions alone.
    pub fn of<'e>(episodes: impl IntoIterator<Item = &'e Episode>) -> Self {
        let mut stats = Self::default();
        let (mut n_failed, mut n_searched) = (0usize, 0usize);
        let (mut n_searches, mut n_cut) = (0usize, 0usize);
        for episode in episodes {
            stats.n_episodes += 1;
            n_searched += usize::from(episode.has_searched());
            if matches!(episode.status, Status::RetrieverFailed(_)) {
                n_failed += 1;
                continue;
            }
            let share = |is: bool| f64::from(u8::from(is));
            let prediction = episode.prediction.as_deref();
            stats.em += f64::from(episode.reward);
            stats.substring_em += share(
                prediction.is_some_and(|p| substring_match(p, &episode.question.golden_answers)),
            );
            stats.searches += episode.searches.len() as f64;
            n_searches += episode.searches.len();
            n_cut += episode.searches.iter().filter(|search| search.is_cut).count();
            stats.nothing_found +=
                episode.searches.iter().filter(|search| search.found_nothing).count() as f64;
            stats.hit_ratio += share(episode.searches.iter().any(|search| search.is_hit));
            stats.invalid_actions += episode.n_invalid_actions as f64;
            stats.repetition += repetition(episode);
            stats.response_tokens += episode.response_len() as f64;
            stats.agent_tokens += episode.n_agent_tokens() as f64;
            stats.answered += share(episode.status == Status::Answered);
            stats.truncated += share(matches!(
                episode.status,
                Status::TruncatedTurns | Status::TruncatedLength | Status::PromptTooLong
            ));
        }
        let n_played = (stats.n_episodes - n_failed).max(1) as f64;
        for mean in [
            &mut stats.em,
            &mut stats.substring_em,
            &mut stats.searches,
            &mut stats.nothing_found,
            &mut stats.hit_ratio,
            &mut stats.invalid_actions,
            &mut stats.repetition,
            &mut stats.response_tokens,
            &mut stats.agent_tokens,
            &mut stats.answered,
            &mut stats.truncated,
        ] {
            *mean /= n_played;
        }
        stats.observations_cut = n_cut as f64 / n_searches.max(1) as f64;
        stats.retriever_failed = n_failed as f64 / stats.n_episodes.max(1) as f64;
        stats.lost_share = n_failed as f64 / n_searched.max(1) as f64;
        stats
    }
}

/// Fraction of an episode's 8-grams that occurred in it before; 0 where no turn has eight tokens.
/// An 8-gram lies within one turn, and may repeat one of another turn.
fn repetition(episode: &Episode) -> f64 {
    let turns = episode.segments.iter().filter(|segment| segment.is_agent());
    let runs: Vec<&[u32]> = turns.flat_map(|turn| turn.ids().windows(REPEATED_RUN)).collect();
    let distinct: BTreeSet<&[u32]> = runs.iter().copied().collect();
    (runs.len() - distinct.len()) as f64 / runs.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::StopReason,
        rollout::{ObservationKind, Segment, episode::SearchRecord},
        testing::drawn_episode,
    };

    fn of_turns(turns: &[&[u32]]) -> Episode {
        let mut segments = vec![Segment::Prompt { ids: vec![1; 20] }];
        for ids in turns {
            segments.push(Segment::Agent {
                ids: ids.to_vec(),
                sample_log_probs: Vec::new(),
                stop: StopReason::Eos,
            });
            segments.push(Segment::Observation {
                ids: vec![2; 20],
                kind: ObservationKind::Information,
            });
        }
        Episode { segments, ..drawn_episode() }
    }

    #[test]
    fn a_loop_repeats_and_different_text_does_not() {
        let counted: Vec<u32> = (0..40).collect();
        // A loop of 4 tokens written 6 times: 24 tokens hold 17 runs of eight, 4 of them different.
        let looped: Vec<u32> = [5, 6, 7, 8].repeat(6);
        assert_eq!(repetition(&of_turns(&[&counted])), 0.0);
        assert_eq!(repetition(&of_turns(&[&looped])), 13.0 / 17.0);
    }

    #[test]
    fn a_turn_written_again_repeats_and_prompts_and_observations_do_not_count() {
        let turn: Vec<u32> = (0..9).collect();
        assert_eq!(repetition(&of_turns(&[&turn, &turn])), 0.5);
        assert_eq!(repetition(&of_turns(&[&turn])), 0.0);
    }

    #[test]
    fn turns_below_eight_tokens_have_no_runs() {
        assert_eq!(repetition(&of_turns(&[&[3; 7], &[3; 7]])), 0.0);
    }

    #[test]
    fn the_share_of_cut_observations_is_of_searches_not_of_episodes() {
        let search = |is_cut: bool| SearchRecord {
            query: String::new(),
            passage_ids: Vec::new(),
            is_hit: false,
            is_cut,
            found_nothing: false,
        };
        let of = |searches: Vec<SearchRecord>| Episode { searches, ..drawn_episode() };
        let stats = EpisodeStats::of([
            &of(vec![search(true)]),
            &of(vec![search(false), search(true), search(false)]),
            &of(Vec::new()),
        ]);
        assert_eq!(stats.observations_cut, 0.5);
        assert_eq!(EpisodeStats::of([&of(Vec::new())]).observations_cut, 0.0);
    }

    #[test]
    fn the_lost_share_is_that_of_the_episodes_that_searched() {
        let lost = Episode {
            status: Status::RetrieverFailed("503".to_owned()),
            searches: Vec::new(),
            ..drawn_episode()
        };
        let silent = Episode { searches: Vec::new(), ..drawn_episode() };
        let stats = EpisodeStats::of([
            &lost,
            &drawn_episode(),
            &drawn_episode(),
            &drawn_episode(),
            &silent,
            &silent,
            &silent,
            &silent,
        ]);
        assert_eq!((stats.lost_share, stats.retriever_failed), (1.0 / 4.0, 1.0 / 8.0));
        assert_eq!(EpisodeStats::of([&silent]).lost_share, 0.0);
    }

    #[test]
    fn searches_that_found_nothing_are_counted() {
        let mut episode = drawn_episode();
        episode.searches[0].found_nothing = true;
        let stats = EpisodeStats::of([&episode, &drawn_episode()]);
        assert_eq!((stats.searches, stats.nothing_found), (1.0, 0.5));
    }

    #[test]
    fn the_mean_leaves_out_episodes_lost_to_the_retriever() {
        let failed =
            Episode { status: Status::RetrieverFailed("503".to_owned()), ..of_turns(&[&[3; 30]]) };
        let looped = of_turns(&[&[3; 12]]);
        let stats = EpisodeStats::of([&failed, &looped, &of_turns(&[&[3; 2]])]);
        // Five runs, one of them different.
        assert_eq!(stats.repetition, 0.8 / 2.0);
    }
}
