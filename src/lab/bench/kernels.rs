//! Each operation fused, as plain tensor operations, and as its bare matrix products: one run of
//! each in turn, on the same device.
use super::{memory::Peak, torch::TorchFigure};
use crate::portability::dtype_name;
use burn::tensor::{DType, Device};
use dgpo_kernels::{
    KernelOps,
    suite::{
        Op,
        probes::{Budget, time_interleaved},
        timed::{Body, Pass, prepare, shapes},
    },
};
use serde::Serialize;

/// Subject of a timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchSizes {
    pub n_rows: usize,
    pub n_vocab: usize,
    pub width: usize,
}

/// Milliseconds of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Milliseconds {
    pub best: f64,
    pub median: f64,
}

/// One operation and pass.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFigure {
    pub name: &'static str,
    pub shape: String,
    /// "forward", or "forward and backward"
    pub pass: &'static str,
    pub fused: Milliseconds,
    /// The same in plain tensor operations.
    pub unfused: Milliseconds,
    /// The matrix products of the whole logits alone, as many as the fused body computes; only
    /// where there are such products.
    pub all_products: Option<Milliseconds>,
    /// Those that no way can leave out.
    pub least_products: Option<Milliseconds>,
    /// Bytes by formula over the fused body's time.
    pub bytes_per_s: f64,
    /// Of the copy's rate.
    pub copy_fraction: f64,
    /// Peak extra memory, inputs not counted.
    pub fused_peak: Option<Peak>,
    pub unfused_peak: Option<Peak>,
    pub torch: Option<TorchFigure>,
}

/// The operations that are timed at these sizes, in the order of the figures.
pub fn operations(sizes: BenchSizes) -> Vec<Op> {
    shapes(sizes.n_rows, sizes.n_vocab, sizes.width)
}

/// Name of an operation in the script for PyTorch: its name, with the divergence's or the
/// number of tokens.
pub fn key(op: &Op) -> String {
    match op {
        Op::LogSoftmaxKl(_, divergence) => {
            let text = format!("{divergence:?}");
            format!("{} {}", op.name(), text.split(' ').next().unwrap_or_default())
        }
        Op::Attention(shape) => format!("{} {}", op.name(), shape.n_queries),
        _ => op.name().to_owned(),
    }
}

/// Times one operation in one pass; `None` where it has no such pass.
pub fn figure<B: KernelOps>(
    op: &Op,
    dtype: DType,
    pass: Pass,
    copy_rate: f64,
    budget: Budget,
    device: &Device<B>,
) -> Option<KernelFigure> {
    let bodies = [Body::Fused, Body::Unfused, Body::AllProducts, Body::LeastProducts];
    let mut jobs = bodies.map(|body| prepare::<B>(op, dtype, body, pass, device));
    let is_there = jobs.each_ref().map(Option::is_some);
    if !is_there[0] || !is_there[1] {
        return None;
    }
    let mut present: Vec<&mut dyn FnMut()> =
        jobs.iter_mut().flatten().map(|job| &mut **job as &mut dyn FnMut()).collect();
    let mut timings = time_interleaved(&mut present, budget).into_iter();
    let mut next = |is_there: bool| {
        let timing = if is_there { timings.next() } else { None };
        timing.map(|t| Milliseconds { best: t.best_s * 1e3, median: t.median_s * 1e3 })
    };
    let [fused, unfused, all_products, least_products] = is_there.map(&mut next);
    let (fused, unfused) = (fused?, unfused?);
    let n_passes = if pass == Pass::Forward { 1 } else { 2 };
    let bytes: usize = op.work(dtype).bytes.iter().take(n_passes).sum();
    let bytes_per_s = bytes as f64 / (fused.best * 1e-3);
    Some(KernelFigure {
        name: op.name(),
        shape: format!("{} {}", op.shape(), dtype_name(dtype)),
        pass: pass_name(pass),
        fused,
        unfused,
        all_products,
        least_products,
        bytes_per_s,
        copy_fraction: bytes_per_s / copy_rate,
        fused_peak: None,
        unfused_peak: None,
        torch: None,
    })
}

/// As the figures call it.
pub fn pass_name(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "forward",
        Pass::Training => "forward and backward",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;
    use std::time::Duration;

    const SHORT: Budget = Budget { time: Duration::from_millis(1), most_runs: 1 };

    #[test]
    fn every_operation_has_a_forward_pass_and_products_where_it_has_a_head() {
        let device = Default::default();
        for op in operations(BenchSizes { n_rows: 16, n_vocab: 300, width: 64 }) {
            let forward = figure::<Flex>(&op, DType::F32, Pass::Forward, 1e9, SHORT, &device)
                .expect("a forward pass");
            assert_eq!(
                forward.all_products.is_some(),
                op.name().starts_with("linear"),
                "{}",
                op.name()
            );
            assert_eq!(forward.least_products.is_some(), forward.all_products.is_some());
            assert!(forward.fused.best > 0.0 && forward.fused.best <= forward.fused.median);
            let training = figure::<Flex>(&op, DType::F32, Pass::Training, 1e9, SHORT, &device);
            assert_eq!(
                training.is_none(),
                ["attention, decode", "cache_write", "sample"].contains(&op.name()),
                "{}",
                op.name()
            );
        }
    }

    #[test]
    fn keys_tell_operations_apart() {
        let mut keys: Vec<String> =
            operations(BenchSizes { n_rows: 4, n_vocab: 30, width: 8 }).iter().map(key).collect();
        assert!(keys.contains(&"log_softmax_kl SkewForward".to_owned()));
        let n = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), n);
    }
}
