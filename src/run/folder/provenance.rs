//! Provenance of a run: the facts needed to make it again, or to see why it cannot be.
use crate::{
    config::{Recipe, secrets::without_users},
    hub,
    retriever::{declared::declaration_files, index::META_FILE},
};
use dgpo_core::settings::Phase;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Settings that were changed when a run was resumed (`crate::pipeline::steer`), a sentence for
/// each.
pub fn changes(provenance: &Value) -> Vec<String> {
    let mut told = Vec::new();
    for entry in provenance["changes"].as_array().into_iter().flatten() {
        let place = entry["behind"]
            .as_str()
            .map_or("before the first checkpoint".to_owned(), |name| format!("behind {name}"));
        for (key, values) in entry["settings"].as_object().into_iter().flatten() {
            told.push(format!("{place}: {key} = {} (was {})", values["now"], values["was"]));
        }
    }
    told
}

/// Larger files are recorded by size alone: hashing gigabytes of weights would delay every start.
const MAX_HASHED_BYTES: u64 = 256 << 20;

/// provenance.json. Nothing in it influences the run.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: &'static str,
    /// Fingerprint of the executable that started the run: two runs with the same one ran the same
    /// program. (The commit in the source folder at that time would say little: the folder may have
    /// moved on since the program was built.)
    pub executable: Option<String>,
    /// `--device`, for wgpu with the adapter and its driver.
    pub device: String,
    /// "fused", or "reference" where `DGPO_KERNELS=reference` was set: slower, and sums end in
    /// other digits.
    pub kernels: &'static str,
    /// Hardware threads of the machine.
    pub n_host_cores: usize,
    /// The command line as typed, without passwords.
    pub command_line: Vec<String>,
    pub seed: u64,
    /// Time of the run's start in seconds since 1970-01-01 UTC; the curves for TensorBoard are
    /// dated by it.
    pub started_unix_s: u64,
    /// Input files (by the name the recipe gives them), with every shard of a model's weights and
    /// the description of the index: `sha256:…`, or `size:…` above 256 MiB.
    pub files: BTreeMap<String, String>,
    /// Phases that another run has done (`--from`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<TakenOver>,
}

/// Phases reused from another run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TakenOver {
    pub run: PathBuf,
    pub phases: Vec<Phase>,
    /// Seconds of work that they took.
    pub wall_s: f64,
}

impl Provenance {
    /// Gathers the facts.
    /// # Errors
    /// If an input file that is there cannot be read. A missing file is not an error here; the code
    /// that needs it has a more specific message.
    pub fn collect(device: &str, recipe: &Recipe) -> io::Result<Self> {
        let files = fingerprints(recipe)?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            executable: std::env::current_exe().and_then(|path| fingerprint(&path)).ok(),
            device: device.to_owned(),
            kernels: dgpo_kernels::bodies(),
            n_host_cores: std::thread::available_parallelism().map_or(1, usize::from),
            command_line: std::env::args().map(|argument| without_users(&argument)).collect(),
            seed: recipe.run.seed,
            started_unix_s: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            files,
            taken_over: None,
        })
    }
}

/// Fingerprints of the inputs of a recipe that are there, by the names it gives them.
/// # Errors
/// If one of them cannot be read.
pub fn fingerprints(recipe: &Recipe) -> io::Result<BTreeMap<String, String>> {
    let fingerprint = |(name, path): (String, PathBuf)| Ok((name, fingerprint(&path)?));
    input_files(recipe).into_iter().map(fingerprint).collect()
}

/// The first of the inputs `now` of a recipe whose contents are not those that a run was started
/// with. Files of test questions may change: nothing is learned from them.
pub fn changed_input<'f>(
    provenance: &Value,
    recipe: &Recipe,
    now: &'f BTreeMap<String, String>,
) -> Option<&'f str> {
    let data = &recipe.data;
    let only_tests = |name: &String| {
        data.test.contains(name) && !data.train.iter().chain(&data.trajectories).any(|n| n == name)
    };
    let is_changed = |(name, now): &(&String, &String)| {
        provenance["files"].get(*name).is_some_and(|then| then != *now) && !only_tests(name)
    };
    now.iter().find(is_changed).map(|(name, _)| name.as_str())
}

/// The files a recipe names, those of its models and its index: (name, path).
fn input_files(recipe: &Recipe) -> Vec<(String, PathBuf)> {
    let Recipe { model, data, retriever, .. } = recipe;
    let named = data.train.iter().chain(&data.test).chain(&data.trajectories).chain([&data.corpus]);
    let folders = [&model.student, &model.teacher, &model.tokenizer, &retriever.encoder];
    let in_folders = folders.into_iter().filter(|name| !name.is_empty()).flat_map(|name| {
        let folder = name.strip_prefix("random:").unwrap_or(name);
        model_files(folder).into_iter().map(move |file| format!("{folder}/{file}"))
    });
    // The index holds the fingerprints of its encoder and corpus, which determine its vectors and
    // graph.
    let index = (!retriever.index.is_empty()).then(|| index_description(recipe));
    let names = named.filter(|name| !name.is_empty()).cloned().chain(in_folders).chain(index);
    names
        .filter_map(|name| {
            hub::resolve(&name).ok().filter(|path| path.is_file()).map(|path| (name, path))
        })
        .collect()
}

/// Name of the file that describes the recipe's index.
pub fn index_description(recipe: &Recipe) -> String {
    format!("{}/{META_FILE}", recipe.retriever.index)
}

/// Files that decide what a network computes, how text becomes ids, how a chat is written and where
/// a turn ends.
const DECIDING_FILES: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Names of the files in a model's folder that decide what it computes, in order; none where there
/// is no such folder.
fn model_files(folder: &str) -> Vec<String> {
    let entries = hub::resolve(folder)
        .ok()
        .and_then(|path| std::fs::read_dir(path).ok())
        .into_iter()
        .flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_input = |name: &String| {
        let is_weights =
            name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        is_weights || DECIDING_FILES.contains(&name.as_str())
    };
    let mut names: Vec<String> = names.filter(is_input).collect();
    names.extend(hub::resolve(folder).map(|path| declaration_files(&path)).unwrap_or_default());
    names.sort();
    names
}

/// `sha256:HEX` of a file, or `size:BYTES` where it is too large to hash at every start.
/// # Errors
/// If the file cannot be read.
pub fn fingerprint(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    if size_bytes > MAX_HASHED_BYTES {
        return Ok(format!("size:{size_bytes}"));
    }
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{:x}", digest.finalize())),
            n_read => digest.update(&buffer[..n_read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_are_the_recipes_files_and_those_of_its_models() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let shards = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        for name in [
            &["train.jsonl", "config.json", "chat_template.jinja", "notes.txt", "index.json"][..],
            &shards,
        ]
        .concat()
        {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut recipe = Recipe::default();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        std::fs::write(dir.path().join("1_Pooling/config.json"), "{}").unwrap();
        recipe.data.train = vec![path("train.jsonl"), path("missing.jsonl")];
        recipe.model.student = format!("random:{}", dir.path().display());
        (recipe.model.teacher, recipe.retriever.encoder) = (String::new(), String::new());
        recipe.retriever.index = dir.path().to_string_lossy().into_owned();
        let names: Vec<String> = input_files(&recipe).into_iter().map(|(name, _)| name).collect();
        let expected = [
            &["train.jsonl", "1_Pooling/config.json", "chat_template.jinja", "config.json"][..],
            &shards,
            &["index.json"],
        ]
        .concat();
        assert_eq!(names, expected.into_iter().map(path).collect::<Vec<_>>());
    }

    #[test]
    fn the_program_is_known_by_its_executable() {
        let provenance = Provenance::collect("cpu", &Recipe::default()).unwrap();
        assert_eq!(provenance.executable, fingerprint(&std::env::current_exe().unwrap()).ok());
    }

    #[test]
    fn a_run_knows_when_it_was_made() {
        let now = || UNIX_EPOCH.elapsed().unwrap().as_secs();
        let before = now();
        let started = Provenance::collect("cpu", &Recipe::default()).unwrap().started_unix_s;
        assert!((before..=now()).contains(&started), "{started}");
    }

    #[test]
    fn a_fingerprint_is_the_files_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            fingerprint(&path).unwrap(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
