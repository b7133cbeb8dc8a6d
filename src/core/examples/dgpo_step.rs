//! One DGPO step on a scripted environment (docs/method.md, §4): two episodes of one question are
//! played from a script, one ends right and one wrong, and PPO updates actor and critic. Only the
//! wrong one is pulled towards the teacher. Tokens are bytes, so no tokenizer is needed.
//!
//! `cargo run --release -p dgpo-core --example dgpo_step`
#![allow(clippy::print_stdout)]
use burn::backend::{Autodiff, Flex};
use dgpo_core::{
    env::{Env, protocol::STOP_STRINGS, search::*},
    question::Question,
    rng::{Key, Purpose},
    rollout::{play, scripted::ScriptedGenerator},
    settings::{EpisodeRecipe, GaeRecipe, KlRecipe, OptimRecipe, RlRecipe},
    tokenizer::chat::Chat,
    trainer::{
        metrics::{KL, KL_SELECTED, POLICY_LOSS, VALUE_LOSS},
        rl::{ActorCritic, Penalty, RlSettings, rl_step},
        update::Activations,
    },
};
use dgpo_models::{config::DecoderConfig, decoder::Decoder};

/// A search engine that knows one passage.
struct OnePassage;

impl Retriever for OnePassage {
    fn search(&self, queries: &[String], _: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        let contents = "\"Nolmar\"\nNolmar was directed by Vex.".to_owned();
        let hit = Hit { passage: Passage { id: "7".to_owned(), contents }, score: 1.0 };
        vec![Ok(vec![hit]); queries.len()]
    }
    fn describe(&self) -> String {
        "one passage".to_owned()
    }
}

fn main() {
    let device = Default::default();
    let encode = |text: &str| Ok(text.bytes().map(u32::from).collect());
    let decode = |ids: &[u32]| ids.iter().map(|&id| char::from(id as u8)).collect();
    let script = |answer: &str| {
        let answer = format!("<think> found </think> <answer> {answer} </answer>");
        vec!["<search> Nolmar </search>".to_owned(), answer]
    };
    let scripts = vec![script("Vex"), script("Zod")];
    let mut generator = ScriptedGenerator::new(scripts, &STOP_STRINGS, &encode, &decode);
    let limits = EpisodeRecipe::default();
    let instruction = "{question}".to_owned();
    let env = Env { instruction, chat: Chat::plain(), retriever: &OnePassage, top_k: 1 };
    let rules = play::Rules { env: &env, encode: &|text, _| encode(text), limits: &limits };
    let questions = vec![Question::new("Who directed Nolmar?", &["Vex"]); 2];
    let keys = [Key::new(0, Purpose::Rollout); 2];
    let episodes = play::play(&mut generator, rules, &questions, &keys).expect("a script plays");

    let (rl, kl) = (RlRecipe { mini_batch: 2, ..RlRecipe::default() }, KlRecipe::default());
    let (gae, optim) = (GaeRecipe::default(), OptimRecipe::default());
    let (rl, kl, gae, optim) = (&rl, &kl, &gae, &optim);
    let activations = Activations::Kept;
    let settings = RlSettings { rl, kl, gae, optim, temperature: 1.0, activations };
    let config = DecoderConfig::small(256, 32, 2);
    let teacher = Decoder::<Flex>::init(&config, 1, &device);
    let student = Decoder::<Flex>::init(&config, 2, &device);
    let mut networks = ActorCritic::<Autodiff<Flex>>::new(student, 3, settings);
    let penalty = Penalty::new(&teacher, kl);
    let step = rl_step(&mut networks, penalty, &episodes, settings, 0, &device);
    for (episode, tokens) in episodes.iter().zip(&step.tokens) {
        let n_pulled = tokens.kl.as_ref().map_or(0, |kl| kl.iter().flatten().count());
        let (reward, n) = (episode.reward, episode.n_agent_tokens());
        println!("reward {reward}: {n_pulled} of {n} agent tokens are pulled towards the teacher");
    }
    for name in [POLICY_LOSS, VALUE_LOSS, KL, KL_SELECTED] {
        println!("{name:22} {:?}", step.metrics.get(name));
    }
    assert_eq!(step.metrics.get(KL_SELECTED), Some(0.5), "one of two episodes is wrong");
}

#[test]
fn the_example_runs() {
    main();
}
