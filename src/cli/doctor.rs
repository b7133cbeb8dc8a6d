//! `dgpo doctor`: is everything there that a run needs? Each line is a check with what was found.
use super::{Ended, args::DeviceArgs, machine, output, version::Version};
use burn::tensor::{Int, Tensor, TensorData};
use dgpo_models::{
    TrainBackend,
    config::{DecoderConfig, Family, RopeScaling},
    decoder::Decoder,
};
use dgpo_run::{
    config,
    devices::{DeviceChoice, DeviceJob, with_device},
    folder::run_dir::RUNS_DIR,
    hub,
    models::dtypes_of,
    pipeline::preflight::{Missing, PlannedWork, missing},
};
use serde::Serialize;
use serde_json::json;
use std::{collections::BTreeSet, path::Path, time::Instant};

/// Check that this machine has what a run needs.
///
/// Backends, kernels, processor, memory, caches, with --device wgpu the graphics adapters, a small
/// forward pass, a writable folder for runs.
///
/// With --config also everything that a run of this recipe would read; what is missing is named
/// with the command that gets it, and the exit code is 2.
///
/// Example: dgpo doctor --device wgpu
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// Check the inputs of this recipe too: a file, or the name of a built-in one. Example:
    /// --config paper/qwen2.5-3b-0.5b
    #[arg(long, value_name = "FILE|NAME")]
    config: Option<String>,
    /// Change one setting of the recipe; may be repeated. Example: --set model.dtype=f32
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    Ok,
    /// Works, but something may be missing for some commands.
    Note,
    Failed,
}

#[derive(Debug, Serialize)]
struct DoctorCheck {
    name: String,
    status: CheckStatus,
    found: String,
}

fn check(name: &str, result: Result<String, String>) -> DoctorCheck {
    match result {
        Ok(found) => DoctorCheck { name: name.to_owned(), status: CheckStatus::Ok, found },
        Err(found) => DoctorCheck { name: name.to_owned(), status: CheckStatus::Failed, found },
    }
}

fn note(name: &str, found: impl Into<String>) -> DoctorCheck {
    DoctorCheck { name: name.to_owned(), status: CheckStatus::Note, found: found.into() }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let version = Version::of_this_program();
    let mut checks = vec![
        check("backends", Ok(version.backends.join(", "))),
        kernels(),
        processor(),
        memory(),
        hugging_face_cache(),
        built_in_assets(),
    ];
    checks.extend(adapters(args.device.device));
    checks.push(check("forward pass", forward_pass(args.device)));
    checks.push(check("runs folder", writable(Path::new("."))));
    let mut problems = Vec::new();
    if let Some(config) = &args.config {
        problems = missing(
            PlannedWork::Train(None),
            &config::load(config, &args.overrides)?.recipe,
            args.device.device,
        );
        let told = |problem: &config::Problem| {
            check(problem.key, Err(format!("{}; hint: {}", problem.message, problem.hint)))
        };
        match problems.is_empty() {
            true => {
                checks.push(check("recipe", Ok(format!("everything that {config} reads is there"))))
            }
            false => checks.extend(problems.iter().map(told)),
        }
    }
    if args.json {
        output::json(
            &json!({ "version": version.version, "commit": version.commit, "features": version.features, "checks": checks }),
        )?;
    } else {
        let line = |check: &DoctorCheck| {
            let status = match check.status {
                CheckStatus::Ok => "ok",
                CheckStatus::Note => "note",
                CheckStatus::Failed => "FAILED",
            };
            format!("{status:<7} {:<16} {}\n", check.name, check.found)
        };
        output::data(&format!(
            "dgpo {}\n{}",
            version.in_short(),
            checks.iter().map(line).collect::<String>()
        ))?;
    }
    Missing::none(problems)?;
    let is_sound = checks.iter().all(|check| check.status != CheckStatus::Failed);
    Ok(if is_sound { Ended::Done } else { Ended::Failed })
}

/// A variable that a test left behind would make every run slow, and its sums end in other digits.
fn kernels() -> DoctorCheck {
    match dgpo_kernels::is_reference_only() {
        false => check("kernels", Ok(dgpo_kernels::bodies().to_owned())),
        true => note(
            "kernels",
            "DGPO_KERNELS=reference is set: plain tensor operations everywhere, for tests; unset \
             it",
        ),
    }
}

fn processor() -> DoctorCheck {
    let features = machine::cpu_features();
    let found = format!(
        "{} {}, {} hardware threads",
        std::env::consts::ARCH,
        features.join(" "),
        machine::n_cores()
    );
    if features.is_empty() { note("processor", found) } else { check("processor", Ok(found)) }
}

fn memory() -> DoctorCheck {
    match machine::memory() {
        Some((total, available)) => check(
            "memory",
            Ok(format!("{}, {} available", output::bytes(total), output::bytes(available))),
        ),
        None => note("memory", "unknown on this system"),
    }
}

/// Only real checkpoints need the cache; the tiny recipe does not.
fn hugging_face_cache() -> DoctorCheck {
    match hub::cache_dir() {
        Some(dir) if dir.is_dir() => check("model cache", Ok(dir.display().to_string())),
        Some(dir) => note(
            "model cache",
            format!("{} does not exist; models are then named by their folder", dir.display()),
        ),
        None => note("model cache", "unknown: HOME is not set"),
    }
}

fn built_in_assets() -> DoctorCheck {
    let folders: BTreeSet<&str> =
        hub::builtin_files().iter().filter_map(|(path, _)| path.split('/').next()).collect();
    let unpacked: Result<Vec<String>, String> = folders
        .iter()
        .map(|folder| {
            hub::resolve(&format!("builtin:{folder}"))
                .map(|path| path.display().to_string())
                .map_err(|e| e.to_string())
        })
        .collect();
    match unpacked {
        Ok(paths) if paths.is_empty() => note("built-in assets", "none"),
        other => check("built-in assets", other.map(|paths| paths.join(", "))),
    }
}

/// The adapters that `--device wgpu:N` counts, where one is asked for; which one is meant is said
/// by the forward pass.
#[cfg(feature = "wgpu")]
fn adapters(device: DeviceChoice) -> Vec<DoctorCheck> {
    use dgpo_run::devices::adapters;
    let DeviceChoice::Wgpu(number) = device else { return Vec::new() };
    let found = adapters::adapters();
    let kinds: Vec<_> = found.iter().map(|adapter| adapter.info.device_type).collect();
    let used = number.or_else(|| adapters::default_number(&kinds));
    let describe = |(n, adapter): (usize, &adapters::Adapter)| {
        let largest = output::bytes(adapter.max_tensor_bytes);
        let mark = if used == Some(n) { format!(" <- --device {device}") } else { String::new() };
        check(&format!("wgpu:{n}"), Ok(format!("{adapter}; tensors up to {largest}{mark}")))
    };
    found.iter().enumerate().map(describe).collect()
}

#[cfg(not(feature = "wgpu"))]
fn adapters(_: DeviceChoice) -> Vec<DoctorCheck> {
    Vec::new()
}

/// A decoder of two layers with random weights, on two rows of tokens. Says which float types the
/// device computes in.
struct Forward;
impl DeviceJob for Forward {
    type Output = Result<String, String>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let config = DecoderConfig {
            family: Family::Qwen2,
            vocab_size: 96,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            is_tied: true,
            has_qkv_bias: true,
            initializer_range: 0.02,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        let model = Decoder::<B::InnerBackend>::init(&config, 0, device);
        let ids: Vec<i64> = (0..32).collect();
        let ids =
            Tensor::<B::InnerBackend, 2, Int>::from_data(TensorData::new(ids, [2, 16]), device);
        let hidden = model.hidden(ids, None, None).into_data().convert::<f32>();
        let is_finite = hidden.iter::<f32>().all(f32::is_finite);
        match is_finite {
            true => Ok(dtypes_of::<B::InnerBackend>(device).join(", ")),
            false => {
                Err("the hidden states are not finite: this device or its driver computes wrongly"
                    .to_owned())
            }
        }
    }
}

fn forward_pass(device: DeviceArgs) -> Result<String, String> {
    let started = Instant::now();
    let dtypes = with_device(device.device, Forward).map_err(|e| e.to_string())??;
    Ok(format!(
        "{} computes in {dtypes}; {:.0} ms",
        device.device,
        started.elapsed().as_secs_f64() * 1000.0
    ))
}

/// Runs are made in the current directory, or in ./runs where that exists.
fn writable(here: &Path) -> Result<String, String> {
    let runs = here.join(RUNS_DIR);
    let dir = if runs.is_dir() { runs } else { here.to_owned() };
    let shown = dir.canonicalize().unwrap_or_else(|_| dir.clone()).display().to_string();
    tempfile::tempfile_in(&dir).map_err(|e| format!("cannot write to {shown}: {e}"))?;
    Ok(format!("{shown} is writable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_not_writable() {
        assert!(writable(Path::new("no/such/folder")).is_err());
        assert!(writable(tempfile::tempdir().unwrap().path()).is_ok());
    }

    #[test]
    fn the_forward_pass_runs_on_the_cpu() {
        assert!(forward_pass(DeviceArgs { device: DeviceChoice::Cpu }).unwrap().starts_with("cpu"));
    }
}
