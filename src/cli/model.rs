//! `dgpo model info|export`: what a model folder holds, and writing it in another dtype.
use super::{Outcome, UsageError, args::DeviceArgs, output};
use crate::{
    hub,
    trainer::{
        devices::{Job, with_device},
        models,
    },
};
use anyhow::Context as _;
use burn::tensor::DType;
use clap::Subcommand;
use dgpo_models::{
    ModelError, TrainBackend,
    config::{BertConfig, DecoderConfig},
    weights::{copy_side_files, load_bert, load_decoder, save_bert, save_decoder, visit_tensors},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Look into a model folder, or write it in another dtype.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show a model's shape, parameters, dtypes, size and checksum.
    ///
    /// Example: dgpo model info Qwen/Qwen2.5-0.5B-Instruct
    Info {
        /// Folder, owner/name in the Hugging Face cache, or builtin:NAME.
        model: String,
        /// Print one JSON object instead.
        #[arg(long)]
        json: bool,
    },
    /// Write a model in Hugging Face layout, in another dtype if asked.
    ///
    /// Example: dgpo model export runs/mine/checkpoints/rl-step-000200/model --out mine --dtype bf16
    Export {
        /// Folder, owner/name in the Hugging Face cache, or builtin:NAME.
        model: String,
        /// Folder to write; it must not hold a model yet.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// f32, bf16 or f16; without it every tensor keeps its own.
        #[arg(long, value_name = "DTYPE")]
        dtype: Option<String>,
        #[command(flatten)]
        device: DeviceArgs,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Info { model, json } => {
            let info = Info::read(&hub::resolve(&model)?)?;
            if json { output::json(&info)? } else { output::data(&info.to_string())? }
        }
        Command::Export { model, out, dtype, device } => export(&model, &out, dtype.as_deref(), device)?,
    }
    Ok(Outcome::Done)
}

/// The two kinds of models this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Decoder,
    Encoder,
}

#[derive(Debug, Serialize)]
struct Info {
    path: PathBuf,
    kind: Kind,
    /// `model_type` and sizes of config.json.
    shape: BTreeMap<&'static str, String>,
    n_parameters: usize,
    n_tensors: usize,
    size_bytes: u64,
    /// Elements of each dtype.
    dtypes: BTreeMap<String, usize>,
    /// SHA-256 over name, dtype, shape and bytes of every tensor, by name: the same however the tensors are spread over files.
    tensors_sha256: String,
}

impl Info {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let kind = kind_of(dir)?;
        let shape = shape_of(dir, kind)?;
        let (mut digest, mut dtypes, mut size_bytes, mut n_tensors) = (Sha256::new(), BTreeMap::new(), 0, 0);
        visit_tensors(dir, |tensor| {
            digest.update(format!("{}\0{}\0{:?}\0", tensor.name, tensor.dtype, tensor.shape));
            digest.update(tensor.bytes);
            *dtypes.entry(tensor.dtype.to_owned()).or_insert(0) += tensor.shape.iter().product::<usize>();
            size_bytes += tensor.bytes.len() as u64;
            n_tensors += 1;
        })?;
        let n_parameters = dtypes.values().sum();
        let tensors_sha256 = format!("{:x}", digest.finalize());
        Ok(Self { path: dir.to_owned(), kind, shape, n_parameters, n_tensors, size_bytes, dtypes, tensors_sha256 })
    }
}

impl std::fmt::Display for Info {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let grouped = |n: usize| output::grouped(n as u64);
        let mut line = |name: &str, value: String| writeln!(f, "{name:<24} {value}");
        line("path", self.path.display().to_string())?;
        for (name, value) in &self.shape {
            line(name, value.clone())?;
        }
        line("parameters", grouped(self.n_parameters))?;
        line("tensors", grouped(self.n_tensors))?;
        line("dtypes", self.dtypes.iter().map(|(dtype, n)| format!("{dtype} {}", grouped(*n))).collect::<Vec<_>>().join(", "))?;
        line("size", output::bytes(self.size_bytes))?;
        line("tensors sha256", self.tensors_sha256.clone())
    }
}

/// Decided by `model_type` alone; everything else is the business of the config reader.
fn kind_of(dir: &Path) -> anyhow::Result<Kind> {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        model_type: String,
    }
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; hint: a model folder holds config.json and safetensors", path.display()))?;
    let head: Head = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    Ok(if head.model_type == "bert" { Kind::Encoder } else { Kind::Decoder })
}

fn shape_of(dir: &Path, kind: Kind) -> Result<BTreeMap<&'static str, String>, ModelError> {
    let path = dir.join("config.json");
    let numbers = match kind {
        Kind::Decoder => {
            let config = DecoderConfig::from_file(&path)?;
            vec![
                ("model_type", config.family.model_type().to_owned()),
                ("vocab_size", config.vocab_size.to_string()),
                ("hidden_size", config.hidden_size.to_string()),
                ("intermediate_size", config.intermediate_size.to_string()),
                ("num_hidden_layers", config.num_hidden_layers.to_string()),
                ("num_attention_heads", config.num_attention_heads.to_string()),
                ("num_key_value_heads", config.num_key_value_heads.to_string()),
                ("head_dim", config.head_dim.to_string()),
                ("max_position_embeddings", config.max_position_embeddings.to_string()),
                ("tie_word_embeddings", config.is_tied.to_string()),
            ]
        }
        Kind::Encoder => {
            let config = BertConfig::from_file(&path)?;
            vec![
                ("model_type", "bert".to_owned()),
                ("vocab_size", config.vocab_size.to_string()),
                ("hidden_size", config.hidden_size.to_string()),
                ("intermediate_size", config.intermediate_size.to_string()),
                ("num_hidden_layers", config.num_hidden_layers.to_string()),
                ("num_attention_heads", config.num_attention_heads.to_string()),
                ("max_position_embeddings", config.max_position_embeddings.to_string()),
            ]
        }
    };
    Ok(numbers.into_iter().collect())
}

fn export(model: &str, out: &Path, dtype: Option<&str>, device: DeviceArgs) -> anyhow::Result<()> {
    if out.join("config.json").exists() {
        return Err(UsageError(format!("{} already holds a model; hint: choose another --out", out.display())).into());
    }
    let dir = hub::resolve(model)?;
    let (kind, dtype) = (kind_of(&dir)?, dtype.map(models::dtype).transpose()?);
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    with_device(device.device, Export { dir: &dir, out, kind, dtype })??;
    copy_side_files(&dir, out)?;
    output::say(&format!("wrote {}", out.display()));
    Ok(())
}

/// Loads and saves a model on the inner backend.
struct Export<'a> {
    dir: &'a Path,
    out: &'a Path,
    kind: Kind,
    dtype: Option<DType>,
}

impl Job for Export<'_> {
    type Output = Result<(), ModelError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let loaded_as = match self.dtype {
            Some(dtype) => dtype,
            None => stored_dtype(self.dir)?,
        };
        match self.kind {
            Kind::Decoder => save_decoder(&load_decoder::<B::InnerBackend>(self.dir, loaded_as, device)?, self.out, self.dtype),
            Kind::Encoder => save_bert(&load_bert::<B::InnerBackend>(self.dir, loaded_as, device)?, self.out, self.dtype),
        }
    }
}

/// The dtype of most of a folder's elements.
fn stored_dtype(dir: &Path) -> Result<DType, ModelError> {
    let mut n_elements = BTreeMap::new();
    visit_tensors(dir, |tensor| *n_elements.entry(tensor.dtype.to_owned()).or_insert(0) += tensor.shape.iter().product::<usize>())?;
    let most = n_elements.into_iter().max_by_key(|&(_, n)| n).map(|(dtype, _)| dtype);
    Ok(match most.as_deref() {
        Some("BF16") => DType::BF16,
        Some("F16") => DType::F16,
        _ => DType::F32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::devices::DeviceChoice;

    const CPU: DeviceArgs = DeviceArgs { device: DeviceChoice::Cpu };

    fn oracle(name: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/models")).join(name)
    }

    #[test]
    fn the_shape_and_parameters_are_those_of_the_folder() {
        let info = Info::read(&oracle("qwen2_tied")).unwrap();
        let config = DecoderConfig::from_file(&oracle("qwen2_tied").join("config.json")).unwrap();
        assert_eq!((info.kind, info.n_parameters), (Kind::Decoder, config.n_parameters()));
        assert_eq!(info.dtypes, BTreeMap::from([("F32".to_owned(), config.n_parameters())]));
        assert_eq!(info.size_bytes, 4 * config.n_parameters() as u64);
    }

    #[test]
    fn an_export_in_its_own_dtype_has_the_same_tensors() {
        for name in ["qwen2_tied_bf16", "qwen2_untied_sharded"] {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("copy");
            export(&oracle(name).to_string_lossy(), &out, None, CPU).unwrap();
            assert_eq!(Info::read(&out).unwrap().tensors_sha256, Info::read(&oracle(name)).unwrap().tensors_sha256, "{name}");
        }
    }

    #[test]
    fn an_export_in_bf16_halves_the_size() {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("half");
        export(&oracle("qwen2_tied").to_string_lossy(), &out, Some("bf16"), CPU).unwrap();
        let (before, after) = (Info::read(&oracle("qwen2_tied")).unwrap(), Info::read(&out).unwrap());
        assert_eq!((after.size_bytes * 2, after.n_parameters), (before.size_bytes, before.n_parameters));
    }

    #[test]
    fn an_export_never_overwrites_a_model() {
        let error = export(&oracle("bert_e5").to_string_lossy(), &oracle("bert_e5"), None, CPU).unwrap_err();
        assert!(error.is::<UsageError>());
    }
}
