//! What a run was made with: enough to make it again, or to see why it cannot be.
use crate::{config::Recipe, hub};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

/// Larger files are recorded by size alone: hashing gigabytes of weights would delay every start.
const MAX_HASHED_BYTES: u64 = 256 << 20;

/// provenance.json. Nothing in it influences the run.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Version of this program.
    pub version: &'static str,
    /// Commit of the source tree the binary was built from (`-dirty` if changed since), where the tree is still there and git is installed.
    pub git_commit: Option<String>,
    /// `--device`.
    pub device: String,
    /// Hardware threads of the machine.
    pub n_host_cores: usize,
    /// The command as typed.
    pub command_line: Vec<String>,
    pub seed: u64,
    /// Input files (by the name the recipe gives them): `sha256:…`, or `size:…` above 256 MiB.
    pub files: BTreeMap<String, String>,
}

impl Provenance {
    /// Gathers the facts.
    /// # Errors
    /// If an input file that is there cannot be read. A missing one is the business of whoever needs it, whose message knows more.
    pub fn collect(device: &str, recipe: &Recipe) -> io::Result<Self> {
        let files = input_files(recipe).into_iter().map(|(name, path)| Ok((name, fingerprint(&path)?))).collect::<io::Result<_>>()?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            git_commit: git_commit(),
            device: device.to_owned(),
            n_host_cores: std::thread::available_parallelism().map_or(1, usize::from),
            command_line: std::env::args().collect(),
            seed: recipe.run.seed,
            files,
        })
    }
}

/// The files a recipe names, and those of its models: (name, path).
fn input_files(recipe: &Recipe) -> Vec<(String, PathBuf)> {
    let Recipe { model, data, retriever, .. } = recipe;
    let named = data.train.iter().chain(&data.test).chain(&data.trajectories).chain([&data.corpus]);
    let folders = [&model.student, &model.teacher, &model.tokenizer, &retriever.encoder];
    let in_folders = folders.into_iter().filter(|name| !name.is_empty()).flat_map(|name| {
        let folder = name.strip_prefix("random:").unwrap_or(name);
        ["config.json", "tokenizer.json", "model.safetensors"].map(|file| format!("{folder}/{file}"))
    });
    let names = named.filter(|name| !name.is_empty()).cloned().chain(in_folders);
    names.filter_map(|name| hub::resolve(&name).ok().filter(|path| path.is_file()).map(|path| (name, path))).collect()
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

fn git_commit() -> Option<String> {
    let arguments = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"];
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_are_the_recipes_files_and_those_of_its_models() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for name in ["train.jsonl", "config.json", "notes.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut recipe = Recipe::default();
        recipe.data.train = vec![path("train.jsonl"), path("missing.jsonl")];
        recipe.model.student = format!("random:{}", dir.path().display());
        (recipe.model.teacher, recipe.retriever.encoder) = (String::new(), String::new());
        let names: Vec<String> = input_files(&recipe).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [path("train.jsonl"), path("config.json")]);
    }

    #[test]
    fn a_fingerprint_is_the_files_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(fingerprint(&path).unwrap(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
