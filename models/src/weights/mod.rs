//! Checkpoints in Hugging Face layout: config.json plus safetensors, strictly in and out.
//!
//! Contract: a loaded model has exactly the tensors of the file, bit for bit up to the requested
//! dtype; anything missing, extra or of another shape is an error that lists every such tensor. A
//! saved folder is loaded by transformers and every tool that reads its layout. Files are
//! memory-mapped and copied tensor by tensor, so the cost of loading is one read of the file and
//! one copy of the model.
//!
//! `names` maps module fields to tensor names, `files` opens and checks safetensors, `cast`
//! converts elements, `load` and `save` walk modules.

mod cast;
mod files;
mod inspect;
mod load;
mod names;
mod save;
#[cfg(test)]
mod tests;

use crate::{
    Backend, ModelError,
    bert::BertEncoder,
    config::{self, BertConfig, DecoderConfig, ModelClass},
    decoder::Decoder,
    heads::Critic,
};
use burn::{
    module::{Module, ParamId},
    tensor::DType,
};
use files::Checkpoint;
use load::{Rules, check_n_layers, find_sources, load_into};
use save::save_module;
use std::path::{Path, PathBuf};

pub use inspect::{StoredTensor, visit_tensors};
pub use save::SHARD_SIZE_BYTES;

/// A decoder may be exported without its "model." prefix; rotary tables are computed, not read.
const DECODER: Rules = Rules {
    prefix: "model.",
    ignored_prefixes: &[],
    ignored_suffixes: &["rotary_emb.inv_freq"],
    skipped: &[],
};
/// A critic has no output head: `score` stands in its place, as in transformers'
/// `*ForTokenClassification`.
const CRITIC: Rules = Rules { skipped: &[LM_HEAD], ..DECODER };
/// BERT exports come with and without a "bert." prefix, a pooler, and the table of position
/// numbers.
const BERT: Rules = Rules {
    prefix: "bert.",
    ignored_prefixes: &["pooler."],
    ignored_suffixes: &["embeddings.position_ids"],
    skipped: &[],
};

const LM_HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Files beside the weights that belong to a model but that this crate does not read.
const SIDE_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Reads `config.json` and `model.safetensors` (or the sharded index) of a folder, strictly; floats
/// are converted to `dtype`.
/// # Errors
/// If a file is missing, truncated or malformed, the config asks for something not implemented, or
/// the tensors do not fit the model.
pub fn load_decoder<B: Backend>(
    dir: &Path,
    dtype: DType,
    device: &B::Device,
) -> Result<Decoder<B>, ModelError> {
    let (checkpoint, model) = open_decoder(dir, device)?;
    load_into(model, &checkpoint, &DECODER, dtype)
}

/// Reads a BERT encoder as [`load_decoder`] reads a decoder. A pooler in the file is ignored.
/// # Errors
/// As [`load_decoder`].
pub fn load_bert<B: Backend>(
    dir: &Path,
    dtype: DType,
    device: &B::Device,
) -> Result<BertEncoder<B>, ModelError> {
    let (checkpoint, model) = open_bert(dir, device)?;
    load_into(model, &checkpoint, &BERT, dtype)
}

/// Reads a critic (transformers' `*ForTokenClassification` with one label and a bias) as
/// [`load_decoder`] reads a decoder.
/// # Errors
/// As [`load_decoder`].
pub fn load_critic<B: Backend>(
    dir: &Path,
    dtype: DType,
    device: &B::Device,
) -> Result<Critic<B>, ModelError> {
    let (checkpoint, model) = open_critic(dir, device)?;
    load_into(model, &checkpoint, &CRITIC, dtype)
}

/// Compares config.json with the names, shapes and dtypes of the weights as loading does, without
/// reading weights: header bytes only, whatever the model's size.
/// # Errors
/// Those of loading the folder, but for what only the values show ([`ModelError::Overflow`]).
pub fn check_folder<B: Backend>(dir: &Path, device: &B::Device) -> Result<ModelClass, ModelError> {
    let class = ModelClass::of(&dir.join("config.json"))?;
    match class {
        ModelClass::Decoder => {
            let (checkpoint, model) = open_decoder::<B>(dir, device)?;
            find_sources::<B, _>(&model, &checkpoint, &DECODER)?;
        }
        ModelClass::Critic => {
            let (checkpoint, model) = open_critic::<B>(dir, device)?;
            find_sources::<B, _>(&model, &checkpoint, &CRITIC)?;
        }
        ModelClass::Encoder => {
            let (checkpoint, model) = open_bert::<B>(dir, device)?;
            find_sources::<B, _>(&model, &checkpoint, &BERT)?;
        }
    }
    Ok(class)
}

/// The files, and a model of the config's shape whose parameters exist only as shapes so far.
fn open_decoder<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(Checkpoint, Decoder<B>), ModelError> {
    let config = DecoderConfig::from_file(&dir.join("config.json"))?;
    let checkpoint = Checkpoint::open(dir)?;
    check_n_layers(config.num_hidden_layers, &checkpoint)?;
    Ok((checkpoint, Decoder::init(&config, 0, device)))
}

fn open_bert<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(Checkpoint, BertEncoder<B>), ModelError> {
    let config = BertConfig::from_file(&dir.join("config.json"))?;
    let checkpoint = Checkpoint::open(dir)?;
    check_n_layers(config.num_hidden_layers, &checkpoint)?;
    Ok((checkpoint, BertEncoder::init(&config, 0, device)))
}

fn open_critic<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(Checkpoint, Critic<B>), ModelError> {
    let config = DecoderConfig::from_file(&dir.join("config.json"))?;
    let checkpoint = Checkpoint::open(dir)?;
    check_n_layers(config.num_hidden_layers, &checkpoint)?;
    Ok((checkpoint, Critic::init(&config, 0, device)))
}

/// Writes config.json and model.safetensors (sharded with an index above [`SHARD_SIZE_BYTES`]). A
/// tied head is not written. `dtype` None keeps each tensor's own dtype; a cast to a smaller one
/// rounds to nearest even. Equal models give equal bytes.
///
/// Each file is written aside, synced and renamed, so a reader sees the old or the new file and
/// never half of one.
/// # Errors
/// If a file cannot be written, or a parameter is of a dtype that cannot be stored.
pub fn save_decoder<B: Backend>(
    model: &Decoder<B>,
    dir: &Path,
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    let stored = save_module(model, dir, dtype, &DECODER, SHARD_SIZE_BYTES)?;
    save::write_text(&dir.join("config.json"), &model.config().json_for("ForCausalLM", stored))
}

/// Writes a BERT encoder as [`save_decoder`] writes a decoder.
/// # Errors
/// As [`save_decoder`].
pub fn save_bert<B: Backend>(
    model: &BertEncoder<B>,
    dir: &Path,
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    let stored = save_module(model, dir, dtype, &BERT, SHARD_SIZE_BYTES)?;
    save::write_text(&dir.join("config.json"), &model.config().json_for(stored))
}

/// Writes a critic as transformers' `*ForTokenClassification` with one label: trunk,
/// `score.weight`, `score.bias`.
/// # Errors
/// As [`save_decoder`].
pub fn save_critic<B: Backend>(
    model: &Critic<B>,
    dir: &Path,
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    let stored = save_module(model, dir, dtype, &CRITIC, SHARD_SIZE_BYTES)?;
    save::write_text(
        &dir.join("config.json"),
        &model.trunk.config().json_for("ForTokenClassification", stored),
    )
}

/// Makes a saved folder as complete as the one the model came from: copies the tokenizer and
/// generation files of `source` that exist, and its config.json where it describes the same
/// architecture and shape as the one in `dir`: with the float type that the weights in `dir` are
/// stored in, and otherwise unchanged. Returns what was copied.
/// # Errors
/// If a file that exists cannot be read or written.
pub fn copy_side_files(source: &Path, dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let names = SIDE_FILES.iter().filter(|name| source.join(name).is_file());
    let mut copied = names
        .map(|name| save::copy_file(&source.join(name), &dir.join(name)))
        .collect::<Result<Vec<_>, _>>()?;
    let (original, written) = (source.join("config.json"), dir.join("config.json"));
    if config::describe_the_same_model(&original, &written) {
        save::write_text(&written, &config::dtype::text_for_stored(&original, &written)?)?;
        copied.push(written);
    }
    Ok(copied)
}

/// The Hugging Face name of every float parameter of a module, in visiting order
/// ("model.layers.0.self_attn.q_proj.weight", ...), with its ParamId. Optimizer state is stored
/// under these names.
pub fn parameter_names<B: Backend, M: Module<B>>(module: &M) -> Vec<(ParamId, String)> {
    names::parameters::<B, M>(module)
        .into_iter()
        .map(|parameter| (parameter.id, parameter.name))
        .collect()
}

/// An f32 array with a name, outside any model: optimizer moments, statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Sizes; `values` in row-major order.
    pub shape: Vec<usize>,
    /// Row-major; as many elements as the shape says.
    pub values: Vec<f32>,
}

/// Writes arrays to one safetensors file, ordered by name, with the same care as [`save_decoder`].
/// # Errors
/// If the file cannot be written.
/// # Panics
/// If a shape and its values disagree (a bug).
pub fn save_tensors(path: &Path, tensors: &[NamedTensor]) -> Result<(), ModelError> {
    save::write_named(path, tensors)
}

/// Reads every array of a file written by [`save_tensors`] (or any safetensors file of floats),
/// ordered by name.
/// # Errors
/// If the file is missing, truncated or malformed, or holds something other than floats.
pub fn load_tensors(path: &Path) -> Result<Vec<NamedTensor>, ModelError> {
    load::read_named(path)
}
