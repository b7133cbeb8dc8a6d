//! Into which tokens does the tiny world's text fall?
//!
//! Sequence length is what a small machine pays for, and copying names is what a small model has to
//! learn. Hence a byte-level BPE (nothing is unknown, decoding gives the text back) whose merges
//! are trained until every word of the world is one token, a name two tokens, and in which the
//! fixed phrases of prompt and protocol ([`PHRASES`]) are one token each. Phrases carry the white
//! space that surrounds them in an episode: ` </think>` and ` <search>` are tokens, so that an
//! action costs two tokens and no bare spaces lie between. They are ordinary added tokens, not
//! special ones; the engine finds stop strings on the decoded text, as with any tokenizer. Text
//! outside the phrases (a user's own instruction) still encodes, into more and smaller pieces.
//!
//! Layout of ids: 256 bytes, merges, phrases, Qwen2.5's three special tokens.
//!
//! The words are found with a pattern of their own; the text is then split and normalised as
//! Qwen2.5 does it. To the world's own text both are the same, and other tools read the tokenizer
//! of a qwen2 model in Qwen's way whatever the file says (transformers 5: `Qwen2Tokenizer`).
use super::{
    questions::{Split, TinyQuestion},
    scripts::{ScriptedObservation, queries, script},
    world::World,
};
use dgpo_core::env::protocol::INVALID_ACTION;
use std::convert::Infallible;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split as SplitBy, SplitPattern},
    },
};

/// Texts that occur in every prompt or turn, one token each. The prompt's parts follow Qwen2.5's
/// chat template around the instruction `Answer by searching: {question}`.
pub const PHRASES: [&str; 16] = [
    "system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "user\nAnswer by searching:",
    "assistant\n",
    "<think>",
    " </think>",
    " <search>",
    " </search>",
    " <answer>",
    " </answer>",
    "\n\n<information>Doc 1(Title: \"",
    "\nDoc 2(Title: \"",
    "\nDoc 3(Title: \"",
    "</information>\n\n",
    "query:",
    "passage:",
    INVALID_ACTION,
];

/// Qwen2.5's special tokens, in its order.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Text that is trained on: words with their leading space, single digits, runs of punctuation,
/// GPT-2's pattern without contractions. (Qwen's would learn a quotation mark with the word behind
/// it.)
const WORDS: &str = r"\n+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Pattern that text is split by.
/// # Source
/// tokenizer.json of Qwen2.5;
/// huggingface/transformers:src/transformers/models/qwen2/tokenization_qwen2.py `PRETOKENIZE_REGEX`
const QWEN_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// More than the merges the world's words need: training ends when every word that occurs twice is
/// one token.
const MAX_BPE_TOKENS: usize = 1200;

/// Trains the vocabulary on passages, questions, thoughts and queries of a world.
/// # Errors
/// Those of the `tokenizers` crate.
pub fn train(world: &World, split: &Split) -> tokenizers::Result<Tokenizer> {
    let bytes = ByteLevel::new(false, false, false);
    let split_by = |pattern: &str| -> tokenizers::Result<Sequence> {
        let pieces = SplitBy::new(
            SplitPattern::Regex(pattern.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )?;
        Ok(Sequence::new(vec![pieces.into(), bytes.into()]))
    };
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(split_by(WORDS)?));
    tokenizer.with_decoder(Some(bytes));
    let trainer = BpeTrainer::builder()
        .vocab_size(MAX_BPE_TOKENS)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), training_texts(world, split).into_iter())?;
    tokenizer.with_normalizer(Some(NFC)).with_pre_tokenizer(Some(split_by(QWEN_PATTERN)?));
    tokenizer.add_tokens(&PHRASES.map(|phrase| AddedToken::from(phrase, false).normalized(false)));
    tokenizer.add_special_tokens(
        &SPECIAL_TOKENS.map(|token| AddedToken::from(token, true).normalized(false)),
    );
    Ok(tokenizer)
}

/// Separators of the phrases of prompts, scripts, observations and encoder inputs.
fn training_texts(world: &World, split: &Split) -> Vec<String> {
    let mut texts = Vec::new();
    let mut add = |text: &str| {
        let text = PHRASES.iter().fold(text.to_owned(), |text, phrase| text.replace(phrase, "\0"));
        texts.extend(text.split('\0').filter(|piece| !piece.is_empty()).map(str::to_owned));
    };
    for passage in world.passages() {
        add(&format!("passage: {}", passage.contents));
        add(&format!("Doc 1(Title: {}) {}\n", passage.title(), passage.text()));
    }
    for tiny in &split.train {
        add(&format!("user\nAnswer by searching: {}\n", tiny.question.question));
        add(&found_at_the_second_try(tiny));
        tiny.hops.iter().flat_map(queries).for_each(|query| add(&format!("query: {query}")));
    }
    texts
}

/// The longest script of a question, with its observations left out.
fn found_at_the_second_try(tiny: &TinyQuestion) -> String {
    let gold: Vec<String> = tiny.hops.iter().map(|hop| hop.passage_idx.to_string()).collect();
    let mut n_searches = 0;
    let played = script(tiny, &mut |_| {
        n_searches += 1;
        let passage_ids = if n_searches % 2 == 0 { gold.clone() } else { Vec::new() };
        Ok::<_, Infallible>(ScriptedObservation { passage_ids, text: String::new() })
    });
    played.ok().flatten().map(|trajectory| trajectory.response).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{questions::split, world::Relation},
        *,
    };

    fn trained() -> (World, Tokenizer) {
        let world = World::generate(0);
        let tokenizer = train(&world, &split(&world, 0)).expect("the world's texts train");
        (world, tokenizer)
    }

    fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer
            .encode(text, false)
            .expect("byte-level BPE encodes everything")
            .get_tokens()
            .to_vec()
    }

    #[test]
    fn a_name_is_two_tokens_wherever_it_stands() {
        let (world, tokenizer) = trained();
        for relation in
            [Relation::Director, Relation::Birthplace, Relation::Founder, Relation::Country]
        {
            for fact in world.facts(relation) {
                let name = &fact.subject;
                let alone = tokens(&tokenizer, &format!(" {name}"));
                assert_eq!(alone.len(), 2, "{name} is {alone:?}");
                for context in [
                    format!("<search> {name} job </search>"),
                    format!("Where was {name} born?"),
                    format!("</think> <answer> {name} </answer>"),
                ] {
                    let inside = tokens(&tokenizer, &context);
                    assert!(
                        inside.windows(2).any(|pair| pair == alone),
                        "{context:?} is {inside:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_tag_is_one_token_with_the_space_before_it() {
        let (_, tokenizer) = trained();
        // Four tags, four words.
        assert_eq!(
            tokens(&tokenizer, "<think> The job </think> <search> the job </search>").len(),
            8
        );
        assert_eq!(tokens(&tokenizer, INVALID_ACTION).len(), 1);
    }

    #[test]
    fn qwens_splitting_takes_the_worlds_own_words_apart_as_the_one_trained_with() {
        let (world, tokenizer) = trained();
        let mut as_trained = tokenizer.clone();
        let pieces = SplitBy::new(
            SplitPattern::Regex(WORDS.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .expect("compiles");
        as_trained.with_pre_tokenizer(Some(Sequence::new(vec![
            pieces.into(),
            ByteLevel::new(false, false, false).into(),
        ])));
        for text in training_texts(&world, &split(&world, 0)) {
            // As it stands in an observation.
            let text = text.replace("Doc 1(Title: \"", "\n\n<information>Doc 1(Title: \"");
            assert_eq!(tokens(&tokenizer, &text), tokens(&as_trained, &text), "{text}");
        }
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let (world, tokenizer) = trained();
        let text = format!(
            "<|im_start|>user\nAnswer by searching: naïve  text?\n<|im_end|>\n<think> é </think> \
             <search> x </search>\n\n<information>Doc 1(Title: {}",
            world.passages()[0].contents
        );
        let ids = tokenizer.encode(text.as_str(), false).expect("encodes").get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), text);
    }
}
