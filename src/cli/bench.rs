//! `dgpo bench kernels|step`: how fast the operations and the training steps are on this machine.
use super::{
    Context, Outcome,
    args::{DeviceArgs, at_least_one},
    output,
    portability::adapter,
    table::table,
};
use crate::{
    bench::{
        kernels::{self, Figure, Milliseconds, Sizes},
        memory::{self, Method, Peak},
        step::{self, Setting},
        torch::{self, Torch},
    },
    portability::{dtype_name, workload::Shape},
    trainer::{
        devices::{DeviceChoice, Job, with_device},
        models,
        update::Activations,
    },
};
use burn::tensor::{DType, backend::Backend};
use clap::Subcommand;
use dgpo_kernels::suite::{
    probes::{Budget, copy_rate, host_copy_rate},
    timed::{Body, Pass},
};
use dgpo_models::TrainBackend;
use serde_json::json;
use std::{process::Command, time::Duration};

/// Measure how fast the operations and the training steps are on this machine.
///
/// Example: dgpo bench kernels --device cuda --rows 4096 --vocab 151936
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    Kernels(KernelsArgs),
    Step(StepArgs),
}

/// Each operation fused, as plain tensor operations, as its bare matrix products, and in PyTorch where there is one.
///
/// python3 (or the interpreter that DGPO_PYTHON names) is asked for torch; without it that column stays empty.
///
/// Example: dgpo bench kernels --rows 512 --vocab 32000 --width 896
#[derive(clap::Args, Debug)]
struct KernelsArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Rows (tokens).
    #[arg(long, default_value = "512", value_parser = at_least_one)]
    rows: usize,
    /// Entries of the vocabulary.
    #[arg(long, default_value = "32000", value_parser = at_least_one)]
    vocab: usize,
    /// Width of the hidden states.
    #[arg(long, default_value = "896", value_parser = at_least_one)]
    width: usize,
    /// Only operations whose name holds this, e.g. linear.
    #[arg(long, value_name = "NAME")]
    op: Option<String>,
    /// Float type: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Time for each figure, in seconds; at most 20 runs.
    #[arg(long, default_value = "3", value_name = "SECONDS")]
    time: f64,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
    /// Measure the memory of one operation and print it: what the command asks a process of its own to do.
    #[arg(long, hide = true, value_name = "OPERATION:BODY:PASS")]
    peak_of: Option<String>,
}

/// One KD step and one PPO step, with AdamW, of the tiny shape and of Qwen2.5-0.5B's with random weights.
///
/// Example: dgpo bench step --device cuda --dtype bf16 --batch 64 --tokens 1024
#[derive(clap::Args, Debug)]
struct StepArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Layers of the larger shape, of 24; 0 leaves the shape out. Default: 24, and 2 on the CPU.
    #[arg(long)]
    layers: Option<usize>,
    /// Episodes of a step of the larger shape.
    #[arg(long, default_value = "4", value_parser = at_least_one)]
    batch: usize,
    /// Tokens of an episode of the larger shape.
    #[arg(long, default_value = "256", value_parser = at_least_one)]
    tokens: usize,
    /// Padded tokens of a micro-batch of the larger shape.
    #[arg(long, default_value = "16384", value_parser = at_least_one)]
    micro_batch_tokens: usize,
    /// Compute activations again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Float type of the weights: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Time for each figure, in seconds; at most 20 runs.
    #[arg(long, default_value = "20", value_name = "SECONDS")]
    time: f64,
    /// Print one JSON object instead.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    match &args.what {
        What::Kernels(args) => run_kernels(args, context),
        What::Step(args) => run_step(args),
    }
}

/// Runs of one figure.
fn budget(seconds: f64) -> anyhow::Result<Budget> {
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| super::UsageError(format!("--time {seconds} is no time")))?;
    Ok(Budget { time, most_runs: 20 })
}

fn dtype(name: &str) -> anyhow::Result<DType> {
    models::dtype(name).map_err(|_| super::UsageError(format!("--dtype {name} is not known; hint: f32, f16 or bf16")).into())
}

const BODIES: [(&str, Body); 2] = [("fused", Body::Fused), ("unfused", Body::Unfused)];
const PASSES: [(&str, Pass); 2] = [("forward", Pass::Forward), ("training", Pass::Training)];

struct TimeKernels<'a> {
    sizes: Sizes,
    dtype: DType,
    budget: Budget,
    choice: DeviceChoice,
    args: &'a KernelsArgs,
    is_quiet: bool,
}

impl Job for TimeKernels<'_> {
    /// The copy's rate and the figures, or why there are none.
    type Output = Result<(f64, Vec<(String, Figure)>), String>;

    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { sizes, dtype, budget, choice, args, is_quiet } = self;
        if !<B::InnerBackend as Backend>::supports_dtype(device, dtype) {
            return Err(format!("{choice} does not compute in {}; hint: --dtype f32", dtype_name(dtype)));
        }
        const COPY_BYTES: usize = 1 << 28;
        let on_device = copy_rate::<B::InnerBackend>(COPY_BYTES, device, budget);
        let copy = if choice == DeviceChoice::Cpu { on_device.max(host_copy_rate(COPY_BYTES, budget)) } else { on_device };
        let mut figures = Vec::new();
        let wanted = args.op.as_deref().unwrap_or_default();
        for (number, op) in kernels::operations(sizes).iter().enumerate().filter(|(_, op)| op.name().contains(wanted)) {
            for (pass_name, pass) in PASSES {
                tracing::info!("{} {} {pass_name}", op.name(), op.shape());
                let Some(mut figure) = kernels::figure::<B::InnerBackend>(op, dtype, pass, copy, budget, device) else { continue };
                let [fused, unfused] = BODIES.map(|(body_name, body)| match choice {
                    DeviceChoice::Cpu => peak_in_child(args, &format!("{number}:{body_name}:{pass_name}")),
                    _ => memory::peak::<B::InnerBackend>(op, dtype, body, pass, false, device),
                });
                (figure.fused_peak, figure.unfused_peak) = (fused, unfused);
                if !is_quiet {
                    let (fused, unfused) = (figure.fused.best, figure.unfused.best);
                    output::say(&format!(
                        "{} {}, {}: {fused:.2} ms, plain operations {unfused:.2} ms",
                        figure.name, figure.shape, figure.pass
                    ));
                }
                figures.push((kernels::key(op), figure));
            }
        }
        Ok((copy, figures))
    }
}

/// This command again, for one operation's memory alone. A child that fails leaves no figure.
fn peak_in_child(args: &KernelsArgs, peak_of: &str) -> Option<Peak> {
    let sizes = [("--rows", args.rows), ("--vocab", args.vocab), ("--width", args.width)];
    let output = Command::new(std::env::current_exe().ok()?)
        .args(["bench", "kernels", "--dtype", &args.dtype, "--peak-of", peak_of])
        .args(sizes.iter().flat_map(|(flag, n)| [(*flag).to_owned(), n.to_string()]))
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()?
}

struct MeasurePeak {
    sizes: Sizes,
    dtype: DType,
    peak_of: String,
}

impl Job for MeasurePeak {
    type Output = Option<Peak>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let mut parts = self.peak_of.split(':');
        let op = kernels::operations(self.sizes).into_iter().nth(parts.next()?.parse().ok()?)?;
        let (body, pass) = (parts.next()?, parts.next()?);
        let body = BODIES.iter().find(|(name, _)| *name == body)?.1;
        let pass = PASSES.iter().find(|(name, _)| *name == pass)?.1;
        memory::peak::<B::InnerBackend>(&op, self.dtype, body, pass, true, device)
    }
}

fn run_kernels(args: &KernelsArgs, context: Context) -> anyhow::Result<Outcome> {
    let (choice, dtype, budget) = (args.device.device, dtype(&args.dtype)?, budget(args.time)?);
    let sizes = Sizes { n_rows: args.rows, n_vocab: args.vocab, width: args.width };
    if let Some(peak_of) = &args.peak_of {
        let peak = with_device(choice, MeasurePeak { sizes, dtype, peak_of: peak_of.clone() })?;
        output::json(&peak)?;
        return Ok(Outcome::Done);
    }
    if let Some(wanted) = &args.op {
        let mut names: Vec<&str> = kernels::operations(sizes).iter().map(|op| op.name()).collect();
        names.dedup();
        if !names.iter().any(|name| name.contains(wanted.as_str())) {
            return Err(super::UsageError(format!("--op {wanted}: no operation is called so; hint: {}", names.join(", "))).into());
        }
    }
    let job = TimeKernels { sizes, dtype, budget, choice, args, is_quiet: context.is_quiet };
    let (copy, mut figures) = with_device(choice, job)?.map_err(super::UsageError)?;
    let torch = torch_figures(choice, sizes, &args.dtype, args.time);
    if let Ok(torch) = &torch {
        for (key, figure) in &mut figures {
            figure.torch = torch.figures.get(key).and_then(|passes| passes.get(figure.pass)).copied();
        }
    }
    let figures: Vec<Figure> = figures.into_iter().map(|(_, figure)| figure).collect();
    if args.json {
        let (torch, why_no_torch) = (torch.as_ref().ok(), torch.as_ref().err());
        output::json(&json!({
            "device": choice.to_string(), "adapter": adapter(choice), "dtype": args.dtype, "copy_bytes_per_s": copy,
            "torch": torch, "why_no_torch": why_no_torch, "figures": figures,
        }))?;
        return Ok(Outcome::Done);
    }
    if let (Err(why), false) = (&torch, context.is_quiet) {
        output::say(&format!("without PyTorch: {why}"));
    }
    let head =
        format!("{choice} ({}), {}, copy {:.1} GB/s; ms, best of up to {}", adapter(choice), args.dtype, copy / 1e9, budget.most_runs);
    output::data(&format!("{head}{}\n\n{}", torch.map_or(String::new(), |torch| describe_torch(&torch)), figures_table(&figures)))?;
    Ok(Outcome::Done)
}

/// torch knows the CPU and CUDA.
fn torch_figures(choice: DeviceChoice, sizes: Sizes, dtype: &str, seconds: f64) -> Result<Torch, String> {
    match choice {
        DeviceChoice::Cpu => torch::measure(sizes, "cpu", dtype, seconds),
        DeviceChoice::Cuda(_) => torch::measure(sizes, "cuda", dtype, seconds),
        DeviceChoice::Wgpu(_) => Err("PyTorch has no wgpu".to_owned()),
    }
}

fn describe_torch(torch: &Torch) -> String {
    format!("; PyTorch {} on {}, {} threads", torch.version, torch.device, torch.n_threads)
}

fn figures_table(figures: &[Figure]) -> String {
    let headers = [
        "operation",
        "pass",
        "fused",
        "plain operations",
        "plain / fused",
        "fused / all products",
        "fused / least products",
        "GB/s",
        "of the copy",
        "peak MB",
        "plain peak MB",
        "PyTorch",
        "PyTorch / fused",
    ];
    let ms = |ms: Milliseconds| format!("{:.2}", ms.best);
    let ratio = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let rows = figures.iter().map(|f| {
        let of = |other: Option<Milliseconds>| ratio(other.map(|other| f.fused.best / other.best));
        vec![
            format!("{} {}", f.name, f.shape),
            f.pass.to_owned(),
            ms(f.fused),
            ms(f.unfused),
            ratio(Some(f.unfused.best / f.fused.best)),
            of(f.all_products),
            of(f.least_products),
            format!("{:.1}", f.bytes_per_s / 1e9),
            ratio(Some(f.copy_fraction)),
            peak(f.fused_peak),
            peak(f.unfused_peak),
            f.torch.map_or("-".to_owned(), |torch| format!("{:.2}", torch.best_ms)),
            ratio(f.torch.map(|torch| torch.best_ms / f.fused.best)),
        ]
    });
    table(&headers, &rows.collect::<Vec<_>>())
}

fn peak(peak: Option<Peak>) -> String {
    peak.map_or("-".to_owned(), |peak| {
        let pages = if peak.method == Method::DevicePages { " (pages)" } else { "" };
        format!("{:.1}{pages}", peak.bytes as f64 / 1e6)
    })
}

struct TimeSteps {
    settings: Vec<Setting>,
    dtype: DType,
    budget: Budget,
}

impl Job for TimeSteps {
    type Output = Result<Vec<step::Figure>, String>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        if !<B::InnerBackend as Backend>::supports_dtype(device, self.dtype) {
            return Err(format!("this device does not compute in {}; hint: --dtype f32", dtype_name(self.dtype)));
        }
        Ok(self.settings.iter().flat_map(|setting| step::run::<B>(setting, self.dtype, self.budget, device)).collect())
    }
}

fn run_step(args: &StepArgs) -> anyhow::Result<Outcome> {
    let (choice, dtype, budget) = (args.device.device, dtype(&args.dtype)?, budget(args.time)?);
    let activations = if args.recompute { Activations::Recomputed } else { Activations::Kept };
    let tiny = Shape { n_rows: 16, n_prompt: 32, n_agent: 24, n_observation: 48 };
    let mut settings = vec![Setting {
        name: "tiny".into(),
        config: step::tiny()?,
        shape: tiny,
        micro_batch_tokens: 16_384,
        activations: Activations::Kept,
    }];
    let n_layers = args.layers.unwrap_or(if choice == DeviceChoice::Cpu { 2 } else { 24 });
    if n_layers > 0 {
        settings.push(Setting {
            name: format!("Qwen2.5-0.5B shape, {n_layers} of 24 layers"),
            config: step::qwen_half_billion(n_layers),
            shape: shares(args.batch, args.tokens)?,
            micro_batch_tokens: args.micro_batch_tokens,
            activations,
        });
    }
    let figures = with_device(choice, TimeSteps { settings, dtype, budget })?.map_err(super::UsageError)?;
    if args.json {
        output::json(&json!({ "device": choice.to_string(), "adapter": adapter(choice), "dtype": args.dtype, "figures": figures }))?;
        return Ok(Outcome::Done);
    }
    let rows = figures.iter().map(|f| {
        vec![
            f.model.clone(),
            f.step.to_owned(),
            output::grouped(f.n_parameters as u64),
            output::grouped(f.n_tokens as u64),
            format!("{:.1}", f.best_ms),
            format!("{:.1}", f.median_ms),
            output::grouped(f.tokens_per_s as u64),
        ]
    });
    let headers = ["model", "step", "parameters", "tokens", "best ms", "median ms", "tokens/s"];
    output::data(&format!("{choice} ({}), {}\n\n{}", adapter(choice), args.dtype, table(&headers, &rows.collect::<Vec<_>>())))?;
    Ok(Outcome::Done)
}

/// An eighth prompt, half of the rest observation, the rest the agent's.
fn shares(n_rows: usize, n_tokens: usize) -> anyhow::Result<Shape> {
    const LEAST: usize = 16;
    if n_tokens < LEAST {
        return Err(super::UsageError(format!("--tokens {n_tokens} is less than {LEAST}; hint: 256")).into());
    }
    let n_prompt = n_tokens / 8;
    let n_agent = (n_tokens - n_prompt) / 4;
    Ok(Shape { n_rows, n_prompt, n_agent, n_observation: n_tokens - n_prompt - 2 * n_agent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_an_episode_add_up() {
        for n_tokens in [16, 100, 1024] {
            assert_eq!(shares(3, n_tokens).unwrap().n_tokens(), 3 * n_tokens);
        }
        assert!(shares(3, 15).unwrap_err().to_string().contains("hint: "));
    }

    #[test]
    fn a_time_that_is_none_and_an_unknown_type_are_refused() {
        assert!(budget(-1.0).is_err() && budget(f64::NAN).is_err() && budget(0.5).is_ok());
        assert!(dtype("f64").is_err() && dtype("bf16").is_ok());
    }
}
