//! Valid files of every format that the program reads, as small as they can be: what the changes
//! are made to.
use super::Sample;
use dgpo_core::{
    algo::{distill::TaidSchedule, kl::KlController, student_outputs::StudentShare},
    engine::StopReason,
    env::search::Passage,
    question::Question,
    rollout::{Episode, ObservationKind, Segment, Status, episode::SearchRecord},
    settings::{AdamWRecipe, ChatTemplate, Phase},
    trainer::{
        guards::Guards,
        metrics::{REWARD, SEARCHES},
        optimizer::AdamW,
    },
};
use dgpo_models::{
    bert::{BertEncoder, SentenceHead},
    config::{BertConfig, DecoderConfig, Family, RopeScaling},
    decoder::Decoder,
    heads::Critic,
    weights::{load_tensors, save_bert, save_critic, save_decoder, save_tensors},
};
use dgpo_run::{
    config::{Recipe, Search, load::to_toml},
    data::{corpus::Corpus, sampler::Sampler},
    devices::Cpu,
    episodes::write_episodes,
    eval::{Figures, Summary},
    folder::{
        checkpoint::write_state,
        run_dir::RunDir,
        state::{DistillState, PhaseState, SideFiles, write_critic, write_model, write_optimizer},
    },
    hub::builtin_files,
    retriever::{
        build::{BuildOptions, build},
        encoder::EncoderIdentity,
        hnsw::HnswParams,
    },
};
use serde_json::json;
use std::{error::Error, fs, io::Write, ops::ControlFlow, path::Path};

type Samples = Result<Vec<Sample>, Box<dyn Error + Send + Sync>>;

/// Qwen2's form with a tied head, or Llama's with its own and with stretched rotary frequencies.
fn decoder_config(is_tied: bool) -> DecoderConfig {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    DecoderConfig {
        family: if is_tied { Family::Qwen2 } else { Family::Llama },
        vocab_size: 16,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: if is_tied { RopeScaling::None } else { llama3 },
        is_tied,
        has_qkv_bias: is_tied,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_ids: vec![3],
    }
}

fn bert_config() -> BertConfig {
    BertConfig {
        vocab_size: 24,
        hidden_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 12,
        max_position_embeddings: 32,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        initializer_range: 0.02,
        pad_token_id: 0,
    }
}

/// Model folders of every class, one of them in two shards; `is_changed` says which files are
/// changed.
fn models(is_changed: fn(&str) -> bool) -> Samples {
    let (folder, device) = (tempfile::tempdir()?, Default::default());
    let [tied, untied, critic, bert] =
        ["tied", "untied", "critic", "bert"].map(|name| folder.path().join(name));
    for path in [&tied, &untied, &critic, &bert] {
        fs::create_dir(path)?;
    }
    save_decoder(
        &Decoder::<Cpu>::init(&decoder_config(true), 1, &device),
        &tied,
        Some(burn::tensor::DType::BF16),
    )?;
    save_decoder(&Decoder::<Cpu>::init(&decoder_config(false), 2, &device), &untied, None)?;
    shard(&untied)?;
    save_critic(&Critic::<Cpu>::init(&decoder_config(true), 3, &device), &critic, None)?;
    save_bert(&BertEncoder::<Cpu>::init(&bert_config(), 4, &device), &bert, None)?;
    [tied, untied, critic, bert].iter().map(|path| Sample::of_folder(path, is_changed)).collect()
}

/// Spreads the weights of a folder over two files and an index.
fn shard(folder: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let single = folder.join("model.safetensors");
    let tensors = load_tensors(&single)?;
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut weight_map = serde_json::Map::new();
    for (number, part) in [(1, first), (2, second)] {
        let name = format!("model-0000{number}-of-00002.safetensors");
        save_tensors(&folder.join(&name), part)?;
        weight_map.extend(part.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    fs::remove_file(single)?;
    let index = json!({"metadata": {"total_size": 4}, "weight_map": weight_map});
    Ok(fs::write(folder.join("model.safetensors.index.json"), index.to_string())?)
}

pub(super) fn weights() -> Samples {
    models(|name| name != "config.json")
}

pub(super) fn configs() -> Samples {
    models(|name| name == "config.json")
}

/// A file that is part of the program.
fn builtin(path: &str) -> Vec<u8> {
    builtin_files()
        .iter()
        .find(|(name, _)| *name == path)
        .map(|(_, bytes)| bytes.to_vec())
        .unwrap_or_default()
}

pub(super) fn tokenizers() -> Samples {
    let config = json!({"eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>", "special": true}}});
    let file = |bytes: &[u8]| ("tokenizer.json".to_owned(), bytes.to_vec());
    Ok(vec![
        Sample::changing_all(vec![file(include_bytes!("tokenizers/wordpiece.json"))]),
        Sample::changing_all(vec![
            file(include_bytes!("tokenizers/unigram.json")),
            ("tokenizer_config.json".to_owned(), config.to_string().into_bytes()),
        ]),
        Sample::changing_all(vec![file(include_bytes!("tokenizers/bpe-bytes.json"))]),
        Sample::changing_all(vec![file(&builtin("tiny/encoder/tokenizer.json"))]),
    ])
}

pub(super) fn chats() -> Samples {
    let tokenizer = || ("tokenizer.json".to_owned(), builtin("tiny/student/tokenizer.json"));
    let changing = |name: &str, bytes: Vec<u8>| Sample {
        files: vec![tokenizer(), (name.to_owned(), bytes)],
        changed: vec![1],
    };
    let generation = json!({"eos_token_id": [974, 972]}).to_string().into_bytes();
    Ok(vec![
        changing("tokenizer_config.json", builtin("tiny/student/tokenizer_config.json")),
        changing("chat_template.jinja", include_bytes!("templates/macros.jinja").to_vec()),
        Sample {
            files: vec![
                tokenizer(),
                ("tokenizer_config.json".to_owned(), builtin("tiny/student/tokenizer_config.json")),
                ("generation_config.json".to_owned(), generation),
            ],
            changed: vec![2],
        },
    ])
}

/// A recipe that lacks nothing.
fn recipe() -> Recipe {
    let mut recipe = Recipe::default();
    (recipe.data.train, recipe.data.test) = (vec!["train.jsonl".into()], vec!["test.jsonl".into()]);
    recipe.data.corpus = "corpus.jsonl".into();
    recipe
}

pub(super) fn recipes() -> Samples {
    let whole = ("recipe.toml".to_owned(), to_toml(&recipe()).into_bytes());
    let short = "extends = \"other.toml\"\n[rl]\nsteps = 20\nquestions_per_step = 8\nmini_batch = \
                 8\n[optim.actor]\nlr = 1e-5\n";
    let other = "extends = [\"base\", \"tiny\"]\nstage = \"rl\"\nkl = \
                 { mode = \"uniform\", coef = 0.01 }\n[data]\nmax_train = 10\n";
    let pair =
        vec![("recipe.toml".to_owned(), short.into()), ("other.toml".to_owned(), other.into())];
    Ok(vec![Sample::changing_all(vec![whole]), Sample::changing_all(pair)])
}

fn lines(rows: &[serde_json::Value]) -> Vec<u8> {
    rows.iter().map(|row| row.to_string() + "\n").collect::<String>().into_bytes()
}

fn question_lines() -> Vec<u8> {
    lines(&[
        json!({"id": "q1", "question": "Who founded Teil Press",
            "golden_answers": ["Rema Delir", "R. Delir"], "dataset": "tiny"}),
        json!({"id": 2, "question": "where is it?", "golden_answers": "Paris", "extra": [1.5, null], "supporting_kind": "title",
            "supporting": [{"title": "A", "text": "a", "pid": "17"}, {"title": "B", "text": "b"}]}),
        json!({"id": "q3", "question": "what does a naïve 🙂 say?", "golden_answers": ["The", "!!!"]}),
    ])
}

fn passage_lines() -> Vec<u8> {
    lines(&[
        json!({"id": "0", "contents": "\"Rema Delir\"\nRema Delir is a lawyer born in Tobsa Port."}),
        json!({"id": 1, "title": "Neba \"Delir\"", "text": "Neba Delir works as a teacher.\nSo \
                                                            they say.", "score": 1.5}),
        json!({"id": "x-2", "contents": "\"Rema Mevin\"\nnaïve 🙂 中国", "meta": {"a": [1, 2]}}),
        json!({"id": "x-3", "contents": "\"Teil Press\"\nTeil Press was founded by Rema Delir."}),
    ])
}

pub(super) fn questions() -> Samples {
    Ok(vec![Sample::changing_all(vec![("questions.jsonl".to_owned(), question_lines())])])
}

pub(super) fn passages() -> Samples {
    Ok(vec![Sample::changing_all(vec![("corpus.jsonl".to_owned(), passage_lines())])])
}

pub(super) fn parquet() -> Samples {
    let file =
        |bytes: &[u8]| Sample::changing_all(vec![("questions.parquet".to_owned(), bytes.to_vec())]);
    Ok(vec![
        file(include_bytes!("../../../tests/parquet/snappy.parquet")),
        file(include_bytes!("../../../tests/parquet/prompts-gzip-v2.parquet")),
        file(include_bytes!("../../../tests/parquet/prompts-zstd.parquet")),
    ])
}

fn packed(plain: &[u8]) -> Result<Vec<u8>, std::io::Error> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(plain)?;
    packer.finish()
}

pub(super) fn gzip() -> Samples {
    let two_members = [packed(&question_lines())?, packed(&question_lines())?].concat();
    Ok(vec![
        Sample::changing_all(vec![("questions.jsonl.gz".to_owned(), two_members)]),
        Sample::changing_all(vec![("corpus.jsonl.gz".to_owned(), packed(&passage_lines())?)]),
    ])
}

/// One search, one turn without an action, one answer.
fn episode() -> Episode {
    let question = Question {
        id: "q0".to_owned(),
        dataset: "tiny".to_owned(),
        question: "Who directed Nolmar?".to_owned(),
        golden_answers: vec!["Vex".to_owned()],
        supporting: Vec::new(),
        supporting_kind: String::new(),
    };
    let agent = |ids: &[u32], stop: usize| Segment::Agent {
        ids: ids.to_vec(),
        sample_log_probs: ids.iter().map(|&id| -0.125 * id as f32).collect(),
        stop: StopReason::StopString(stop),
    };
    Episode {
        question,
        segments: vec![
            Segment::Prompt { ids: vec![2, 41, 42, 3] },
            agent(&[5, 310, 6], 0),
            Segment::Observation {
                ids: vec![7, 402, 403, 88, 8],
                kind: ObservationKind::Information,
            },
            agent(&[9, 512, 10], 1),
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

/// As a run writes it, with the numbers of its tokens.
fn episode_lines() -> Result<Vec<u8>, serde_json::Error> {
    let plain = serde_json::to_value(episode())?;
    let mut measured = plain.clone();
    measured["tokens"] = json!({"version": 1, "old_log_probs": [-0.1, -0.2, -0.3, -0.4, -0.5, null], "kl": [0, 0, 0.5, 0, 0, 0],
        "values": vec![0.5; 11], "advantages": vec![-0.5; 11]});
    let failed = Episode {
        status: Status::RetrieverFailed("503".to_owned()),
        prediction: None,
        reward: 0.0,
        ..episode()
    };
    Ok(lines(&[measured, plain, serde_json::to_value(failed)?]))
}

pub(super) fn trajectories() -> Samples {
    let response = "<think> I need it. </think> <search> Teil Press </search>\n\n<information>Doc \
                    1(Title: \"Teil Press\") founded by Rema Delir.</information>\n\n<think> Now. \
                    </think> <answer> Rema Delir </answer>";
    let text = |response: &str| json!({"id": "t", "question": "who?", "golden_answers": ["Rema Delir"], "response": response});
    let mut bytes = lines(&[text(response), text("<answer> a </answer>"), text("I do not know.")]);
    bytes.extend(episode_lines()?);
    let tokenizer = ("tokenizer.json".to_owned(), builtin("tiny/student/tokenizer.json"));
    Ok(vec![Sample {
        changed: vec![0],
        files: vec![("trajectories.jsonl".to_owned(), bytes), tokenizer],
    }])
}

pub(super) fn episodes() -> Samples {
    Ok(vec![Sample::changing_all(vec![("episodes.jsonl".to_owned(), episode_lines()?)])])
}

/// A checkpoint of PPO and one of distillation with the student's own outputs.
pub(super) fn checkpoints() -> Samples {
    let (folder, device) = (tempfile::tempdir()?, Default::default());
    let decoder = Decoder::<Cpu>::init(&decoder_config(true), 1, &device);
    let critic = Critic::<Cpu>::init(&decoder_config(true), 2, &device);
    let optimizer = AdamW::<Cpu>::new(AdamWRecipe::default());
    let recipe = recipe();
    let state = |phase: Phase| PhaseState {
        step: 3,
        total: 10,
        sampler: Sampler { seed: 0, n_items: 7, epoch: 1, cursor: 2 },
        n_updates: 4,
        critic_updates: u64::from(phase == Phase::Rl) * 4,
        kl: Some(KlController::new(&recipe.kl)),
        n_skipped: 0,
        guards: Guards::default(),
        distill: (phase == Phase::Kd).then(|| DistillState {
            taid: TaidSchedule::of(&recipe.distill.taid),
            share: Some(StudentShare::new(&recipe.distill.student_outputs)),
            questions: Some(Sampler::new(0, 5)),
        }),
        wall_s: 1.5,
        recipe: Some(recipe.clone()),
    };
    let side_files = SideFiles { folders: Vec::new(), chat_template: ChatTemplate::Auto };
    let mut samples = Vec::new();
    for phase in [Phase::Rl, Phase::Kd] {
        let dir = folder.path().join(format!("{phase}-step-000003"));
        fs::create_dir(&dir)?;
        write_model(&decoder, &side_files, &dir)?;
        write_optimizer(&optimizer, &decoder, &dir)?;
        match phase {
            Phase::Rl => write_critic(&critic, &optimizer, &dir)?,
            _ => write_episodes(&dir.join("replay.jsonl"), &[episode()])?,
        }
        write_state(&dir, &state(phase))?;
        samples.push(Sample::of_folder(&dir, |name| {
            !name.contains("model/") && !name.contains("critic/")
        })?);
    }
    Ok(samples)
}

/// Vectors with a graph over them, and the passages.
pub(super) fn indexes() -> Samples {
    const N: usize = 40;
    const DIM: usize = 8;
    let passage =
        |at: usize| Passage { id: at.to_string(), contents: format!("\"{at}\"\ntext of {at}") };
    let corpus = Corpus::from_passages((0..N).map(passage).collect());
    let identity = EncoderIdentity {
        name: "encoder".to_owned(),
        fingerprint: "0123456789abcdef".to_owned(),
        dim: DIM,
        query_prefix: "query: ".to_owned(),
        passage_prefix: "passage: ".to_owned(),
        max_tokens: 32,
        head: SentenceHead::default(),
    };
    let mut embed = |texts: &[String], _: &mut dgpo_run::retriever::Tick| {
        let row = |text: &String| -> Vec<f32> {
            let numbers: Vec<f32> = (0..DIM)
                .map(|at| {
                    (text.len() as f32 + text.as_bytes()[at % text.len()] as f32 * at as f32).sin()
                })
                .collect();
            let norm = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
            numbers.into_iter().map(|x| x / norm).collect()
        };
        Ok(texts.iter().flat_map(row).collect())
    };
    let folder = tempfile::tempdir()?;
    let options = BuildOptions {
        corpus_name: "corpus.jsonl".to_owned(),
        search: Search::Hnsw,
        hnsw: HnswParams { m: 4, ef_construction: 16, ef_search: 16 },
        replace: false,
    };
    build(folder.path(), &options, &identity, &corpus, &mut embed, &mut |_| {
        ControlFlow::Continue(())
    })?;
    Ok(vec![Sample::of_folder(folder.path(), |_| true)?])
}

/// Recorded numbers of three families.
pub(super) fn fixtures() -> Samples {
    let sample = |family: &str, files: &[(&str, &[u8])]| {
        Sample::changing_all(
            files
                .iter()
                .map(|(name, bytes)| (format!("{family}/{name}"), bytes.to_vec()))
                .collect(),
        )
    };
    Ok(vec![
        sample(
            "text",
            &[
                ("actions.json", include_bytes!("../../../tests/oracles/text/actions.json")),
                ("documents.json", include_bytes!("../../../tests/oracles/text/documents.json")),
                (
                    "format_reward.json",
                    include_bytes!("../../../tests/oracles/text/format_reward.json"),
                ),
                ("scoring.json", include_bytes!("../../../tests/oracles/text/scoring.json")),
            ],
        ),
        sample(
            "ppo",
            &[
                ("values.json", include_bytes!("../../../tests/oracles/ppo/values.json")),
                (
                    "episode0a.safetensors",
                    include_bytes!("../../../tests/oracles/ppo/episode0a.safetensors"),
                ),
                (
                    "episode0b.safetensors",
                    include_bytes!("../../../tests/oracles/ppo/episode0b.safetensors"),
                ),
                (
                    "episode1a.safetensors",
                    include_bytes!("../../../tests/oracles/ppo/episode1a.safetensors"),
                ),
                (
                    "pieces.safetensors",
                    include_bytes!("../../../tests/oracles/ppo/pieces.safetensors"),
                ),
            ],
        ),
        sample(
            "losses",
            &[(
                "taid_schedule.json",
                include_bytes!("../../../tests/oracles/losses/taid_schedule.json"),
            )],
        ),
    ])
}

/// Files of a run beside its checkpoints.
pub(super) fn runs() -> Samples {
    let root = tempfile::tempdir()?;
    let provenance = json!({"version": "0.1.0", "device": "cpu", "command_line": ["dgpo", "train"], "files": {"train.jsonl": "ab"},
        "taken_over": {"run": "runs/cold", "phases": ["demos", "kd"], "wall_s": 2.5}});
    let run = RunDir::create(root.path(), "run", &recipe(), &provenance)?;
    let mut log = run.metrics(None)?;
    for step in 1..=3 {
        log.append(
            Phase::Rl,
            step,
            &[(REWARD, 0.1 * step as f64), (SEARCHES, 1.5), ("losses/kl", -0.25)],
        )?;
    }
    run.write_summary(&Summary {
        rl: Some(Figures::of(&[episode()])),
        student: Some(Figures::of(&[])),
        ..Summary::default()
    })?;
    fs::create_dir(run.evaluation_dir())?;
    let mut evaluation = serde_json::to_value(Figures::of(&[episode(), episode()]))?;
    evaluation["of"] = json!("rl-step-000003");
    fs::write(run.evaluation_dir().join("rl.json"), evaluation.to_string())?;
    for name in ["rl-step-000001.jsonl", "eval-rl.jsonl"] {
        fs::write(run.episodes_dir().join(name), episode_lines()?)?;
    }
    Ok(vec![Sample::of_folder(run.path(), |name| name != "lock" && name != "recipe.toml")?])
}

/// The results of a seed of the reproduction.
pub(super) fn results() -> Samples {
    let score = json!({"average_em": 0.5, "interval": {"low": 0.25, "high": 0.75}, "n_questions": 4,
        "datasets": {"tiny-1hop": {"em": 0.5, "n_questions": 4, "answered": "1010", "arcap": {"with_thinking": 0.25}}}});
    let row = |em: f64| {
        let mut score = score.clone();
        score["average_em"] = json!(em);
        json!({"outcome": "done", "recipe": "ab", "provenance": {"device": "cpu", "executable": "ff"}, "wall_s": 3.5, "own_wall_s": 1.0,
            "score": score, "train_reward": 0.5, "alarms": ["rl step 2: repetition"],
            "courses": {REWARD: {"steps": [2, 4], "values": [0.125, null], "steps_per_point": 2}}})
    };
    let results = json!({"seed": 0, "settings": ["rl.steps=2"], "rows": {"qwen-student": row(0.1), "qwen-teacher": row(0.7), "qwen-kd": row(0.5),
        "qwen-dgpo": row(0.8), "qwen-ppo": {"outcome": "failed", "why": "a guard"}}});
    Ok(vec![Sample::changing_all(vec![(
        "reproduction/seed-0.json".to_owned(),
        results.to_string().into_bytes(),
    )])])
}

/// Answer of a `/retrieve` server to two queries.
pub(super) fn answers() -> Samples {
    let hit = |id: serde_json::Value| json!({"document": {"id": id, "contents": "\"A\"\ntext"}, "score": 0.75});
    let answer = json!({"result": [[hit(json!("1")), hit(json!(2))], [{"id": 3, "contents": "\"B\"\nmore"}]], "time": 0.5});
    Ok(vec![Sample::changing_all(vec![(
        "answer.json".to_owned(),
        answer.to_string().into_bytes(),
    )])])
}
