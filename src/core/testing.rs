//! Helpers of the tests of this crate and of those above it (feature `testing`).
use crate::{
    engine::StopReason,
    question::Question,
    rollout::{Episode, ObservationKind, Segment, Status, episode::SearchRecord},
    tokenizer::Tokenizer,
};
use std::{io::Write, path::PathBuf};
use tokenizers::{
    AddedToken,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

/// The CPU backend.
pub type Cpu = burn::backend::Flex;
/// The CPU backend with gradients.
pub type CpuTrain = burn::backend::Autodiff<Cpu>;

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// A file of real data for tests, in the folder named by `DGPO_DATA_DIR`. Without it the caller's
/// test has nothing to check and returns: it is said to be skipped, unless `DGPO_REQUIRE_DATA=1`
/// demands it.
/// # Panics
/// If the data are required and not there.
pub fn test_data(path: &str) -> Option<PathBuf> {
    let found = std::env::var_os("DGPO_DATA_DIR").map(|folder| PathBuf::from(folder).join(path));
    let is_required = std::env::var_os("DGPO_REQUIRE_DATA").is_some_and(|value| value == "1");
    assert!(found.is_some() || !is_required, "DGPO_REQUIRE_DATA=1, but DGPO_DATA_DIR is not set");
    if found.is_none() {
        skipped("DGPO_DATA_DIR names no folder of real data");
    }
    found
}

/// Says that the running test checks nothing, and why. Written past the capture of test output,
/// which hides what a passing test prints: "ok" alone would look like a check.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// The episode drawn in the documentation of [`crate::rollout::episode`].
pub fn drawn_episode() -> Episode {
    Episode {
        question: Question {
            id: "q0".to_owned(),
            dataset: "tiny".to_owned(),
            question: "Who directed Nolmar?".to_owned(),
            golden_answers: vec!["Vex".to_owned()],
            supporting: Vec::new(),
            supporting_kind: String::new(),
        },
        segments: vec![
            Segment::Prompt { ids: vec![2, 41, 42, 3] },
            Segment::Agent {
                ids: vec![5, 310, 6],
                sample_log_probs: vec![-0.1, -2.5, -1e-7],
                stop: StopReason::StopString(0),
            },
            Segment::Observation {
                ids: vec![7, 402, 403, 88, 8],
                kind: ObservationKind::Information,
            },
            Segment::Agent {
                ids: vec![9, 512, 10],
                sample_log_probs: vec![-0.3, -0.7, 0.0],
                stop: StopReason::StopString(1),
            },
        ],
        status: Status::Answered,
        prediction: Some("Vex".to_owned()),
        reward: 1.0,
        searches: vec![SearchRecord {
            query: "Nolmar".to_owned(),
            passage_ids: vec!["17".to_owned()],
            is_hit: true,
            is_cut: false,
            found_nothing: false,
        }],
        n_invalid_actions: 0,
    }
}

/// A byte-level BPE over a few lines of text, with `<|im_end|>` as a special token.
pub fn byte_level_tokenizer() -> Tokenizer {
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    let special = AddedToken::from("<|im_end|>", true);
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(330)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![special])
        .build()
        .into();
    let text = "<search> who wrote it </search>\n\n<think> the answer is the answer </think> \
                naïve 中文 中国 café <answer> yes </answer>";
    inner.train(&mut trainer, std::iter::repeat_n(text, 5)).expect("a trained tokenizer");
    Tokenizer::new(inner, PathBuf::from("trained-in-the-test")).expect("a usable tokenizer")
}
