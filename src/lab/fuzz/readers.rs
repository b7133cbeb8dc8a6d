//! Every reader of files from outside, as the commands use it: opened, and what was read used once.
use super::{Sample, samples};
use crate::{conformance, reproduce};
use burn::tensor::{DType, Int, Tensor};
use dgpo_core::{
    env::{prompt::Prompt, search::Retriever},
    rollout::stats::EpisodeStats,
    settings::{AdamWRecipe, ChatTemplate, Phase},
    tokenizer::{
        Tokenizer,
        chat::{Chat, Message},
        stream::TextStream,
    },
    trainer::metrics::Metrics,
};
use dgpo_models::{
    config::ModelClass,
    weights::{check_folder, load_bert, load_critic, load_decoder, visit_tensors},
};
use dgpo_run::{
    config::{self, Search, load::differences, plan::plan},
    data::{corpus::Corpus, questions::read_questions},
    devices::{Cpu, CpuTrain},
    episodes::{
        given::{episode_from_given, read_given},
        read_episodes, read_records,
    },
    eval::{bootstrap, compare::compare, intervals},
    folder::{
        checkpoint::RunCheckpoint,
        run_dir::RunDir,
        state::{PhaseState, has_critic, read_critic, read_model, read_optimizer},
    },
    report,
    retriever::{
        answer,
        bm25::Bm25Retriever,
        index::{Index, IndexMeta},
    },
};
use std::{error::Error, path::Path, sync::Arc};

/// A reader and the files it is tried on.
pub struct Reader {
    pub name: &'static str,
    /// In a few words, for people.
    pub what: &'static str,
    pub(super) samples: fn() -> Result<Vec<Sample>, Box<dyn Error + Send + Sync>>,
    /// Reads the files of a folder.
    pub(super) read: fn(&Path) -> Result<(), String>,
    /// Leaves other files in the folder.
    pub(super) writes: bool,
}

impl Reader {
    /// A number that stays when readers are added: it decides which damage its cases have.
    pub(super) fn number(&self) -> u64 {
        self.name.bytes().fold(0, |number, byte| (number << 5) ^ (number >> 47) ^ u64::from(byte))
    }
}

/// All of them.
pub fn readers() -> &'static [Reader] {
    &READERS
}

/// The reader called `name`; also those that are wrong on purpose.
pub fn named(name: &str) -> Option<&'static Reader> {
    READERS.iter().chain([&WRONG_ON_PURPOSE]).find(|reader| reader.name == name)
}

const READERS: [Reader; 17] = [
    reader("weights", "safetensors, single and in shards", samples::weights, models),
    reader("configs", "config.json of decoders, critics and encoders", samples::configs, models),
    reader("tokenizer", "tokenizer.json, tokenizer_config.json", samples::tokenizers, tokenizer),
    reader("chat", "chat templates and what lies beside them", samples::chats, chat),
    reader("recipe", "recipes and what they extend", samples::recipes, recipe),
    reader("questions", "questions in JSON Lines", samples::questions, questions),
    reader("passages", "passages in JSON Lines, and BM25 over them", samples::passages, passages),
    reader("parquet", "questions in Parquet", samples::parquet, parquet),
    reader("gzip", "packed questions and passages", samples::gzip, gzip),
    reader(
        "trajectories",
        "episodes made elsewhere, as text and as records",
        samples::trajectories,
        trajectories,
    ),
    reader("episodes", "episodes of a run, and their comparison", samples::episodes, episodes),
    reader(
        "checkpoint",
        "state, optimizer and replay buffer of a checkpoint",
        samples::checkpoints,
        checkpoint,
    ),
    reader("index", "index folders, with and without their graph", samples::indexes, index),
    reader("fixtures", "recorded reference numbers", samples::fixtures, fixtures),
    Reader {
        writes: true,
        ..reader("run", "metrics, figures, episodes and provenance of a run", samples::runs, run)
    },
    Reader {
        writes: true,
        ..reader("results", "results of a reproduction", samples::results, results)
    },
    reader("answer", "what a retrieval server answers", samples::answers, server_answer),
];

const fn reader(
    name: &'static str,
    what: &'static str,
    samples: fn() -> Result<Vec<Sample>, Box<dyn Error + Send + Sync>>,
    read: fn(&Path) -> Result<(), String>,
) -> Reader {
    Reader { name, what, samples, read, writes: false }
}

fn said(error: impl ToString) -> String {
    error.to_string()
}

/// Loaded, looked at, and run on three tokens.
fn models(folder: &Path) -> Result<(), String> {
    let device = Default::default();
    let ids = || Tensor::<Cpu, 2, Int>::from_ints([[1, 2, 3]], &device);
    match ModelClass::of(&folder.join("config.json")).map_err(said)? {
        ModelClass::Decoder => {
            _ = load_decoder::<Cpu>(folder, DType::F32, &device)
                .map_err(said)?
                .hidden(ids(), None, None)
                .into_data()
        }
        ModelClass::Critic => {
            let critic = load_critic::<Cpu>(folder, DType::F32, &device).map_err(said)?;
            let hidden = critic.trunk.hidden(ids(), None, None);
            let [_, n, d] = hidden.dims();
            _ = critic.values(hidden.reshape([n, d])).into_data();
        }
        ModelClass::Encoder => {
            let encoder = load_bert::<Cpu>(folder, DType::F32, &device).map_err(said)?;
            _ = encoder.embed(ids(), Tensor::<Cpu, 2, Int>::ones([1, 3], &device)).into_data();
        }
    }
    check_folder::<Cpu>(folder, &device).map_err(said)?;
    visit_tensors(folder, |_| ()).map_err(said)
}

/// Texts that are encoded: words, nothing, white space, what is special somewhere, letters of many
/// scripts.
const TEXTS: [&str; 6] = [
    "who is the lawyer?",
    "",
    "  \n\n ",
    "<s></s>[CLS] <|im_end|> ##s",
    "naïve 🙂 中国 e\u{301}\u{0}",
    "Who directed Nolmar? <answer> Vex </answer>",
];

fn tokenizer(folder: &Path) -> Result<(), String> {
    let tokenizer = Tokenizer::from_path(folder).map_err(said)?;
    let mut first = None;
    for text in TEXTS {
        // An error on one text is as good as an error on opening.
        match (
            tokenizer.encode(text),
            tokenizer.encode_text(text),
            tokenizer.encode_with_special(text),
        ) {
            (Ok(ids), Ok(_), Ok(_)) => {
                _ = tokenizer.decode(&ids);
                let mut stream = TextStream::new(&tokenizer);
                for id in ids {
                    _ = stream.push(id);
                    _ = tokenizer.piece(id);
                }
                _ = stream.finish();
            }
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                first = first.or(Some(error.to_string()))
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// Rendered with one message, and with the template's own idea of a system prompt.
fn chat(folder: &Path) -> Result<(), String> {
    let tokenizer = Tokenizer::from_path(folder).map_err(said)?;
    let chat = Chat::open(ChatTemplate::Auto, "26 Jul 2024", &[folder.to_owned()], &tokenizer)
        .map_err(said)?;
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let chats = [
        vec![message("user", "who? \u{e000}")],
        vec![message("system", "Search."), message("user", ""), message("assistant", "a\n")],
    ];
    // A template may refuse the second one.
    let rendered = chats.map(|messages| chat.render(&messages, true).map_err(said));
    let [first, _] = rendered;
    tokenizer.encode(&first?).map(drop).map_err(said)
}

fn recipe(folder: &Path) -> Result<(), String> {
    let loaded = config::load(&folder.join("recipe.toml").to_string_lossy(), &[]).map_err(said)?;
    _ = loaded.run_name();
    _ = differences(&config::Recipe::default(), &loaded.recipe);
    _ = plan(&loaded.recipe, &config::shapes::Shapes::default());
    Ok(())
}

fn questions(folder: &Path) -> Result<(), String> {
    read_questions(&folder.join("questions.jsonl")).map(drop).map_err(said)
}

fn parquet(folder: &Path) -> Result<(), String> {
    read_questions(&folder.join("questions.parquet")).map(drop).map_err(said)
}

fn search(path: &Path) -> Result<(), String> {
    let corpus = Arc::new(Corpus::open(path).map_err(said)?);
    for at in 0..corpus.len() {
        _ = corpus.passage(at).map_err(said)?;
    }
    let retriever = Bm25Retriever::new(corpus).map_err(said)?;
    retriever
        .search(&["Rema Delir lawyer".to_owned()], 3)
        .into_iter()
        .try_for_each(|found| found.map(drop))
        .map_err(said)
}

fn passages(folder: &Path) -> Result<(), String> {
    search(&folder.join("corpus.jsonl"))
}

fn gzip(folder: &Path) -> Result<(), String> {
    let questions = folder.join("questions.jsonl.gz");
    if questions.is_file() {
        read_questions(&questions).map(drop).map_err(said)
    } else {
        search(&folder.join("corpus.jsonl.gz"))
    }
}

fn trajectories(folder: &Path) -> Result<(), String> {
    let given = read_given(&folder.join("trajectories.jsonl")).map_err(said)?;
    let tokenizer = Tokenizer::from_path(folder).map_err(said)?;
    let mut first = None;
    for one in given {
        let prompt = |question: &dgpo_core::question::Question| {
            let text = format!("Question: {}", question.question);
            Ok(Prompt { outside: 10..text.len(), text })
        };
        if let Err(error) = episode_from_given(&tokenizer, &prompt, &one) {
            // The records of the sample were played with another tokenizer.
            first =
                first.or(Some(error.to_string()).filter(|why| !why.contains("another tokenizer")));
        }
    }
    first.map_or(Ok(()), Err)
}

fn episodes(folder: &Path) -> Result<(), String> {
    let path = folder.join("episodes.jsonl");
    let episodes = read_episodes(&path).map_err(said)?;
    _ = EpisodeStats::of(&episodes);
    _ = intervals::Intervals::of(&episodes, 0);
    _ = compare(&episodes, &episodes, 0);
    _ = bootstrap::interval(episodes.iter().map(|episode| f64::from(episode.reward)));
    read_records(&path).map(drop).map_err(said)
}

fn checkpoint(folder: &Path) -> Result<(), String> {
    let device = Default::default();
    let checkpoint = RunCheckpoint { path: folder.to_owned(), phase: Phase::Rl, step: 3 };
    let mut state: PhaseState = checkpoint.read_state().map_err(said)?;
    if let Some(recipe) = &state.recipe {
        _ = differences(&config::Recipe::default(), recipe);
    }
    _ = state.guards.observe(&Default::default(), Phase::Rl, (4, 10), &Metrics::default());
    if state.sampler.n_items == 7 {
        _ = state.sampler.next(20);
    }
    let model = read_model::<Cpu>(folder, DType::F32, &device).map_err(said)?;
    _ = read_optimizer(&AdamWRecipe::default(), state.n_updates, &model, folder, &device)
        .map_err(said)?;
    if has_critic(folder) {
        _ = read_critic::<Cpu>(
            &AdamWRecipe::default(),
            state.critic_updates,
            DType::F32,
            folder,
            &device,
        )
        .map_err(said)?;
        return Ok(());
    }
    read_episodes(&folder.join("replay.jsonl")).map(drop).map_err(said)
}

/// Exactly, and through the graph.
fn index(folder: &Path) -> Result<(), String> {
    let meta = IndexMeta::read(folder).map_err(said)?;
    let exact = Index::open(folder, &meta, Search::Exact, 16).map_err(said)?;
    let query: Vec<f32> = (0..meta.encoder.dim).map(|at| if at == 0 { 1.0 } else { 0.0 }).collect();
    _ = exact.search(&query, 3);
    _ = Index::open(folder, &meta, Search::Hnsw, 16).map_err(said)?.search(&query, 3);
    Ok(())
}

/// A check that fails is an answer; one that does not understand its fixture says so.
fn fixtures(folder: &Path) -> Result<(), String> {
    let report = conformance::run::<CpuTrain>(folder, &Default::default()).map_err(said)?;
    let failed = report.families.values().flatten().find(|case| !case.passed());
    failed.map_or(Ok(()), |case| Err(format!("{} failed", case.name)))
}

fn run(folder: &Path) -> Result<(), String> {
    let run = RunDir::open(folder).map_err(said)?;
    let written = report::write(&run).map_err(said)?;
    // What is missing or damaged is named on the page.
    let named = written
        .warnings
        .iter()
        .find(|warning| !warning.contains("tokens are shown by their numbers"));
    named.map_or(Ok(()), |warning| Err(warning.clone()))
}

fn results(folder: &Path) -> Result<(), String> {
    reproduce::page::write(folder).map(drop).map_err(said)
}

fn server_answer(folder: &Path) -> Result<(), String> {
    let bytes = std::fs::read(folder.join("answer.json")).map_err(said)?;
    let lists = answer::read(&String::from_utf8_lossy(&bytes), 2, 3)?;
    lists.into_iter().try_for_each(|list| list.map(drop))
}

/// Does what no reader may do: case 0 panics, 1 aborts, 2 never ends, 3 takes all memory. So it can
/// be tested that each is found.
const WRONG_ON_PURPOSE: Reader =
    reader("wrong-on-purpose", "what must be found", wrong_samples, wrong);

fn wrong_samples() -> Result<Vec<Sample>, Box<dyn Error + Send + Sync>> {
    let named = |name: &str| Sample::changing_all(vec![(name.to_owned(), b"1".to_vec())]);
    Ok(["panic", "abort", "hang", "memory"].map(named).to_vec())
}

fn wrong(folder: &Path) -> Result<(), String> {
    let is = |name: &str| folder.join(name).is_file();
    if is("panic") {
        panic!("on purpose");
    }
    if is("abort") {
        std::process::abort();
    }
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        match is("memory") {
            true => taken.push(vec![1; 64 << 20]),
            false => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_models::config::DecoderConfig;

    #[test]
    fn readers_have_names_and_damage_of_their_own() {
        let mut names: Vec<&str> = READERS.iter().map(|reader| reader.name).collect();
        let mut numbers: Vec<u64> = READERS.iter().map(Reader::number).collect();
        names.sort_unstable();
        names.dedup();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!((names.len(), numbers.len()), (READERS.len(), READERS.len()));
        assert!(named("weights").is_some() && named("nothing").is_none());
    }

    #[test]
    fn shapes_of_the_samples_are_those_of_models() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for sample in samples::configs().expect("made") {
            for (name, bytes) in &sample.files {
                std::fs::write(folder.path().join(name), bytes).expect("written");
            }
            if matches!(ModelClass::of(&folder.path().join("config.json")), Ok(ModelClass::Decoder))
            {
                assert!(DecoderConfig::from_file(&folder.path().join("config.json")).is_ok());
            }
        }
    }
}
