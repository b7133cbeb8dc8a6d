//! `dgpo model info|export`: what a model folder holds, and writing it in another dtype.
use super::{Ended, UsageError, args::DeviceArgs, output};
use anyhow::Context as _;
use burn::tensor::DType;
use clap::Subcommand;
use dgpo_models::{
    ModelError, TrainBackend,
    config::{BertConfig, DecoderConfig, ModelClass},
    weights::{
        check_folder, copy_side_files, load_bert, load_critic, load_decoder, save_bert,
        save_critic, save_decoder, visit_tensors,
    },
};
use dgpo_run::{
    config::FloatType,
    devices::{Cpu, DeviceJob, with_device},
    hub,
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
    /// Example: dgpo model export runs/mine/checkpoints/rl-step-000200/model --out mine --dtype
    /// bf16
    Export {
        /// Folder, owner/name in the Hugging Face cache, or builtin:NAME.
        model: String,
        /// Folder to write; it must not hold a model yet.
        #[arg(long, value_parser = super::args::path, value_name = "DIR")]
        out: PathBuf,
        /// f32, bf16 or f16; without it every tensor keeps its own.
        #[arg(long, value_name = "DTYPE")]
        dtype: Option<FloatType>,
        #[command(flatten)]
        device: DeviceArgs,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<Ended> {
    match args.command {
        Command::Info { model, json } => {
            let info = Info::read(&hub::resolve(&model)?)?;
            if json { output::json(&info)? } else { output::data(&info.to_string())? }
        }
        Command::Export { model, out, dtype, device } => export(&model, &out, dtype, device)?,
    }
    Ok(Ended::Done)
}

#[derive(Debug, Serialize)]
struct Info {
    path: PathBuf,
    /// decoder, critic or encoder.
    kind: &'static str,
    /// `model_type` and sizes of config.json.
    shape: BTreeMap<&'static str, String>,
    n_parameters: usize,
    n_tensors: usize,
    size_bytes: u64,
    /// Elements of each dtype.
    dtypes: BTreeMap<String, usize>,
    /// SHA-256 over name, dtype, shape and bytes of every tensor, by name: the same however the
    /// tensors are spread over files.
    tensors_sha256: String,
}

impl Info {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        // What would not load is not described: the problems are the information. Nothing is
        // computed, so any device will do.
        let class = check_folder::<Cpu>(dir, &Default::default())?;
        let kind = match class {
            ModelClass::Decoder => "decoder",
            ModelClass::Critic => "critic",
            ModelClass::Encoder => "encoder",
        };
        let shape = shape_of(dir, class)?;
        let (mut digest, mut dtypes, mut size_bytes, mut n_tensors) =
            (Sha256::new(), BTreeMap::new(), 0, 0);
        visit_tensors(dir, |tensor| {
            digest.update(format!("{}\0{}\0{:?}\0", tensor.name, tensor.dtype, tensor.shape));
            digest.update(tensor.bytes);
            *dtypes.entry(tensor.dtype.to_owned()).or_insert(0) +=
                tensor.shape.iter().product::<usize>();
            size_bytes += tensor.bytes.len() as u64;
            n_tensors += 1;
        })?;
        let n_parameters = dtypes.values().sum();
        let tensors_sha256 = format!("{:x}", digest.finalize());
        Ok(Self {
            path: dir.to_owned(),
            kind,
            shape,
            n_parameters,
            n_tensors,
            size_bytes,
            dtypes,
            tensors_sha256,
        })
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
        line(
            "dtypes",
            self.dtypes
                .iter()
                .map(|(dtype, n)| format!("{dtype} {}", grouped(*n)))
                .collect::<Vec<_>>()
                .join(", "),
        )?;
        line("size", output::bytes(self.size_bytes))?;
        line("tensors sha256", self.tensors_sha256.clone())
    }
}

fn shape_of(dir: &Path, class: ModelClass) -> Result<BTreeMap<&'static str, String>, ModelError> {
    let path = dir.join("config.json");
    let numbers = match class {
        ModelClass::Decoder | ModelClass::Critic => {
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
        ModelClass::Encoder => {
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

fn export(
    model: &str,
    out: &Path,
    dtype: Option<FloatType>,
    device: DeviceArgs,
) -> anyhow::Result<()> {
    if out.join("config.json").exists() {
        return Err(UsageError(format!(
            "{} already holds a model; hint: choose another --out",
            out.display()
        ))
        .into());
    }
    let dir = hub::resolve(model)?;
    let (class, dtype) = (ModelClass::of(&dir.join("config.json"))?, dtype.map(FloatType::dtype));
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    with_device(device.device, Export { dir: &dir, out, class, dtype })??;
    copy_side_files(&dir, out)?;
    output::say(&format!("wrote {}", out.display()));
    Ok(())
}

/// Loads and saves a model on the inner backend.
struct Export<'a> {
    dir: &'a Path,
    out: &'a Path,
    class: ModelClass,
    dtype: Option<DType>,
}

impl DeviceJob for Export<'_> {
    type Output = Result<(), ModelError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let loaded_as = match self.dtype {
            Some(dtype) => dtype,
            None => stored_dtype(self.dir)?,
        };
        match self.class {
            ModelClass::Decoder => save_decoder(
                &load_decoder::<B::InnerBackend>(self.dir, loaded_as, device)?,
                self.out,
                self.dtype,
            ),
            ModelClass::Critic => save_critic(
                &load_critic::<B::InnerBackend>(self.dir, loaded_as, device)?,
                self.out,
                self.dtype,
            ),
            ModelClass::Encoder => save_bert(
                &load_bert::<B::InnerBackend>(self.dir, loaded_as, device)?,
                self.out,
                self.dtype,
            ),
        }
    }
}

/// The dtype of most of a folder's elements.
fn stored_dtype(dir: &Path) -> Result<DType, ModelError> {
    let mut n_elements = BTreeMap::new();
    visit_tensors(dir, |tensor| {
        *n_elements.entry(tensor.dtype.to_owned()).or_insert(0) +=
            tensor.shape.iter().product::<usize>()
    })?;
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
    use dgpo_run::devices::DeviceChoice;

    const CPU: DeviceArgs = DeviceArgs { device: DeviceChoice::Cpu };

    fn oracle(name: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracles/models")).join(name)
    }

    #[test]
    fn the_shape_and_parameters_are_those_of_the_folder() {
        let info = Info::read(&oracle("qwen2_tied")).unwrap();
        let config = DecoderConfig::from_file(&oracle("qwen2_tied").join("config.json")).unwrap();
        assert_eq!((info.kind, info.n_parameters), ("decoder", config.n_parameters()));
        assert_eq!(info.dtypes, BTreeMap::from([("F32".to_owned(), config.n_parameters())]));
        assert_eq!(info.size_bytes, 4 * config.n_parameters() as u64);
    }

    #[test]
    fn an_export_in_its_own_dtype_has_the_same_tensors() {
        for name in ["qwen2_tied_bf16", "qwen2_untied_sharded"] {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("copy");
            export(&oracle(name).to_string_lossy(), &out, None, CPU).unwrap();
            assert_eq!(
                Info::read(&out).unwrap().tensors_sha256,
                Info::read(&oracle(name)).unwrap().tensors_sha256,
                "{name}"
            );
        }
    }

    #[test]
    fn an_export_in_bf16_halves_the_size() {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("half");
        export(&oracle("qwen2_tied").to_string_lossy(), &out, Some(FloatType::Bf16), CPU).unwrap();
        let (before, after) =
            (Info::read(&oracle("qwen2_tied")).unwrap(), Info::read(&out).unwrap());
        assert_eq!(
            (after.size_bytes * 2, after.n_parameters),
            (before.size_bytes, before.n_parameters)
        );
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(out.join("config.json")).unwrap())
                .unwrap();
        assert_eq!(config["torch_dtype"], "bfloat16");
    }

    /// A copy of an oracle model with one field of its config.json changed.
    fn with_field(name: &str, field: &str, value: serde_json::Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(oracle(name).join("model.safetensors"), dir.path().join("model.safetensors"))
            .unwrap();
        let text = std::fs::read_to_string(oracle(name).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = value;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        dir
    }

    #[test]
    fn info_on_weights_that_do_not_fit_the_config_is_the_error_of_loading_them() {
        let changes = [
            ("num_hidden_layers", serde_json::json!(3_000_000_000u64)),
            ("vocab_size", serde_json::json!(1_000_000_000_000_000_000u64)),
            ("vocab_size", serde_json::json!(1_000_000)),
            ("head_dim", serde_json::json!(1_000_000_000_000u64)),
            ("tie_word_embeddings", serde_json::json!(false)),
        ];
        for (field, value) in changes {
            let dir = with_field("qwen2_tied", field, value);
            let loading = load_decoder::<Cpu>(dir.path(), DType::F32, &Default::default())
                .unwrap_err()
                .to_string();
            assert_eq!(Info::read(dir.path()).unwrap_err().to_string(), loading, "{field}");
        }
    }

    #[test]
    fn info_names_a_tensor_that_is_not_of_floats() {
        let dir = with_field("qwen2_tied", "use_cache", true.into());
        let path = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        // I32 has the width of F32, so the header stays as long as it was.
        let at = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
        bytes[at..at + 5].copy_from_slice(b"\"I32\"");
        std::fs::write(&path, bytes).unwrap();
        let error = Info::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("unreadable dtype: model.embed_tokens.weight is I32"), "{error}");
    }

    #[test]
    fn an_export_that_would_overflow_is_refused_before_anything_is_written() {
        let dir = with_field("qwen2_tied", "use_cache", true.into());
        let path = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        // The last value of the file.
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&1e6f32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let (model, out) =
            (dir.path().to_string_lossy().into_owned(), tempfile::tempdir().unwrap());
        let error = export(&model, &out.path().join("f16"), Some(FloatType::F16), CPU)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1 finite value(s) would become infinite")
                && error.contains("hint: bf16"),
            "{error}"
        );
        assert!(!out.path().join("f16/model.safetensors").exists());
        export(&model, &out.path().join("bf16"), Some(FloatType::Bf16), CPU).unwrap();
    }

    #[test]
    fn a_critic_is_shown_and_exported_as_one() {
        let decoder =
            load_decoder::<Cpu>(&oracle("qwen2_tied"), DType::F32, &Default::default()).unwrap();
        let (saved, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        save_critic(&dgpo_models::heads::Critic::from_decoder(&decoder, 1), saved.path(), None)
            .unwrap();
        let info = Info::read(saved.path()).unwrap();
        assert_eq!(info.kind, "critic");
        export(&saved.path().to_string_lossy(), &out.path().join("copy"), None, CPU).unwrap();
        assert_eq!(
            Info::read(&out.path().join("copy")).unwrap().tensors_sha256,
            info.tensors_sha256
        );
    }

    #[test]
    fn an_export_never_overwrites_a_model() {
        let error = export(&oracle("bert_e5").to_string_lossy(), &oracle("bert_e5"), None, CPU)
            .unwrap_err();
        assert!(error.is::<UsageError>());
    }
}
