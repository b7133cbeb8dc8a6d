//! Does this device compute what the definitions say, and how fast? `dgpo portability`.
//!
//! ```text
//! facts        adapter, runtime, what it can do, limits
//! rates        a copy and a matrix product in each float type: what everything else is a fraction of
//! operations   every operation in each float type against a definition in f64, then timed
//! training     the tiny model's forward pass, one KD step and one DGPO step against the CPU backend
//! ```
//!
//! Contract: no input beyond the built-in assets, about two minutes, and a panic in one operation is a failed line of the report, not the end of it.
//! Sizes follow from the rates measured first, so that a slow device takes as long as a fast one.
mod operations;
mod training;
pub mod workload;

pub use operations::{Operation, Speed};
pub use training::Comparison;

use burn::tensor::{DType, Device};
use dgpo_kernels::suite::{
    numbers::{DTYPES, dtypes_of},
    probes::{Budget, copy_rate, host_copy_rate, product_rate},
};
use dgpo_models::TrainBackend;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// For each probe; each timed operation gets half of it.
const PROBE: Budget = Budget { time: Duration::from_millis(400), most_runs: 20 };
/// Of the first look at a rate, from which the real sizes follow.
const LOOK: Budget = Budget { time: Duration::from_millis(50), most_runs: 5 };
/// How long one copy or product should take: long beside the cost of a launch.
const PROBE_S: f64 = 0.02;

/// What a device is called, and whether its copies can be compared with those of the host's memory.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// As on the command line.
    pub device: String,
    /// Adapter and driver, or processor and threads.
    pub adapter: String,
    #[serde(skip)]
    pub is_cpu: bool,
}

/// Everything found out about one device.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub about: About,
    pub runtime: String,
    pub features: BTreeMap<&'static str, String>,
    pub limits: BTreeMap<&'static str, u64>,
    /// "f16" -> "yes", or what is used instead.
    pub dtypes: BTreeMap<&'static str, String>,
    pub rates: Rates,
    pub operations: Vec<Operation>,
    pub training: Vec<Comparison>,
    pub passed: usize,
    pub failed: usize,
}

/// What the device reaches at most.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rates {
    /// Read and written.
    pub copy_bytes_per_s: f64,
    /// For each float type, of a product of two square matrices.
    pub product_flops_per_s: BTreeMap<&'static str, f64>,
}

impl Rates {
    /// Multiply-adds count twice.
    fn product(&self, dtype: DType) -> f64 {
        self.product_flops_per_s.get(dtype_name(dtype)).copied().unwrap_or_default()
    }
}

/// As recipes call it.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

/// Runs everything on a device; `say` hears what is being done.
pub fn run<B: TrainBackend>(about: About, device: &Device<B>, say: &dyn Fn(&str)) -> Report {
    let facts = <B::InnerBackend as dgpo_kernels::KernelOps>::device_facts(device);
    let dtypes = dtypes_of::<B::InnerBackend>(device);
    say("measuring the rates of a copy and of matrix products");
    let rates = rates::<B>(&about, &dtypes, device);
    let operations = operations::run::<B::InnerBackend>(&dtypes, &rates, device, say);
    say("tiny model: forward pass, one KD step, one DGPO step, here and on the CPU");
    let training = training::run::<B>(device);
    let failed = operations.iter().filter(|operation| !operation.passed).count() + training.iter().filter(|c| !c.passed).count();
    Report {
        about,
        runtime: facts.runtime,
        features: facts.features.into_iter().collect(),
        limits: facts.limits.into_iter().collect(),
        dtypes: DTYPES.iter().map(|dtype| (dtype_name(*dtype), says(*dtype, &dtypes))).collect(),
        rates,
        passed: operations.len() + training.len() - failed,
        failed,
        operations,
        training,
    }
}

fn says(dtype: DType, dtypes: &[DType]) -> String {
    match dtypes.contains(&dtype) {
        true => "yes".to_owned(),
        false => "no: model.dtype = \"f32\" instead".to_owned(),
    }
}

/// Rates at sizes that take about [`PROBE_S`].
fn rates<B: TrainBackend>(about: &About, dtypes: &[DType], device: &Device<B>) -> Rates {
    const LEAST_BYTES: usize = 1 << 24;
    const MOST_BYTES: usize = 1 << 30;
    let copy = |n_bytes: usize, budget: Budget| {
        let on_device = copy_rate::<B::InnerBackend>(n_bytes, device, budget);
        // On the CPU the tensor operation is no plain copy; memory itself can do at least what it does.
        if about.is_cpu { on_device.max(host_copy_rate(n_bytes, budget)) } else { on_device }
    };
    let n_bytes = (copy(LEAST_BYTES, LOOK) * PROBE_S / 2.0) as usize;
    let copy_bytes_per_s = copy(n_bytes.clamp(LEAST_BYTES, MOST_BYTES) / 64 * 64, PROBE);
    let product = |dtype: DType| {
        let look = product_rate::<B::InnerBackend>(256, dtype, device, LOOK);
        let size = (look * PROBE_S / 2.0).cbrt() as usize / 128 * 128;
        // A small product says little about a large machine: look again from there.
        let look = product_rate::<B::InnerBackend>(size.clamp(256, 4096), dtype, device, LOOK);
        let size = ((look * PROBE_S / 2.0).cbrt() as usize / 128 * 128).clamp(256, 8192);
        product_rate::<B::InnerBackend>(size, dtype, device, PROBE).max(look)
    };
    Rates { copy_bytes_per_s, product_flops_per_s: dtypes.iter().map(|dtype| (dtype_name(*dtype), product(*dtype))).collect() }
}
