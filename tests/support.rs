//! A small world in a temporary folder, and `dgpo` run in it.
//!
//! [`World`] writes everything a recipe needs: shapes of two networks of some ten thousand
//! parameters, the tokenizer of the built-in world, a few of its questions and passages. `talker`
//! is a network made to write the protocol's tags and one answer, so that its episodes search,
//! answer, and are sometimes right, at random: what an untrained network never does.
use dgpo_core::rng::{Key, Purpose};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A file or folder of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The answer that `talker` likes to give, gold for every question of the world.
pub(crate) const ANSWER: &str = "lawyer";

/// Shape of the world's student: 1 layer of 32.
const WIDTH: usize = 32;
const N_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const FEED_FORWARD: usize = 64;
/// Vocabulary of the tiny tokenizer, rounded up as in its own networks.
pub(crate) const VOCAB_SIZE: usize = 976;

/// A temporary folder in which runs are made.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        for network in ["student", "teacher", "talker"] {
            let dir = world.path(network);
            fs::create_dir(&dir).unwrap();
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                fs::copy(repository("configs/tiny/student").join(file), dir.join(file)).unwrap();
            }
            let n_layers = if network == "teacher" { 2 } else { 1 };
            world.write(
                &format!("{network}/config.json"),
                &config_json(n_layers, VOCAB_SIZE, network != "talker").to_string(),
            );
        }
        write_safetensors(&world.path("talker/model.safetensors"), &talker_weights());
        world.write("corpus.jsonl", &first_lines("configs/tiny/corpus.jsonl", 30));
        let questions = first_lines("configs/tiny/train.jsonl", 40);
        let questions = questions.lines().map(|line| {
            let mut question: Value = serde_json::from_str(line).unwrap();
            question["golden_answers"] = json!([ANSWER]);
            question.to_string() + "\n"
        });
        world.write("questions.jsonl", &questions.collect::<String>());
        world.write("kd.toml", KD_RECIPE);
        world.write("rl.toml", RL_RECIPE);
        fs::copy(repository("configs/tiny/demos-1hop.jsonl.gz"), world.path("demos.jsonl.gz"))
            .unwrap();
        world
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    pub(crate) fn write(&self, inside: &str, text: &str) {
        fs::write(self.path(inside), text).unwrap();
    }

    /// `dgpo ARGUMENTS` in this folder, not started yet. Unpacked built-in files stay in the folder
    /// too.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dgpo"));
        command.args(arguments);
        self.at_home(&mut command);
        command
    }

    /// Lets any program run in this folder.
    pub(crate) fn at_home(&self, command: &mut Command) {
        command
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("NO_COLOR", "1");
        command.stdin(Stdio::null());
    }

    /// Runs `dgpo ARGUMENTS` to its end.
    pub(crate) fn dgpo(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    /// A copy of the talker under another name, to be damaged.
    pub(crate) fn copy_of_talker(&self, name: &str) -> PathBuf {
        copy_folder(&self.path("talker"), &self.path(name));
        self.path(name)
    }
}

/// KD of a random student towards a random teacher on recorded episodes; a checkpoint a step.
const KD_RECIPE: &str = r#"
extends = "tiny"
stage = "distill"
model = { student = "random:student", teacher = "random:teacher" }
data = { train = [], test = [], trajectories = ["demos.jsonl.gz"], corpus = "corpus.jsonl" }
distill = { steps = 4, batch = 96 }
run = { save_every = 1 }
"#;

/// DGPO of the talker with a random teacher over bm25; a checkpoint a step.
const RL_RECIPE: &str = r#"
extends = "tiny"
stage = "rl"
model = { student = "talker", teacher = "random:teacher" }
data = { train = ["questions.jsonl"], test = [], corpus = "corpus.jsonl" }
retriever = { kind = "bm25" }
rl = { steps = 4, questions_per_step = 48, mini_batch = 24 }
run = { save_every = 1 }
"#;

/// A Qwen2 config.json of a very small network.
pub(crate) fn config_json(n_layers: usize, vocab_size: usize, is_tied: bool) -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": is_tied,
        "initializer_range": 0.05,
        "eos_token_id": 1,
    })
}

/// Name, shape and values of a tensor.
type Named = (String, Vec<usize>, Vec<f32>);

/// One layer of small random weights around a Markov chain over the protocol's tags.
///
/// Number 0 of every embedding is 1, and number n + 1 of favourite n's is 1 too; all others are
/// nearly 0. They survive the trunk and the final norm (times 4 to 5.6), so in the output layer
/// column 0 is a bias, and column n + 1 says what follows favourite n. Against e^0 each of the 976
/// other tokens, e^(5.6 · 1.5) makes a tag likely after any token, and e^(4 · 2.5) makes a
/// transition nearly sure.
fn talker_weights() -> Vec<Named> {
    let key = Key::new(11, Purpose::World);
    let random = |n: u64, shape: &[usize], scale: f64| -> Vec<f32> {
        (0..shape.iter().product::<usize>())
            .map(|i| ((2.0 * key.fold(n).uniform(i as u64) - 1.0) * scale) as f32)
            .collect()
    };
    let favourites = favourite_ids();
    let [search, end_search, answer, end_answer, word] = [0, 1, 2, 3, 4];
    let mut embeddings = random(0, &[VOCAB_SIZE, WIDTH], 0.05);
    let mut output = random(1, &[VOCAB_SIZE, WIDTH], 0.3);
    for id in 0..VOCAB_SIZE {
        embeddings[id * WIDTH] = 1.0;
        output[id * WIDTH..id * WIDTH + 1 + favourites.len()].fill(0.0);
    }
    for (n, id) in favourites.iter().enumerate() {
        embeddings[id * WIDTH + 1 + n] = 1.0;
    }
    for (next, weight) in [(search, 1.5), (answer, 1.5), (end_search, 1.2)] {
        output[favourites[next] * WIDTH] = weight;
    }
    for (from, next, weight) in
        [(search, word, 2.1), (answer, word, 2.5), (word, end_answer, 3.3), (word, end_search, 2.0)]
    {
        output[favourites[next] * WIDTH + 1 + from] = weight;
    }
    let heads = N_HEADS * HEAD_DIM;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, WIDTH], embeddings),
        ("lm_head.weight".to_owned(), vec![VOCAB_SIZE, WIDTH], output),
        ("model.norm.weight".to_owned(), vec![WIDTH], vec![1.0; WIDTH]),
    ];
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("model.layers.0.{name}.weight"), vec![WIDTH], vec![1.0; WIDTH]));
    }
    let linear = [
        ("self_attn.q_proj", heads, WIDTH, true),
        ("self_attn.k_proj", HEAD_DIM, WIDTH, true),
        ("self_attn.v_proj", HEAD_DIM, WIDTH, true),
        ("self_attn.o_proj", WIDTH, heads, false),
        ("mlp.gate_proj", FEED_FORWARD, WIDTH, false),
        ("mlp.up_proj", FEED_FORWARD, WIDTH, false),
        ("mlp.down_proj", WIDTH, FEED_FORWARD, false),
    ];
    for (n, (name, n_out, n_in, has_bias)) in linear.into_iter().enumerate() {
        let shape = vec![n_out, n_in];
        let values = random(2 + n as u64, &shape, 0.02);
        tensors.push((format!("model.layers.0.{name}.weight"), shape, values));
        if has_bias {
            tensors.push((format!("model.layers.0.{name}.bias"), vec![n_out], vec![0.0; n_out]));
        }
    }
    tensors
}

/// Tokens of `<search>`, `</search>`, `<answer>`, `</answer>` and of the answer.
fn favourite_ids() -> Vec<usize> {
    let text = fs::read_to_string(repository("configs/tiny/student/tokenizer.json")).unwrap();
    let tokenizer: Value = serde_json::from_str(&text).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let id_of = |tag: &str| {
        added
            .iter()
            .find(|token| token["content"] == tag)
            .unwrap_or_else(|| panic!("no token {tag}"))["id"]
            .as_u64()
    };
    let mut ids: Vec<usize> = [" <search>", " </search>", " <answer>", " </answer>"]
        .iter()
        .map(|tag| id_of(tag).unwrap() as usize)
        .collect();
    // A word with a space in front, as byte-level BPE writes it.
    ids.push(tokenizer["model"]["vocab"][format!("\u{120}{ANSWER}")].as_u64().unwrap() as usize);
    ids
}

/// Writes the safetensors format by hand: eight bytes of length, a JSON header padded with blanks,
/// the data.
fn write_safetensors(path: &Path, tensors: &[Named]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(
            name.clone(),
            json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }),
        );
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
        .unwrap();
}

/// Every tensor of a safetensors file: its dtype, shape and bytes.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors
        .map(|(name, tensor)| {
            (
                name,
                (format!("{:?}", tensor.dtype()), tensor.shape().to_vec(), tensor.data().to_vec()),
            )
        })
        .collect()
}

fn first_lines(path: &str, n: usize) -> String {
    fs::read_to_string(repository(path))
        .unwrap()
        .lines()
        .take(n)
        .map(|line| format!("{line}\n"))
        .collect()
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Every file below a folder with its bytes, by path inside the folder.
pub(crate) fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            files.extend(
                files_below(&path).into_iter().map(|(inside, bytes)| (name.join(inside), bytes)),
            );
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Names of the entries of a folder, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The metrics of a run, without the figures that measure the machine.
pub(crate) fn metrics_of(run: &Path) -> Vec<BTreeMap<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines =
        text.lines().map(|line| serde_json::from_str::<BTreeMap<String, Value>>(line).unwrap());
    lines
        .map(|line| line.into_iter().filter(|(name, _)| !name.starts_with("perf/")).collect())
        .collect()
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Asserts success.
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "stderr:\n{}", self.stderr);
        self
    }

    /// The JSON on stdout of a command that succeeded.
    pub(crate) fn json(self) -> Value {
        let ended = self.done();
        serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|e| panic!("stdout is not JSON ({e}):\n{}", ended.stdout))
    }

    /// Asserts a failure that was foreseen: the exit code, every part of the message, a hint, no
    /// panic, nothing on stdout.
    pub(crate) fn failed(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stderr:\n{}", self.stderr);
        for part in [&["hint: "], parts].concat() {
            assert!(self.stderr.contains(part), "no {part:?} in stderr:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "stderr:\n{}", self.stderr);
        assert_eq!(self.stdout, "", "stderr:\n{}", self.stderr);
        self
    }
}

/// Starts a command, waits for the first line on stderr that contains `text`, does something to the
/// process, and waits for its end.
pub(crate) fn at_line(command: &mut Command, text: &str, act: impl FnOnce(&mut Child)) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut reader, mut stderr) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    loop {
        let start = stderr.len();
        let n_read = reader.read_line(&mut stderr).unwrap();
        assert!(n_read > 0, "the process ended without a line that contains {text:?}:\n{stderr}");
        if stderr[start..].contains(text) {
            break;
        }
    }
    act(&mut child);
    reader.read_to_string(&mut stderr).unwrap();
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    Ended { code: child.wait().unwrap().code(), stdout, stderr }
}

/// What Ctrl-C sends.
pub(crate) fn interrupt(child: &mut Child) {
    let status =
        Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}
