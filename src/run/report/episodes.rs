//! The episodes that the page shows: which ones, and with which numbers.
//!
//! A run may hold gigabytes of episodes and the page is one file: [`MAX_FILES`] files spread over
//! the run, and of each as many episodes as its share of [`MAX_TOKENS`] allows. The longest, those
//! with the most searches and those with invalid actions are taken first, then wrong and correct
//! ones in turn, so that every filter of the viewer finds what it looks for. The page says how many
//! of how many there are.
use crate::{episodes::read_records, eval::MODELS};
use dgpo_core::{
    rollout::{
        Episode, EpisodeRecord, ObservationKind, Segment, Status, episode::SearchRecord,
        record::Numbers,
    },
    settings::Phase,
    tokenizer::Tokenizer,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Files embedded at most.
pub const MAX_FILES: usize = 24;
/// Tokens embedded at most; about 10 bytes each in the page, 30 in files with the numbers of the
/// update.
pub const MAX_TOKENS: usize = 150_000;
/// Episodes taken first for being extreme, in each respect.
const N_EXTREME: usize = 4;

/// Purpose of a file's episodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Training,
    Evaluation,
    Teacher,
    Other,
}

/// One file of episodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Set {
    pub file: String,
    pub kind: Kind,
    /// "step 200", "kd", "block 3".
    pub label: String,
    /// Episodes in the file.
    pub n_all: usize,
    pub episodes: Vec<Value>,
}

/// Everything the viewer needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Episodes {
    pub sets: Vec<Set>,
    /// Text of every token that occurs.
    pub pieces: BTreeMap<u32, String>,
    /// Files that were not embedded.
    pub n_files_left_out: usize,
}

impl Episodes {
    pub fn n_shown(&self) -> usize {
        self.sets.iter().map(|set| set.episodes.len()).sum()
    }
}

/// Reads the folder of episodes. What cannot be read is left out and named in `warnings`.
pub fn gather(
    folder: &Path,
    tokenizer: Option<&Tokenizer>,
    warnings: &mut Vec<String>,
) -> Episodes {
    let mut files: Vec<(Kind, usize, String, PathBuf)> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| described(entry.ok()?.path())).collect(),
        Err(error) => {
            warnings.push(format!("no episodes: cannot read {}: {error}", folder.display()));
            Vec::new()
        }
    };
    files.sort();
    let kept = spread(files.len(), MAX_FILES);
    let mut gathered =
        Episodes { n_files_left_out: files.len() - kept.len(), ..Episodes::default() };
    let budget = MAX_TOKENS / kept.len().max(1);
    for (kind, _, label, path) in kept.into_iter().map(|at| files[at].clone()) {
        let records = match read_records(&path) {
            Ok(records) => records,
            Err(error) => {
                warnings.push(format!("episodes left out: {error}"));
                continue;
            }
        };
        let chosen = choose(&records, budget);
        for id in chosen.iter().flat_map(|&at| records[at].episode.ids()) {
            gathered.pieces.entry(id).or_insert_with(|| {
                tokenizer.map_or_else(|| format!("[id {id}]"), |known| known.piece(id))
            });
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let episodes = chosen.into_iter().map(|at| shown(at, &records[at])).collect();
        gathered.sets.push(Set { file, kind, label, n_all: records.len(), episodes });
    }
    gathered
}

/// Kind, place within the kind, label and path of a file of episodes; `None` for any other file.
fn described(path: PathBuf) -> Option<(Kind, usize, String, PathBuf)> {
    let name = path.file_name()?.to_str()?.to_owned();
    let stem = name.strip_suffix(".gz").unwrap_or(&name).strip_suffix(".jsonl")?;
    let number = |prefix: &str| stem.strip_prefix(prefix)?.parse::<usize>().ok();
    let of_phase = stem.split_once("-step-").filter(|(phase, _)| Phase::from_name(phase).is_some());
    let (kind, place, label) =
        if let Some(step) = of_phase.and_then(|(_, step)| step.parse::<usize>().ok()) {
            (Kind::Training, step, format!("step {step}"))
        } else if let Some(block) = number("demos-") {
            (Kind::Teacher, block, format!("block {}", block + 1))
        } else if let Some(model) = stem.strip_prefix("eval-") {
            let place = MODELS.iter().position(|known| *known == model).unwrap_or(usize::MAX);
            (Kind::Evaluation, place, model.to_owned())
        } else {
            (Kind::Other, 0, stem.to_owned())
        };
    Some((kind, place, label, path))
}

/// At most `max` of 0..n, evenly spread, first and last among them.
fn spread(n: usize, max: usize) -> Vec<usize> {
    if n <= max { (0..n).collect() } else { (0..max).map(|i| i * (n - 1) / (max - 1)).collect() }
}

/// Indexes of the episodes to show, in the order of the file.
fn choose(records: &[EpisodeRecord], max_tokens: usize) -> Vec<usize> {
    let of = |at: &usize| &records[*at].episode;
    let all = || 0..records.len();
    let mut wanted: Vec<usize> = Vec::new();
    let respects: [&dyn Fn(&Episode) -> usize; 3] =
        [&Episode::response_len, &|e| e.searches.len(), &|e| e.n_invalid_actions];
    for respect in respects {
        let mut extreme: Vec<usize> = all().filter(|at| respect(of(at)) > 0).collect();
        // Stable: of equals, the first ones in the file.
        extreme.sort_by_key(|at| std::cmp::Reverse(respect(of(at))));
        wanted.extend(extreme.into_iter().take(N_EXTREME));
    }
    let mut wrong = all().filter(|at| !of(at).is_correct());
    let mut correct = all().filter(|at| of(at).is_correct());
    loop {
        match (wrong.next(), correct.next()) {
            (None, None) => break,
            pair => wanted.extend(pair.0.into_iter().chain(pair.1)),
        }
    }
    let (mut chosen, mut n_tokens) = (std::collections::BTreeSet::new(), 0);
    for at in wanted {
        let length = of(&at).prompt_len() + of(&at).response_len();
        if !chosen.contains(&at) && (chosen.is_empty() || n_tokens + length <= max_tokens) {
            chosen.insert(at);
            n_tokens += length;
        }
    }
    chosen.into_iter().collect()
}

fn shown_search(search: &SearchRecord) -> Value {
    json!({"query": search.query, "is_hit": search.is_hit, "found_nothing": search.found_nothing})
}

/// An episode as the page's script reads it.
fn shown(at: usize, record: &EpisodeRecord) -> Value {
    let episode = &record.episode;
    let status = match &episode.status {
        Status::Answered => "answered".to_owned(),
        Status::TruncatedTurns => "no answer in the last turn".to_owned(),
        Status::TruncatedLength => "out of tokens".to_owned(),
        Status::PromptTooLong => "the prompt is too long".to_owned(),
        Status::RetrieverFailed(why) => format!("a search failed: {why}"),
    };
    let segment = |segment: &Segment| match segment {
        Segment::Prompt { ids } => json!({"author": "prompt", "ids": ids}),
        Segment::Agent { ids, sample_log_probs, .. } => {
            let sampled: Vec<Option<f64>> =
                sample_log_probs.iter().map(|&x| short(Some(x))).collect();
            json!({"author": "agent", "ids": ids, "sampled": sampled})
        }
        Segment::Observation { ids, kind } => {
            let kind = match kind {
                ObservationKind::Information => "information",
                ObservationKind::InvalidAction => "invalid action",
                ObservationKind::ForcedPrefix => "forced prefix",
            };
            json!({"author": "observation", "ids": ids, "kind": kind})
        }
    };
    let mut shown = json!({
        "line": at + 1,
        "question": episode.question.question,
        "dataset": episode.question.dataset,
        "gold": episode.question.golden_answers,
        "prediction": episode.prediction,
        "is_correct": episode.is_correct(),
        "status": status,
        "searches": episode.searches.iter().map(shown_search).collect::<Vec<_>>(),
        "n_invalid": episode.n_invalid_actions,
        "n_response": episode.response_len(),
        "segments": episode.segments.iter().map(segment).collect::<Vec<_>>(),
    });
    if let Some(tokens) = &record.tokens {
        let numbers = |numbers: &Option<Numbers>| {
            numbers.as_ref().map(|n| n.iter().map(|&x| short(x)).collect::<Vec<_>>())
        };
        // Older files have numbers for tokens that are not trained on.
        let behind_prompt = episode.segments.iter().filter(|segment| !segment.is_prompt());
        let is_agent = behind_prompt
            .flat_map(|segment| std::iter::repeat_n(segment.is_agent(), segment.ids().len()));
        let trained = |n: &Numbers| {
            n.iter()
                .zip(is_agent)
                .map(|(&x, is_agent)| short(x).filter(|_| is_agent))
                .collect::<Vec<_>>()
        };
        shown["tokens"] = json!({
            "old": numbers(&tokens.old_log_probs),
            "ref": numbers(&tokens.ref_log_probs),
            "kl": numbers(&tokens.kl),
            "value": numbers(&tokens.values),
            "advantage": tokens.advantages.as_ref().map(trained),
        });
    }
    shown
}

/// Four decimals: what the page shows.
fn short(x: Option<f32>) -> Option<f64> {
    x.map(|x| (f64::from(x) * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::{engine::StopReason, question::Question, rollout::TokenRecord};

    /// `agent` tokens behind a prompt of one.
    fn episode(agent: usize, reward: f32, n_invalid_actions: usize) -> Episode {
        let question = Question {
            id: "q".to_owned(),
            dataset: "tiny".to_owned(),
            question: "who?".to_owned(),
            golden_answers: vec!["Vex".to_owned()],
            supporting: Vec::new(),
            supporting_kind: String::new(),
        };
        let segments = vec![
            Segment::Prompt { ids: vec![7] },
            Segment::Agent {
                ids: vec![3; agent],
                sample_log_probs: Vec::new(),
                stop: StopReason::Eos,
            },
        ];
        Episode {
            question,
            segments,
            status: Status::Answered,
            prediction: None,
            reward,
            searches: Vec::new(),
            n_invalid_actions,
        }
    }

    fn records(episodes: impl IntoIterator<Item = Episode>) -> Vec<EpisodeRecord> {
        episodes.into_iter().map(|episode| EpisodeRecord { episode, tokens: None }).collect()
    }

    #[test]
    fn everything_is_shown_where_there_is_room() {
        assert_eq!(
            choose(&records((0..30).map(|i| episode(5, (i % 2) as f32, 0))), MAX_TOKENS),
            (0..30).collect::<Vec<_>>()
        );
    }

    #[test]
    fn extremes_go_first_and_then_wrong_and_correct_ones_in_turn() {
        // 40 correct ones of 10 tokens, then a long one, one with an invalid action, and two wrong
        // ones.
        let mut episodes: Vec<Episode> = (0..40).map(|_| episode(9, 1.0, 0)).collect();
        episodes.extend([
            episode(49, 1.0, 0),
            episode(9, 1.0, 2),
            episode(9, 0.0, 0),
            episode(9, 0.0, 0),
        ]);
        // Room for the long one (50) and nine others: three more of the longest (the first ones),
        // the invalid one, two wrong, three correct.
        let chosen = choose(&records(episodes), 140);
        assert_eq!(chosen, [0, 1, 2, 3, 4, 5, 40, 41, 42, 43]);
    }

    #[test]
    fn an_episode_that_is_longer_than_its_share_is_still_shown() {
        assert_eq!(choose(&records([episode(500, 1.0, 0), episode(400, 0.0, 0)]), 100), [0]);
    }

    #[test]
    fn many_files_are_thinned_out_with_both_ends_kept() {
        assert_eq!(spread(3, 24), [0, 1, 2]);
        let kept = spread(100, 24);
        assert_eq!((kept.len(), kept[0], kept[23]), (24, 0, 99));
        assert!(kept.windows(2).all(|pair| (4..=5).contains(&(pair[1] - pair[0]))));
    }

    #[test]
    fn files_are_known_by_their_names() {
        let of = |name: &str| {
            described(PathBuf::from(name)).map(|(kind, place, label, _)| (kind, place, label))
        };
        assert_eq!(
            of("a/rl-step-000200.jsonl"),
            Some((Kind::Training, 200, "step 200".to_owned()))
        );
        assert_eq!(of("demos-000003.jsonl.gz"), Some((Kind::Teacher, 3, "block 4".to_owned())));
        assert_eq!(of("eval-teacher.jsonl"), Some((Kind::Evaluation, 1, "teacher".to_owned())));
        assert_eq!(of("mine.jsonl"), Some((Kind::Other, 0, "mine".to_owned())));
        assert_eq!(of("notes.txt"), None);
    }

    #[test]
    fn an_advantage_is_shown_on_trained_tokens_alone() {
        let mut observed = episode(2, 0.0, 0);
        observed
            .segments
            .insert(2, Segment::Observation { ids: vec![5], kind: ObservationKind::Information });
        observed.segments.push(Segment::Agent {
            ids: vec![3],
            sample_log_probs: Vec::new(),
            stop: StopReason::Eos,
        });
        let tokens = TokenRecord {
            values: Some(vec![Some(0.5); 4]),
            // As files from before this was so have it: a number for the observation too.
            advantages: Some(vec![Some(0.25); 4]),
            ..TokenRecord::default()
        };
        let shown = shown(0, &EpisodeRecord { episode: observed, tokens: Some(tokens) });
        assert_eq!(shown["tokens"]["advantage"], json!([0.25, 0.25, null, 0.25]));
        assert_eq!(shown["tokens"]["value"], json!([0.5, 0.5, 0.5, 0.5]));
    }

    #[test]
    fn a_damaged_file_is_left_out_and_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let good = serde_json::to_string(&episode(2, 0.0, 0)).expect("serialises");
        std::fs::write(folder.path().join("eval-kd.jsonl"), good).expect("written");
        std::fs::write(folder.path().join("eval-rl.jsonl"), "{\"half\":").expect("written");
        let mut warnings = Vec::new();
        let gathered = gather(folder.path(), None, &mut warnings);
        assert_eq!(gathered.sets.iter().map(|set| set.label.as_str()).collect::<Vec<_>>(), ["kd"]);
        assert!(warnings.len() == 1 && warnings[0].contains("eval-rl.jsonl:1: "), "{warnings:?}");
        // Without a tokenizer, tokens are shown by their numbers.
        assert_eq!(
            gathered.pieces,
            BTreeMap::from([(3, "[id 3]".to_owned()), (7, "[id 7]".to_owned())])
        );
    }
}
