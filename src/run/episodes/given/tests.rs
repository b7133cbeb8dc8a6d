use super::*;
use dgpo_core::{
    rollout::RolloutBatch,
    testing::{byte_level_tokenizer, test_data},
    tokenizer::chat::Chat,
};

fn prompt(question: &Question) -> Result<Prompt, ChatError> {
    dgpo_core::env::prompt::prompt("Question: {question}\n", &Chat::plain(), &question.question)
}

fn trajectory(response: &str) -> Trajectory {
    let golden_answers = vec!["Vex".to_owned()];
    Trajectory {
        id: "t0".to_owned(),
        dataset: "tiny".to_owned(),
        question: "who?".to_owned(),
        golden_answers,
        response: response.to_owned(),
    }
}

fn agent_text(tokenizer: &Tokenizer, episode: &Episode) -> String {
    episode.segments.iter().filter(|s| s.is_agent()).map(|s| tokenizer.decode(s.ids())).collect()
}

#[test]
fn a_row_whose_segments_are_null_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("given.jsonl");
    std::fs::write(&path, r#"{"question": {"id": "x"}, "segments": null}"#).unwrap();
    let error = read_given(&path).unwrap_err().to_string();
    assert!(error.contains("given.jsonl:1: field `segments` is null; hint: "), "{error}");
}

#[test]
fn the_mask_covers_exactly_the_agents_text() {
    let tokenizer = byte_level_tokenizer();
    let response = "<think> naïve </think><search> Nolmar </search>\n\n<information>Doc 1(Title: \
                    \"N\") by Vex</information>\n\n<think> 中 </think><answer> Vex </answer>";
    let episode = episode_from_trajectory(&tokenizer, &prompt, &trajectory(response))
        .expect("an episode")
        .episode;
    let agent =
        "<think> naïve </think><search> Nolmar </search><think> 中 </think><answer> Vex </answer>";
    assert_eq!(agent_text(&tokenizer, &episode), agent);
    assert_eq!(tokenizer.decode(&episode.ids()), format!("Question: who?\n{response}"));
    let batch = RolloutBatch::new(&[&episode]);
    let masked: Vec<u32> = batch.agent_tokens(&[0]).labels;
    assert_eq!(tokenizer.decode(&masked), agent);
}

#[test]
fn status_reward_and_searches_follow_from_the_text() {
    let tokenizer = byte_level_tokenizer();
    let episode = |response: &str| {
        episode_from_trajectory(&tokenizer, &prompt, &trajectory(response))
            .expect("an episode")
            .episode
    };
    let right = episode(
        "<search> q </search>\n\n<information>by Vex</information>\n\n<answer> vex. </answer>",
    );
    assert_eq!(
        (&right.status, right.reward, right.prediction.as_deref()),
        (&Status::Answered, 1.0, Some("vex."))
    );
    let expected = SearchRecord {
        query: "q".to_owned(),
        passage_ids: Vec::new(),
        is_hit: true,
        is_cut: false,
        found_nothing: false,
    };
    assert_eq!(right.searches, [expected]);
    let stops: Vec<_> = right
        .segments
        .iter()
        .filter_map(|s| if let Segment::Agent { stop, .. } = s { Some(*stop) } else { None })
        .collect();
    assert_eq!(stops, [StopReason::StopString(0), StopReason::StopString(1)]);
    let open = episode(&format!("well{INVALID_ACTION}<search> q </search>"));
    assert_eq!(
        (&open.status, open.reward, open.n_invalid_actions),
        (&Status::TruncatedTurns, 0.0, 1)
    );
}

#[test]
fn a_trajectory_without_agent_text_is_refused() {
    let tokenizer = byte_level_tokenizer();
    let error =
        episode_from_trajectory(&tokenizer, &prompt, &trajectory("<information>x</information>"))
            .expect_err("nothing to train on");
    assert!(matches!(error, TrajectoryError::Empty { .. }), "{error}");
}

#[test]
fn a_turn_ends_where_the_engine_would_have_stopped() {
    let tokenizer = byte_level_tokenizer();
    // (response, what the agent keeps, prediction, text was lost)
    for (response, kept, prediction, is_cut) in [
        (
            "<think> maybe <answer> Vex </answer> or not </think><answer> cook </answer>",
            "<think> maybe <answer> Vex </answer>",
            "Vex",
            true,
        ),
        ("<answer> Vex </answer>\n", "<answer> Vex </answer>", "Vex", false),
        ("<answer> cook </answer><answer> Vex </answer>", "<answer> cook </answer>", "cook", true),
        (
            "<search> q </search> I wait.\n\n<information>x</information>\n\n<answer> Vex \
             </answer>",
            "<search> q </search><answer> Vex </answer>",
            "Vex",
            true,
        ),
        (
            "<answer> cook </answer>\n\n<information>x</information>\n\n<answer> Vex </answer>",
            "<answer> cook </answer>",
            "cook",
            true,
        ),
    ] {
        let Imported { episode, is_cut: was_cut } =
            episode_from_trajectory(&tokenizer, &prompt, &trajectory(response))
                .expect("an episode");
        assert_eq!(agent_text(&tokenizer, &episode), kept, "{response}");
        assert_eq!(
            (episode.prediction.as_deref(), was_cut),
            (Some(prediction), is_cut),
            "{response}"
        );
        assert_eq!(episode.is_correct(), prediction == "Vex", "{response}");
    }
}

#[test]
fn an_empty_answer_is_wrong_even_where_the_gold_answer_normalises_to_nothing() {
    let tokenizer = byte_level_tokenizer();
    let blank =
        Trajectory { golden_answers: vec!["A".to_owned()], ..trajectory("<answer> </answer>") };
    let Imported { episode, .. } =
        episode_from_trajectory(&tokenizer, &prompt, &blank).expect("an episode");
    assert_eq!((episode.prediction.as_deref(), episode.is_correct()), (Some(""), false));
}

/// An episode of the text above as a record of one that was played: with log-probs, after another
/// prompt.
fn record(tokenizer: &Tokenizer) -> Episode {
    let response =
        "<search> q </search>\n\n<information>by Vex</information>\n\n<answer> Vex </answer>";
    let mut episode = episode_from_trajectory(
        tokenizer,
        &|_| Ok(Prompt { text: "other".to_owned(), outside: 0..0 }),
        &trajectory(response),
    )
    .expect("an episode")
    .episode;
    for segment in &mut episode.segments {
        if let Segment::Agent { ids, sample_log_probs, .. } = segment {
            *sample_log_probs = vec![-0.5; ids.len()];
        }
    }
    episode
}

#[test]
fn a_record_keeps_its_ids_behind_this_recipes_prompt_and_is_judged_anew() {
    let tokenizer = byte_level_tokenizer();
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("demos.jsonl");
    let written = Episode { reward: 0.0, ..record(&tokenizer) };
    crate::episodes::write_episodes(&path, std::slice::from_ref(&written)).expect("written");
    let [given] = read_given(&path).expect("read").try_into().expect("one episode");
    let Imported { episode, is_cut } =
        episode_from_given(&tokenizer, &prompt, &given).expect("an episode");
    assert_eq!(tokenizer.decode(episode.segments[0].ids()), "Question: who?\n");
    let ids = |episode: &Episode| {
        episode.segments[1..]
            .iter()
            .flat_map(|segment| segment.ids().to_vec())
            .collect::<Vec<u32>>()
    };
    assert_eq!(ids(&episode), ids(&written));
    assert!(episode.is_correct() && !is_cut);
    assert!(episode.segments.iter().all(
        |s| !matches!(s, Segment::Agent { sample_log_probs, .. } if !sample_log_probs.is_empty())
    ));
}

#[test]
fn a_record_whose_ids_say_something_else_here_is_refused() {
    let tokenizer = byte_level_tokenizer();
    let played = record(&tokenizer);
    let unknown = tokenizer.n_tokens() as u32;
    let mut damaged = [played.clone(), played.clone(), played];
    damaged[0].prediction = Some("cook".to_owned());
    damaged[1].searches[0].query = "other".to_owned();
    damaged[2]
        .segments
        .push(Segment::Observation { ids: vec![unknown], kind: ObservationKind::Information });
    for (episode, what) in
        damaged.into_iter().zip(["the answer \"Vex\"", "the search \"q\"", "it has the id"])
    {
        let error = episode_from_given(&tokenizer, &prompt, &GivenEpisode::Record(episode))
            .expect_err("another tokenizer")
            .to_string();
        assert!(
            error.contains("another tokenizer") && error.contains(what) && error.contains("hint: "),
            "{error}"
        );
    }
}

#[test]
fn the_real_trajectories_become_episodes_whose_masks_cover_exactly_the_agents_text() {
    let (Some(folder), Some(file)) =
        (test_data("tokenizers/qwen2.5"), test_data("trajectories/r1_searcher_tgo.jsonl.gz"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_path(&folder).expect("tokenizer");
    let given = read_given(&file).expect("trajectories");
    assert_eq!(given.len(), 1750);
    let mut n_correct = 0;
    for one in &given {
        let GivenEpisode::Text(trajectory) = one else { panic!("a record") };
        let Imported { episode, is_cut } =
            episode_from_given(&tokenizer, &prompt, one).expect("an episode");
        assert!(!is_cut, "{}", trajectory.id);
        let expected: String = trajectory
            .pieces()
            .expect("read once already")
            .iter()
            .filter_map(|piece| match piece {
                Piece::Agent(text) => Some(text.as_str()),
                Piece::Observation(_) => None,
            })
            .collect();
        assert_eq!(agent_text(&tokenizer, &episode), expected, "{}", trajectory.id);
        n_correct += usize::from(episode.is_correct());
    }
    // The number that its publishers count as right by EM.
    assert_eq!(n_correct, 967);
}
