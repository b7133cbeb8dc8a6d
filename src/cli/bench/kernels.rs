//! `dgpo bench kernels`: each operation beside what it replaces.
use super::{Measuring, budget, check_dtype};
use crate::cli::{Context, Ended, UsageError, args::at_least_one, output, table::table};
use burn::tensor::DType;
use dgpo_kernels::suite::{
    Op,
    probes::{Budget, copy_rate, host_copy_rate},
    timed::{Body, Pass},
};
use dgpo_lab::bench::{
    kernels::{self, BenchSizes, KernelFigure, Milliseconds},
    memory::{self, Method, Peak},
    torch::{self, Torch},
};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::FloatType,
    devices::{DeviceChoice, DeviceJob, with_device},
};
use serde_json::json;
use std::process::Command;

/// Each operation fused, as plain tensor operations, as its bare matrix products, and in PyTorch
/// where there is one.
///
/// python3 (or the interpreter that DGPO_PYTHON names) is asked for torch; without it that column
/// stays empty.
///
/// Example: dgpo bench kernels --rows 512 --vocab 32000 --width 896
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    measuring: Measuring,
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
    /// Time for each figure, in seconds; at most 20 runs.
    #[arg(long, default_value = "3", value_name = "SECONDS")]
    time: f64,
    /// Measure the memory of one operation and print it: what the command asks a process of its own
    /// to do.
    #[arg(long, hide = true, value_name = "OPERATION:BODY:PASS")]
    peak_of: Option<String>,
}

const BODIES: [(&str, Body); 2] = [("fused", Body::Fused), ("unfused", Body::Unfused)];
const PASSES: [(&str, Pass); 2] = [("forward", Pass::Forward), ("training", Pass::Training)];

struct TimeKernels<'a> {
    sizes: BenchSizes,
    dtype: FloatType,
    budget: Budget,
    choice: DeviceChoice,
    args: &'a Args,
    is_quiet: bool,
}

impl DeviceJob for TimeKernels<'_> {
    /// The copy's rate and the figures, or why there are none.
    type Output = Result<(f64, Vec<(String, KernelFigure)>), UsageError>;

    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { sizes, dtype, budget, choice, args, is_quiet } = self;
        let dtype = check_dtype::<B::InnerBackend>(choice, dtype, device)?;
        const COPY_BYTES: usize = 1 << 28;
        let on_device = copy_rate::<B::InnerBackend>(COPY_BYTES, device, budget);
        let copy = if choice == DeviceChoice::Cpu {
            on_device.max(host_copy_rate(COPY_BYTES, budget))
        } else {
            on_device
        };
        let mut figures = Vec::new();
        let wanted = args.op.as_deref().unwrap_or_default();
        for (number, op) in kernels::operations(sizes)
            .iter()
            .enumerate()
            .filter(|(_, op)| op.name().contains(wanted))
        {
            for (pass_name, pass) in PASSES {
                tracing::info!("{} {} {pass_name}", op.name(), op.shape());
                let Some(mut figure) =
                    kernels::figure::<B::InnerBackend>(op, dtype, pass, copy, budget, device)
                else {
                    continue;
                };
                let [fused, unfused] = BODIES.map(|(body_name, body)| match choice {
                    DeviceChoice::Cpu => {
                        peak_in_child(args, &format!("{number}:{body_name}:{pass_name}"))
                    }
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
fn peak_in_child(args: &Args, peak_of: &str) -> Option<Peak> {
    let sizes = [("--rows", args.rows), ("--vocab", args.vocab), ("--width", args.width)];
    let output = Command::new(std::env::current_exe().ok()?)
        .args(["bench", "kernels", "--dtype", args.measuring.dtype.as_str(), "--peak-of", peak_of])
        .args(sizes.iter().flat_map(|(flag, n)| [(*flag).to_owned(), n.to_string()]))
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()?
}

struct MeasurePeak {
    op: Op,
    dtype: DType,
    body: Body,
    pass: Pass,
}

impl DeviceJob for MeasurePeak {
    type Output = Option<Peak>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        memory::peak::<B::InnerBackend>(&self.op, self.dtype, self.body, self.pass, true, device)
    }
}

/// Reads `NUMBER:BODY:PASS`.
/// # Errors
/// If there is no such operation, body or pass.
fn what_to_measure(peak_of: &str, sizes: BenchSizes) -> Result<(Op, Body, Pass), UsageError> {
    let mut operations = kernels::operations(sizes);
    let n_operations = operations.len();
    let found = match peak_of.split(':').collect::<Vec<_>>()[..] {
        [number, body, pass] => {
            let number = number.parse().ok().filter(|&number: &usize| number < n_operations);
            let body = BODIES.iter().find(|(name, _)| *name == body);
            let pass = PASSES.iter().find(|(name, _)| *name == pass);
            number.zip(body).zip(pass)
        }
        _ => None,
    };
    let Some(((number, (_, body)), (_, pass))) = found else {
        let last = n_operations - 1;
        return Err(UsageError(format!(
            "--peak-of {peak_of}: no such figure; hint: 0 to {last}:fused|unfused:forward|training"
        )));
    };
    Ok((operations.swap_remove(number), *body, *pass))
}

pub(super) fn run(args: &Args, context: Context) -> anyhow::Result<Ended> {
    let Measuring { dtype, .. } = args.measuring;
    let (choice, budget) = (args.measuring.choice(), budget(args.time)?);
    let sizes = BenchSizes { n_rows: args.rows, n_vocab: args.vocab, width: args.width };
    if let Some(peak_of) = &args.peak_of {
        let (op, body, pass) = what_to_measure(peak_of, sizes)?;
        let peak = with_device(choice, MeasurePeak { op, dtype: dtype.dtype(), body, pass })?;
        output::json(&peak)?;
        return Ok(Ended::Done);
    }
    if let Some(wanted) = &args.op {
        let mut names: Vec<&str> = kernels::operations(sizes).iter().map(|op| op.name()).collect();
        names.dedup();
        if !names.iter().any(|name| name.contains(wanted.as_str())) {
            return Err(UsageError(format!(
                "--op {wanted}: no operation is called so; hint: {}",
                names.join(", ")
            ))
            .into());
        }
    }
    let job = TimeKernels { sizes, dtype, budget, choice, args, is_quiet: context.is_quiet };
    let (copy, mut figures) = with_device(choice, job)??;
    let torch = torch_figures(choice, sizes, dtype.as_str(), args.time);
    if let Ok(torch) = &torch {
        for (key, figure) in &mut figures {
            figure.torch =
                torch.figures.get(key).and_then(|passes| passes.get(figure.pass)).copied();
        }
    }
    let figures: Vec<KernelFigure> = figures.into_iter().map(|(_, figure)| figure).collect();
    if let (Err(why), false) = (&torch, context.is_quiet || args.measuring.json) {
        output::say(&format!("without PyTorch: {why}"));
    }
    let head = format!(
        ", copy {:.1} GB/s; ms, best of up to {}{}",
        copy / 1e9,
        budget.most_runs,
        torch.as_ref().map_or(String::new(), describe_torch)
    );
    let (torch, why_no_torch) = (torch.as_ref().ok(), torch.as_ref().err());
    let facts = json!({
        "copy_bytes_per_s": copy, "torch": torch, "why_no_torch": why_no_torch, "figures": figures,
    });
    args.measuring.show(facts, &head, || figures_table(&figures))
}

/// torch knows the CPU and CUDA.
fn torch_figures(
    choice: DeviceChoice,
    sizes: BenchSizes,
    dtype: &str,
    seconds: f64,
) -> Result<Torch, String> {
    match choice {
        DeviceChoice::Cpu => torch::measure(sizes, "cpu", dtype, seconds),
        DeviceChoice::Cuda(_) => torch::measure(sizes, "cuda", dtype, seconds),
        DeviceChoice::Wgpu(_) => Err("PyTorch has no wgpu".to_owned()),
    }
}

fn describe_torch(torch: &Torch) -> String {
    format!("; PyTorch {} on {}, {} threads", torch.version, torch.device, torch.n_threads)
}

fn figures_table(figures: &[KernelFigure]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_does_not_exist_is_refused() {
        let sizes = BenchSizes { n_rows: 4, n_vocab: 64, width: 8 };
        let (op, body, pass) = what_to_measure("14:unfused:forward", sizes).unwrap();
        assert_eq!((op.name(), body, pass), ("sample", Body::Unfused, Pass::Forward));
        for wrong in [
            "99:fused:forward",
            "0:fast:forward",
            "0:fused:backward",
            "0:fused",
            "0:fused:forward:x",
            "x:fused:forward",
        ] {
            assert!(
                what_to_measure(wrong, sizes).unwrap_err().to_string().contains("hint: "),
                "{wrong}"
            );
        }
    }
}
