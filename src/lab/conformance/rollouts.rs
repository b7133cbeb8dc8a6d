//! Scripted multi-turn rollouts: the project's episode loop recites the recorded turns, and every
//! tensor and context must be the reference's.
//!
//! Where `method §1` asks for something else than the reference does, the row's episode ends
//! earlier here: it is compared up to there, and the difference is named.
use super::{
    Case, FixtureError, Tensors,
    fixtures::{count, list, member, object, strings, text},
    text::BLANK_SEARCH,
};
use crate::reference::protocol::reference_cut;
use dgpo_core::{
    engine::{Completion, EngineError, Request},
    env::{
        Env,
        protocol::{Action, QUESTION_PLACEHOLDER, STOP_STRINGS, parse_action, reference_action},
        search::{Hit, Passage, Retriever, SearchError},
    },
    question::Question,
    rng::{Key, Purpose},
    rollout::{
        Episode, ObservationKind, Segment, Status,
        play::{Generator, Rules, play},
        scripted::ScriptedGenerator,
    },
    settings::{EpisodeRecipe, ObservationCut},
    tokenizer::{TokenizerError, chat::Chat},
};
use dgpo_run::episodes::given::cut_at_first_stop;
use serde_json::Value;
use std::path::Path;

/// The tokenizer of the fixtures: a byte's id is its value + 3.
const TOKENIZER: &str = "byte + 3, pad id 0";
const FIRST_BYTE_ID: u32 = 3;

/// Scripts name no id beyond `#N#` in the prompt; every other key of a case is compared or
/// configures it.
const CASE_KEYS: [&str; 9] = [
    "name",
    "config",
    "prompts",
    "scripts",
    "queries_per_turn",
    "meta",
    "contexts_seen_by_actor",
    "responses_text",
    "trained_text",
];

fn encode(text: &str) -> Result<Vec<u32>, TokenizerError> {
    Ok(text.bytes().map(|byte| u32::from(byte) + FIRST_BYTE_ID).collect())
}

fn decode(ids: &[u32]) -> String {
    let byte = |&id: &u32| id.checked_sub(FIRST_BYTE_ID).and_then(|byte| u8::try_from(byte).ok());
    String::from_utf8_lossy(&ids.iter().filter_map(byte).collect::<Vec<u8>>()).into_owned()
}

/// Document i for query q is corpus[(characters of q + i) mod its size].
struct RuleRetriever {
    passages: Vec<Passage>,
}

impl Retriever for RuleRetriever {
    fn search(&self, queries: &[String], top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        let passage = |query: &String, i: usize| {
            self.passages[(query.chars().count() + i) % self.passages.len()].clone()
        };
        let hits = |query: &String| {
            (0..top_k).map(|i| Hit { passage: passage(query, i), score: 0.0 }).collect()
        };
        queries.iter().map(|query| Ok(hits(query))).collect()
    }

    fn describe(&self) -> String {
        "rule".to_owned()
    }
}

/// Remembers what a row had before it at each of its turns.
struct Recorder<'a> {
    script: ScriptedGenerator<'a>,
    /// By row: the ids so far, and the decoded context of each turn.
    rows: Vec<(Vec<u32>, Vec<String>)>,
}

impl Generator for Recorder<'_> {
    fn submit(&mut self, request: Request) {
        let (ids, contexts) = &mut self.rows[request.row];
        ids.extend(&request.ids);
        contexts.push(decode(ids));
        self.script.submit(request);
    }

    fn step(&mut self) -> Result<Vec<Completion>, EngineError> {
        let completions = self.script.step()?;
        for completion in &completions {
            self.rows[completion.row].0.extend(&completion.ids);
        }
        Ok(completions)
    }

    fn is_busy(&self) -> bool {
        self.script.is_busy()
    }

    fn release(&mut self, row: usize) {
        self.script.release(row);
    }
}

pub(super) fn compare(json: &Value, tensors: &Path, case: &mut Case) -> Result<(), FixtureError> {
    for (key, value) in object(json, "rollouts.json")? {
        match key.as_str() {
            "corpus" | "search_rule" | "cases" => {}
            "tokeniser" | "tokenizer" => case.equal(key, &value.as_str(), &Some(TOKENIZER)),
            _ => case.fail_unknown([key.clone()]),
        }
    }
    let page = |entry: &Value| -> Result<Passage, FixtureError> {
        let part = |i: usize| {
            entry
                .get(i)
                .and_then(Value::as_str)
                .ok_or_else(|| FixtureError::Missing(format!("corpus entry's part {i}")))
        };
        Ok(Passage { id: String::new(), contents: format!("{}\n{}", part(0)?, part(1)?) })
    };
    let passages = list(json, "corpus")?.iter().map(page).collect::<Result<Vec<_>, _>>()?;
    let rule = format!(
        "document i for query q is corpus[(len(q) + i) % {}], i < topk; len counts characters",
        passages.len()
    );
    case.equal("search_rule", text(json, "search_rule")?, rule.as_str());
    if passages.is_empty() {
        return Err(FixtureError::Missing("a passage of the corpus".into()));
    }
    let retriever = RuleRetriever { passages };
    let tensors = Tensors::open(tensors)?;
    for rollout in list(json, "cases")? {
        one_rollout(rollout, &retriever, &tensors, case)?;
    }
    case.fail_unknown(tensors.unused());
    Ok(())
}

fn one_rollout(
    rollout: &Value,
    retriever: &RuleRetriever,
    tensors: &Tensors,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let name = text(rollout, "name")?;
    case.fail_unknown(
        object(rollout, name)?
            .keys()
            .filter(|key| !CASE_KEYS.contains(&key.as_str()))
            .map(|key| format!("{name}.{key}")),
    );
    let config = member(rollout, "config")?;
    let known = [
        "max_turns",
        "max_start_length",
        "max_prompt_length",
        "max_response_length",
        "max_obs_length",
        "topk",
    ];
    case.fail_unknown(
        object(config, name)?
            .keys()
            .filter(|key| !known.contains(&key.as_str()))
            .map(|key| format!("{name}.config.{key}")),
    );
    let prompts = strings(rollout, "prompts")?;
    let limits = EpisodeRecipe {
        instruction: QUESTION_PLACEHOLDER.to_owned(),
        max_turns: count(config, "max_turns")?,
        max_start_length: count(config, "max_start_length")?,
        max_prompt_length: count(config, "max_prompt_length")?,
        max_response_length: count(config, "max_response_length")?,
        max_obs_length: count(config, "max_obs_length")?,
        cut_observations: ObservationCut::Reference,
        max_rows: prompts.len().max(1),
        ..EpisodeRecipe::default()
    };
    let env = Env {
        instruction: limits.instruction.clone(),
        chat: Chat::plain(),
        retriever,
        top_k: count(config, "topk")?,
    };
    let scripts = scripts_of(&prompts, member(rollout, "scripts")?)?;
    let script = ScriptedGenerator::new(scripts.clone(), &STOP_STRINGS, &encode, &decode);
    let mut recorder = Recorder { script, rows: vec![Default::default(); prompts.len()] };
    let questions: Vec<Question> = prompts.iter().map(|prompt| question(prompt)).collect();
    let root = Key::new(0, Purpose::Rollout);
    let keys: Vec<Key> = (0..prompts.len()).map(|row| root.fold(row as u64)).collect();
    let episodes = match play(
        &mut recorder,
        Rules { env: &env, encode: &|text, _| encode(text), limits: &limits },
        &questions,
        &keys,
    ) {
        Ok(episodes) => episodes,
        Err(error) => {
            case.fail(name, error.to_string());
            return Ok(());
        }
    };
    let rows: Vec<RecordedRow> = episodes
        .iter()
        .zip(recorder.rows)
        .zip(&scripts)
        .enumerate()
        .map(|(row, ((episode, (_, contexts)), script))| {
            let recorded = Recorded::read(rollout, tensors, name, row, limits.max_prompt_length)?;
            Ok(RecordedRow {
                episode,
                contexts,
                difference: difference(episode, script, &recorded, limits.max_turns),
            })
        })
        .collect::<Result<_, FixtureError>>()?;
    for (row, difference) in
        rows.iter().enumerate().filter_map(|(row, r)| Some((row, r.difference?)))
    {
        case.differs_on_purpose(
            &format!("{name}.row{row}"),
            &format!("{}; compared up to there", difference.what),
        );
    }
    compare_tensors(name, &rows, tensors, case)?;
    compare_texts(name, rollout, &rows, case)?;
    compare_turns(name, rollout, &rows, limits.max_turns, case)
}

/// Row i recites the script of the number between `#` in its prompt.
fn scripts_of(prompts: &[String], scripts: &Value) -> Result<Vec<Vec<String>>, FixtureError> {
    let number = |(row, prompt): (usize, &String)| {
        let inside = prompt.split('#').nth(1).filter(|inside| inside.parse::<usize>().is_ok());
        inside.map_or_else(|| row.to_string(), str::to_owned)
    };
    prompts.iter().enumerate().map(|row| strings(scripts, &number(row))).collect()
}

pub(super) fn question(prompt: &str) -> Question {
    Question {
        id: prompt.to_owned(),
        dataset: String::new(),
        question: prompt.to_owned(),
        golden_answers: Vec::new(),
        supporting: Vec::new(),
        supporting_kind: String::new(),
    }
}

/// One episode of ours, and where it leaves the reference's.
struct RecordedRow<'a> {
    episode: &'a Episode,
    /// Tokens before each turn of the row.
    contexts: Vec<String>,
    difference: Option<RolloutDifference>,
}

/// Something that `method §1` does in another way than the reference.
#[derive(Clone, Copy)]
struct RolloutDifference {
    what: &'static str,
    /// The turn in which the two part, and how many response tokens they share.
    turn: usize,
    n_shared: usize,
}

impl RecordedRow<'_> {
    /// Ids behind the prompt, as far as they are compared, and whether the agent wrote them.
    fn response(&self) -> Vec<(u32, bool)> {
        let segments = self.episode.segments.iter().filter(|segment| !segment.is_prompt());
        let ids =
            segments.flat_map(|segment| segment.ids().iter().map(|&id| (id, segment.is_agent())));
        ids.take(self.difference.map_or(usize::MAX, |difference| difference.n_shared)).collect()
    }

    /// The last turn whose context is compared.
    fn last_turn(&self) -> usize {
        self.difference.map_or(usize::MAX, |difference| difference.turn)
    }

    fn prompt(&self) -> &[u32] {
        self.episode.segments.first().map_or(&[], |segment| segment.ids())
    }

    /// Text of the agent, turn by turn.
    fn turns(&self) -> impl Iterator<Item = String> {
        self.episode
            .segments
            .iter()
            .filter(|segment| segment.is_agent())
            .map(|segment| decode(segment.ids()))
    }

    /// The executed query of each turn.
    fn queries(&self) -> Vec<Option<String>> {
        let mut queries = Vec::new();
        let mut searches = self.episode.searches.iter();
        for segment in &self.episode.segments {
            match segment {
                Segment::Agent { .. } => queries.push(None),
                Segment::Observation { kind: ObservationKind::Information, .. } => {
                    if let (Some(query), Some(search)) = (queries.last_mut(), searches.next()) {
                        *query = Some(search.query.clone());
                    }
                }
                _ => {}
            }
        }
        queries
    }
}

/// Recording of the reference about the lengths of a row.
struct Recorded {
    /// Real tokens of the row, and of its prompt alone.
    n_tokens: usize,
    n_prompt: usize,
    /// Nothing of what was recorded is longer than `max_prompt_length` allows: neither the
    /// responses nor a context from the second turn on.
    keeps_limit: bool,
    max_prompt_length: usize,
}

impl Recorded {
    fn read(
        rollout: &Value,
        tensors: &Tensors,
        name: &str,
        row: usize,
        max_prompt_length: usize,
    ) -> Result<Self, FixtureError> {
        let key = |part: &str| format!("{name}.{part}");
        let mask = tensors.integers(&key("attention_mask"))?;
        let [n_rows, n_cols] = mask.dims::<2>(&key("attention_mask"))?;
        let [_, n_prompt] = tensors.integers(&key("prompts"))?.dims::<2>(&key("prompts"))?;
        if row >= n_rows || n_prompt > n_cols {
            return Err(FixtureError::Shape {
                key: key("attention_mask"),
                shape: mask.shape,
                expected: format!("[> {row}, >= {n_prompt}]"),
            });
        }
        let count = |columns: std::ops::Range<usize>| {
            columns.filter(|col| mask.data[row * n_cols + col] != 0).count()
        };
        // The reference drops the oldest tokens of a context behind the first turn, and cuts
        // responses, to the limit. A token of the fixtures is a byte; a byte that is no text was
        // decoded to a whole character.
        let n_bytes = |text: &String| {
            text.chars()
                .map(|c| if c == char::REPLACEMENT_CHARACTER { 1 } else { c.len_utf8() })
                .sum::<usize>()
        };
        let contexts = nested(rollout, "contexts_seen_by_actor")?;
        let is_cut =
            contexts.iter().skip(1).flatten().all(|context| n_bytes(context) <= max_prompt_length);
        Ok(Self {
            n_tokens: count(0..n_cols),
            n_prompt: count(0..n_prompt),
            keeps_limit: n_cols - n_prompt <= max_prompt_length && is_cut,
            max_prompt_length,
        })
    }
}

/// Where an episode leaves the reference's on purpose. A limit excuses only a row whose own
/// recording shows that the reference met that limit.
fn difference(
    episode: &Episode,
    script: &[String],
    recorded: &Recorded,
    max_turns: usize,
) -> Option<RolloutDifference> {
    let mut n_shared = 0;
    let mut turn = 0;
    for segment in episode.segments.iter().filter(|segment| !segment.is_prompt()) {
        n_shared += segment.ids().len();
        if segment.is_agent() {
            let is_cut_elsewhere =
                script.get(turn).is_some_and(|text| cut_at_first_stop(text) != reference_cut(text));
            if is_cut_elsewhere {
                return Some(RolloutDifference {
                    what: "a turn ends at whichever stop string is complete first",
                    turn,
                    n_shared,
                });
            }
            // In its own last turn the reference executes no search either.
            let text = decode(segment.ids());
            if turn < max_turns && parse_action(&text) != reference_action(&text) {
                return Some(RolloutDifference { what: BLANK_SEARCH, turn, n_shared });
            }
            turn += 1;
        }
    }
    let what = match episode.status {
        Status::TruncatedLength
            if recorded.keeps_limit && recorded.n_tokens >= recorded.max_prompt_length =>
        {
            "an episode that would pass max_prompt_length is closed, the oldest tokens are not \
             dropped"
        }
        Status::PromptTooLong
            if recorded.keeps_limit && recorded.n_prompt >= recorded.max_prompt_length =>
        {
            "a prompt without room for an answer is not played"
        }
        _ => return None,
    };
    Some(RolloutDifference { what, turn, n_shared })
}

/// Every tensor of the reference's final batch, row by row: prompts left-padded, responses
/// right-padded, 0 is padding.
fn compare_tensors(
    name: &str,
    rows: &[RecordedRow<'_>],
    tensors: &Tensors,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let key = |part: &str| format!("{name}.{part}");
    let width = |part: &str| -> Result<usize, FixtureError> {
        let array = tensors.integers(&key(part))?;
        let [n_rows, width] = array.dims::<2>(&key(part))?;
        if n_rows != rows.len() {
            return Err(FixtureError::Shape {
                key: key(part),
                shape: array.shape,
                expected: format!("{} rows", rows.len()),
            });
        }
        Ok(width)
    };
    let (n_prompt, n_response) = (width("prompts")?, width("responses")?);
    let differs = rows.iter().any(|row| row.difference.is_some());
    let longest = rows.iter().map(|row| row.response().len()).max().unwrap_or(0);
    if !differs {
        case.equal(&key("response width"), &longest, &n_response);
    }
    for part in [
        "prompts",
        "initial_input_ids",
        "responses",
        "input_ids",
        "attention_mask",
        "info_mask",
        "position_ids",
    ] {
        let expected_width = match part {
            "prompts" | "initial_input_ids" => n_prompt,
            "responses" => n_response,
            _ => n_prompt + n_response,
        };
        let expected = tensors.integers_of(&key(part), &[rows.len(), expected_width])?;
        for (i, row) in rows.iter().enumerate() {
            let label = key(&format!("{part}.row{i}"));
            let (prompt, response) = (row.prompt(), row.response());
            if prompt.len() > n_prompt || response.len() > n_response {
                case.fail(
                    &label,
                    format!(
                        "{} + {} tokens, expected {n_prompt} + {n_response}",
                        prompt.len(),
                        response.len()
                    ),
                );
                continue;
            }
            let got = padded_row(part, prompt, &response, n_prompt, n_response);
            let expected = &expected[i * expected_width..(i + 1) * expected_width];
            let is_prompt_alone = matches!(part, "prompts" | "initial_input_ids");
            let n_unshared = if row.difference.is_some() && !is_prompt_alone {
                n_response - response.len()
            } else {
                0
            };
            let end = expected_width - n_unshared;
            case.equal(&label, &got[..end], &expected[..end]);
        }
    }
    Ok(())
}

/// One row of one tensor of the reference's layout.
fn padded_row(
    part: &str,
    prompt: &[u32],
    response: &[(u32, bool)],
    n_prompt: usize,
    n_response: usize,
) -> Vec<i64> {
    let (left, right) = (n_prompt - prompt.len(), n_response - response.len());
    let zeros = |n: usize| std::iter::repeat_n(0i64, n);
    let prompt_ids = || zeros(left).chain(prompt.iter().map(|&id| i64::from(id)));
    let response_ids = || response.iter().map(|&(id, _)| i64::from(id)).chain(zeros(right));
    let mask = |is_one: &dyn Fn(bool) -> bool| -> Vec<i64> {
        let response = response.iter().map(|&(_, is_agent)| i64::from(is_one(is_agent)));
        zeros(left).chain(prompt.iter().map(|_| 1)).chain(response).chain(zeros(right)).collect()
    };
    match part {
        "prompts" | "initial_input_ids" => prompt_ids().collect(),
        "responses" => response_ids().collect(),
        "input_ids" => prompt_ids().chain(response_ids()).collect(),
        "info_mask" => mask(&|is_agent| is_agent),
        "attention_mask" => mask(&|_| true),
        // Position of a real token = real tokens before it; 0 at padding.
        _ => mask(&|_| true)
            .into_iter()
            .scan(0, |n, m| {
                *n += m;
                Some((*n - 1) * m)
            })
            .collect(),
    }
}

fn compare_texts(
    name: &str,
    rollout: &Value,
    rows: &[RecordedRow<'_>],
    case: &mut Case,
) -> Result<(), FixtureError> {
    for key in ["responses_text", "trained_text"] {
        let expected = strings(rollout, key)?;
        case.equal(&format!("{name}.{key} rows"), &rows.len(), &expected.len());
        for (i, (row, expected)) in rows.iter().zip(&expected).enumerate() {
            let ids: Vec<u32> = row
                .response()
                .into_iter()
                .filter(|&(_, is_agent)| is_agent || key == "responses_text")
                .map(|(id, _)| id)
                .collect();
            let got = decode(&ids);
            let expected = if row.difference.is_some() && expected.starts_with(&got) {
                got.as_str()
            } else {
                expected
            };
            case.equal(&format!("{name}.{key}.row{i}"), got.as_str(), expected);
        }
    }
    Ok(())
}

/// Contexts, queries and per-row counts, turn by turn over the rows still playing.
fn compare_turns(
    name: &str,
    rollout: &Value,
    rows: &[RecordedRow<'_>],
    max_turns: usize,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let n_turns = rows.iter().map(|row| row.contexts.len()).max().unwrap_or(0);
    let contexts: Vec<Vec<String>> = (0..n_turns)
        .map(|turn| at_turn(rows, turn, &|row| row.contexts.get(turn).cloned()))
        .collect();
    let queries: Vec<Vec<String>> = (0..n_turns.min(max_turns))
        .map(|turn| at_turn(rows, turn + 1, &|row| row.queries().get(turn).cloned().flatten()))
        .collect();
    // A row that ends earlier on purpose is missing from later turns: what is there must then be
    // among the recorded.
    let differs = rows.iter().any(|row| row.difference.is_some());
    for (key, got) in [("contexts_seen_by_actor", contexts), ("queries_per_turn", queries)] {
        let expected = nested(rollout, key)?;
        let label = format!("{name}.{key}");
        if differs {
            let none = Vec::new();
            let is_among = |(turn, got): (usize, &Vec<String>)| {
                got.iter().all(|x| expected.get(turn).unwrap_or(&none).contains(x))
            };
            case.equal(&label, &got.iter().enumerate().all(is_among), &true);
        } else {
            case.equal(&label, &got, &expected);
        }
    }
    let meta = member(rollout, "meta")?;
    for key in object(meta, "meta")?.keys() {
        let n_turns_where = |row: &RecordedRow<'_>, wanted: &dyn Fn(&Action) -> bool| -> Value {
            row.turns().filter(|turn| wanted(&reference_action(turn))).count().into()
        };
        let of_row = |row: &RecordedRow<'_>| -> Option<Value> {
            Some(match key.as_str() {
                "turns_stats" => n_turns_where(row, &|_| true),
                "valid_action_stats" => n_turns_where(row, &|action| *action != Action::Invalid),
                "valid_search_stats" => {
                    n_turns_where(row, &|action| matches!(action, Action::Search(_)))
                }
                "active_mask" => (row.episode.status != Status::Answered).into(),
                _ => return None,
            })
        };
        let label = format!("{name}.meta.{key}");
        let expected = list(meta, key)?;
        case.equal(&format!("{label} rows"), &rows.len(), &expected.len());
        for (i, (row, expected)) in
            rows.iter().zip(expected).enumerate().filter(|(_, (row, _))| row.difference.is_none())
        {
            match of_row(row) {
                Some(got) => case.equal(&format!("{label}.row{i}"), &got, expected),
                None => case.fail_unknown([label.clone()]),
            }
        }
    }
    Ok(())
}

/// Values of the rows that are compared in `turn`.
fn at_turn(
    rows: &[RecordedRow<'_>],
    turn: usize,
    value: &dyn Fn(&RecordedRow<'_>) -> Option<String>,
) -> Vec<String> {
    rows.iter().filter(|row| turn <= row.last_turn()).filter_map(value).collect()
}

fn nested(value: &Value, key: &str) -> Result<Vec<Vec<String>>, FixtureError> {
    list(value, key)?.iter().map(|turn| strings(&serde_json::json!({ key: turn }), key)).collect()
}
