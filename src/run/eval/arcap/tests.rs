use super::*;
use dgpo_core::{
    env::{
        Env,
        protocol::{ANSWER_OPEN, STOP_STRINGS, THINK_OPEN},
        search::{Retriever, SearchError},
    },
    rng::Purpose,
    rollout::{
        ObservationKind, RolloutBatch, Segment,
        play::{Rules, play_from},
        scripted::ScriptedGenerator,
    },
    settings::EpisodeRecipe,
};

/// A byte's id is its value + 3.
fn encode(text: &str) -> Result<Vec<u32>, TokenizerError> {
    Ok(text.bytes().map(|byte| u32::from(byte) + 3).collect())
}
fn decode(ids: &[u32]) -> String {
    String::from_utf8_lossy(&ids.iter().map(|&id| (id - 3) as u8).collect::<Vec<u8>>()).into_owned()
}

/// Finds the gold answer for queries that contain "good"; breaks on "down".
struct Searcher;
impl Retriever for Searcher {
    fn search(&self, queries: &[String], _top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        queries.iter().map(|query| found(query)).collect()
    }
    fn describe(&self) -> String {
        "by the wording".to_owned()
    }
}

fn found(query: &str) -> Result<Vec<Hit>, SearchError> {
    if query.contains("down") {
        return Err(SearchError::failed("503".to_owned()));
    }
    let text = if query.contains("good") { "Vex directed it" } else { "nothing" };
    Ok(vec![Hit {
        passage: Passage { id: "0".to_owned(), contents: format!("\"T\"\n{text}") },
        score: 1.0,
    }])
}

fn question(dataset: &str, id: &str, kind: &str) -> Question {
    let gold = |title: &str, text: &str| Supporting {
        title: title.to_owned(),
        text: text.to_owned(),
        pid: None,
    };
    Question {
        id: id.to_owned(),
        dataset: dataset.to_owned(),
        question: format!("who {id}?"),
        golden_answers: vec!["Vex".to_owned()],
        supporting: vec![gold("Nolmar", "Vex made Nolmar."), gold("Vex", "Vex is a person.")],
        supporting_kind: kind.to_owned(),
    }
}

fn limits() -> EpisodeRecipe {
    EpisodeRecipe {
        max_turns: 3,
        max_response_length: 60,
        max_obs_length: 200,
        max_start_length: 64,
        max_prompt_length: 600,
        ..EpisodeRecipe::default()
    }
}

/// Lets scripts play questions behind an opening.
fn recite(
    questions: &[Question],
    scripts: &[&[&str]],
    opening: &dyn Fn(&Question) -> Opening,
    limits: &EpisodeRecipe,
) -> Vec<Episode> {
    let scripts =
        scripts.iter().map(|turns| turns.iter().map(|&turn| turn.to_owned()).collect()).collect();
    let mut generator = ScriptedGenerator::new(scripts, &STOP_STRINGS, &encode, &decode);
    let env = Env {
        instruction: "{question}".to_owned(),
        chat: dgpo_core::tokenizer::chat::Chat::plain(),
        retriever: &Searcher,
        top_k: 3,
    };
    let rules = Rules { env: &env, encode: &|text, _| encode(text), limits };
    let keys: Vec<Key> =
        (0..questions.len() as u64).map(|i| Key::new(0, Purpose::Arcap).fold(i)).collect();
    play_from(&mut generator, rules, opening, questions, &keys).expect("plays")
}

fn texts(episode: &Episode) -> Vec<String> {
    episode.segments.iter().map(|segment| decode(segment.ids())).collect()
}

const GIVEN: &str = "\n\n<information>Doc 1(Title: \"Nolmar\") Vex made Nolmar.\nDoc 2(Title: \
                     \"Vex\") Vex is a person.</information>\n\n";

#[test]
fn the_forced_answer_is_the_environments_text_and_read_as_the_agents() {
    let one_turn = EpisodeRecipe { max_turns: 0, ..limits() };
    let opening = |question: &Question| gold_opening(question, "<answer>");
    let episodes =
        recite(&[question("m", "1", ANNOTATED)], &[&[" Vex </answer>"]], &opening, &one_turn);
    let episode = &episodes[0];
    assert_eq!(texts(episode), ["who 1?", GIVEN, "<answer>", " Vex </answer>"]);
    let kinds: Vec<_> = episode
        .segments
        .iter()
        .filter_map(|s| if let Segment::Observation { kind, .. } = s { Some(*kind) } else { None })
        .collect();
    assert_eq!(kinds, [ObservationKind::Information, ObservationKind::ForcedPrefix]);
    assert_eq!(
        (&episode.status, episode.prediction.as_deref(), episode.reward),
        (&Status::Answered, Some("Vex"), 1.0)
    );
    assert!(episode.searches.is_empty() && episode.n_invalid_actions == 0);
    // Given whole, although an observation of a search would be cut to 20 tokens; a loss would see
    // the agent's tokens alone.
    let batch = RolloutBatch::new(&[episode]);
    assert_eq!(decode(&batch.agent_tokens(&[0]).labels), " Vex </answer>");
}

#[test]
fn the_forced_prefix_begins_the_first_turn_alone() {
    let opening =
        |_: &Question| Opening { information: String::new(), forced_prefix: "<search>".to_owned() };
    let script: &[&str] = &[" good </search>", " Vex </answer>", "<answer> Vex </answer>"];
    let episodes = recite(&[question("m", "1", ANNOTATED)], &[script], &opening, &limits());
    assert_eq!(episodes[0].searches[0].query, "good");
    // The second turn has no opening tag, so it is no action.
    assert_eq!((episodes[0].n_invalid_actions, &episodes[0].status), (1, &Status::Answered));
}

#[test]
fn without_thinking_there_is_one_turn() {
    let one_turn = EpisodeRecipe { max_turns: 0, ..limits() };
    let opening = |question: &Question| gold_opening(question, "<answer>");
    let scripts: [&[&str]; 2] =
        [&[" I search </search>", " Vex </answer>"], &[" Vex", " Vex </answer>"]];
    let questions = ["1", "2"].map(|id| question("m", id, ANNOTATED));
    for episode in recite(&questions, &scripts, &opening, &one_turn) {
        assert_eq!(
            (&episode.status, episode.reward, episode.searches.len()),
            (&Status::TruncatedTurns, 0.0, 0)
        );
        assert_eq!(episode.segments.iter().filter(|segment| segment.is_agent()).count(), 1);
    }
}

#[test]
fn with_thinking_the_agent_may_search_again() {
    let opening = |question: &Question| gold_opening(question, "");
    let script: &[&str] =
        &["<think> hm </think> <search> good </search>", "<answer> Vex </answer>"];
    let episodes = recite(&[question("m", "1", ANNOTATED)], &[script], &opening, &limits());
    assert_eq!(
        texts(&episodes[0])[..3],
        ["who 1?", GIVEN, "<think> hm </think> <search> good </search>"]
    );
    assert_eq!((episodes[0].searches.len(), episodes[0].reward), (1, 1.0));
}

#[test]
fn gold_passages_without_room_end_the_episode_as_truncated_and_are_counted() {
    let opening = |question: &Question| gold_opening(question, "<answer>");
    let full = GIVEN.len() + "who 1?<answer>".len();
    for (max_prompt_length, expected) in
        [(full, Status::TruncatedLength), (full + 14, Status::Answered), (6, Status::PromptTooLong)]
    {
        let limits = EpisodeRecipe { max_prompt_length, max_turns: 0, ..limits() };
        let episodes =
            recite(&[question("m", "1", ANNOTATED)], &[&[" Vex </answer>"]], &opening, &limits);
        assert_eq!(episodes[0].status, expected);
        let figures = source_referencing(&episodes.iter().collect::<Vec<_>>(), key_of(0, "m"))
            .expect("one question");
        let is_answered = expected == Status::Answered;
        assert_eq!(
            (figures.em.value, figures.n_without_room),
            (share(is_answered), usize::from(!is_answered))
        );
    }
}

/// Four ordinary episodes of a data set: two hit with the first query, one with the second only,
/// one never searches.
fn ordinary(dataset: &str, kind: &str) -> Vec<Episode> {
    let questions: Vec<Question> =
        ["good", "b", "c", "down"].map(|id| question(dataset, id, kind)).into();
    let scripts: [&[&str]; 4] = [
        &["<search> good </search>", "<answer> Vex </answer>"],
        &["<search> bad </search>", "<search> good </search>", "<answer> Kel </answer>"],
        &["<answer> Vex </answer>"],
        &[
            "<search> good one </search>",
            "<search> bad </search>",
            "<search> bad </search>",
            "<answer> Vex </answer>",
        ],
    ];
    recite(&questions, &scripts, &Opening::none, &limits())
}

fn searched(episodes: &[Episode]) -> Vec<Result<Vec<Hit>, SearchError>> {
    episodes.iter().map(|episode| found(&episode.question.question)).collect()
}

#[test]
fn query_rewriting_and_thinking_have_the_values_of_the_script() {
    let ordinary = ordinary("nq", ANNOTATED);
    let searched = searched(&ordinary);
    let played = Played {
        ordinary: &ordinary,
        searched: &searched,
        without_thinking: &[],
        with_thinking: &[],
    };
    let row = Arcap::of(played, 0).datasets.remove("nq").expect("a data set");
    let rewriting = row.query_rewriting.expect("episodes");
    assert_eq!(rewriting.first_query_hit_ratio.value, 0.5);
    // "who good?" hits, "who b?" and "who c?" miss, "who down?" fails and is in neither.
    assert_eq!(
        (rewriting.question_hit_ratio.expect("searches").value, rewriting.n_failed_searches),
        (1.0 / 3.0, 1)
    );
    let thinking = row.thinking.expect("episodes");
    assert_eq!(
        (thinking.hit_ratio.value, thinking.searches.value, thinking.searched.value),
        (0.75, 1.5, 0.75)
    );
    assert_eq!((row.n_questions, row.n_annotated, row.without_thinking), (4, 4, None));
}

#[test]
fn episodes_lost_to_the_retriever_count_nowhere() {
    let mut ordinary = ordinary("nq", ANNOTATED);
    for lost in &mut ordinary[1..] {
        lost.status = Status::RetrieverFailed("503".to_owned());
    }
    let searched = searched(&ordinary);
    let played = Played {
        ordinary: &ordinary,
        searched: &searched,
        without_thinking: &ordinary[1..],
        with_thinking: &ordinary,
    };
    let row = Arcap::of(played, 0).datasets.remove("nq").expect("a data set");
    assert_eq!(row.query_rewriting.expect("one is left").first_query_hit_ratio.value, 1.0);
    assert_eq!(row.without_thinking, None);
    let with_thinking = row.with_thinking.expect("one is left");
    assert_eq!((with_thinking.n_questions, with_thinking.em.value), (1, 1.0));
}

#[test]
fn data_sets_without_annotated_passages_are_named() {
    let mut ordinary = [
        ordinary("nq", "retrieved_contains_answer"),
        ordinary("musique", ANNOTATED),
        ordinary("popqa", ANNOTATED),
    ]
    .concat();
    // Annotated, but with nothing.
    ordinary[8].question.supporting.clear();
    let searched = searched(&ordinary);
    let played = Played {
        ordinary: &ordinary,
        searched: &searched,
        without_thinking: &[],
        with_thinking: &[],
    };
    let arcap = Arcap::of(played, 0);
    assert_eq!(arcap.left_out(), ["nq"]);
    assert_eq!(arcap.in_part(), BTreeSet::from(["popqa"]));
    assert_eq!(arcap.datasets["popqa"].n_annotated, 3);
}

#[test]
fn the_answer_tag_is_written_as_the_vocabulary_has_it() {
    // A vocabulary trained on text with the tag behind a blank knows it in fewer pieces with the
    // blank.
    let tiny =
        std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny/student"));
    let tiny = Tokenizer::from_path(tiny).expect("the built-in tokenizer");
    assert_eq!(
        [ANSWER_OPEN, THINK_OPEN].map(|tag| tag_prefix(&tiny, tag).expect("encodes")),
        [" <answer>", "<think>"]
    );
    if let Some(qwen) = dgpo_core::testing::test_data("tokenizers/qwen2.5") {
        let qwen = Tokenizer::from_path(&qwen).expect("the tokenizer");
        assert_eq!(
            [ANSWER_OPEN, THINK_OPEN].map(|tag| tag_prefix(&qwen, tag).expect("encodes")),
            ["<answer>", "<think>"]
        );
    }
}

#[test]
fn the_figures_have_the_keys_other_tools_read() {
    let ordinary = ordinary("nq", ANNOTATED);
    let searched = searched(&ordinary);
    let played = Played {
        ordinary: &ordinary,
        searched: &searched,
        without_thinking: &ordinary,
        with_thinking: &ordinary,
    };
    let written = serde_json::to_value(Arcap::of(played, 0)).expect("plain figures");
    let row = &written["datasets"]["nq"];
    assert_eq!(
        (&row["n_annotated"], &row["query_rewriting"]["first_query_hit_ratio"]["value"]),
        (&4.into(), &0.5.into())
    );
    for estimate in [
        &row["without_thinking"]["em"],
        &row["with_thinking"]["em"],
        &row["thinking"]["hit_ratio"],
        &row["thinking"]["searches"],
    ] {
        assert!(["value", "low", "high"].iter().all(|key| estimate[key].is_f64()), "{estimate}");
    }
    assert_eq!(
        serde_json::from_value::<Arcap>(written).expect("what was written"),
        Arcap::of(played, 0)
    );
}
