//! Does this device compute what the definitions say, and how fast? `dgpo portability`.
//!
//! ```text
//! facts        adapter, runtime, what it can do, limits
//! rates        a copy and a matrix product in each float type: what everything else is a fraction of
//! operations   every operation in each float type against a definition in f64, then timed
//! training     the tiny model's forward pass, one KD step and one DGPO step against the CPU backend
//! ```
//!
//! Contract: no input beyond the built-in assets, about two minutes, and whatever fails (a rate, an
//! operation, its timing, a step) is a failed line of the report, not the end of it: each is done,
//! and waited for, by itself (`guarded.rs`). Sizes follow from the rates measured first, so that a
//! slow device takes as long as a fast one; a busy one runs out of the time for timing, and the
//! report says what was left out.
mod guarded;
mod operations;
mod training;
pub mod workload;

pub use operations::{NotTimed, Operation, Speed};
pub use training::StepComparison;

use burn::tensor::{DType, Device};
use dgpo_kernels::suite::{
    numbers::{DTYPES, dtypes_of},
    probes::{Budget, copy_rate, host_copy_rate, product_rate},
};
use dgpo_models::{Backend, TrainBackend};
use guarded::guarded;
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// For each probe; each timed operation gets half of it.
const PROBE: Budget = Budget { time: Duration::from_millis(400), most_runs: 20 };
/// Of the first look at a rate, from which the real sizes follow.
const LOOK: Budget = Budget { time: Duration::from_millis(50), most_runs: 5 };
/// For timing all operations in all float types.
const TIMING: Duration = Duration::from_secs(90);
/// Time that one copy or product should take: long beside the cost of a launch.
const PROBE_S: f64 = 0.02;

/// Name of a device, and whether its copies can be compared with those of the host's memory.
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
pub struct DeviceReport {
    #[serde(flatten)]
    pub about: About,
    pub runtime: String,
    pub features: BTreeMap<&'static str, String>,
    pub limits: BTreeMap<&'static str, u64>,
    /// "fused", or "reference" where `DGPO_KERNELS=reference` is set: then nothing is said of the
    /// kernels.
    pub kernels: &'static str,
    /// "f16" -> "yes", or what is used instead.
    pub dtypes: BTreeMap<&'static str, String>,
    pub rates: Rates,
    pub operations: Vec<Operation>,
    /// Operations without a speed though they could have one, and why.
    pub not_timed: Vec<NotTimed>,
    pub training: Vec<StepComparison>,
    /// Error of the device when it was asked for the last time.
    pub device_error: Option<String>,
    pub passed: usize,
    pub failed: usize,
}

impl DeviceReport {
    /// The device failed when all was done.
    pub fn fail(&mut self, error: String) {
        self.device_error = Some(error);
        self.failed += 1;
    }
}

/// Highest rates of the device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rates {
    /// Read and written.
    pub copy_bytes_per_s: Option<f64>,
    /// For each float type, of a product of two square matrices.
    pub product_flops_per_s: BTreeMap<&'static str, f64>,
    /// Rates that could not be measured ("copy", "matrix product, bf16"), and why: each is a failed
    /// check.
    pub errors: BTreeMap<String, String>,
}

impl Rates {
    /// Multiply-adds count twice.
    fn product(&self, dtype: DType) -> Option<f64> {
        self.product_flops_per_s.get(dtype_name(dtype)).copied()
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
pub fn run<B: TrainBackend>(about: About, device: &Device<B>, say: &dyn Fn(&str)) -> DeviceReport {
    let facts = <B::InnerBackend as dgpo_kernels::Hardware>::device_facts(device);
    let dtypes = dtypes_of::<B::InnerBackend>(device);
    say("measuring the rates of a copy and of matrix products");
    let rates = rates::<B>(&about, &dtypes, device);
    let mut operations = operations::check_all::<B::InnerBackend>(&dtypes, device, say);
    let not_timed = operations::time_all::<B::InnerBackend>(
        &mut operations,
        &dtypes,
        &rates,
        TIMING,
        device,
        say,
    );
    say("tiny model: forward pass, one KD step, one DGPO step, here and on the CPU");
    let training = training::run::<B>(device);
    let n_sound = operations.iter().filter(|operation| operation.passed).count()
        + training.iter().filter(|c| c.passed).count();
    DeviceReport {
        about,
        runtime: facts.runtime,
        features: facts.features.into_iter().collect(),
        limits: facts.limits.into_iter().collect(),
        kernels: dgpo_kernels::bodies(),
        dtypes: DTYPES.iter().map(|dtype| (dtype_name(*dtype), says(*dtype, &dtypes))).collect(),
        passed: n_sound,
        failed: operations.len() + training.len() - n_sound + rates.errors.len(),
        rates,
        operations,
        not_timed,
        training,
        device_error: None,
    }
}

fn says(dtype: DType, dtypes: &[DType]) -> String {
    match dtypes.contains(&dtype) {
        true => "yes".to_owned(),
        false => "no: model.dtype = \"f32\" instead".to_owned(),
    }
}

fn rates<B: TrainBackend>(about: &About, dtypes: &[DType], device: &Device<B>) -> Rates {
    let mut rates = Rates::default();
    match guarded::<B::InnerBackend, _>(device, || copy::<B::InnerBackend>(about.is_cpu, device)) {
        Ok(rate) => rates.copy_bytes_per_s = Some(rate),
        Err(why) => {
            rates.errors.insert("copy".to_owned(), why);
        }
    }
    for &dtype in dtypes {
        let name = dtype_name(dtype);
        match guarded::<B::InnerBackend, _>(device, || product::<B::InnerBackend>(dtype, device)) {
            Ok(rate) => {
                rates.product_flops_per_s.insert(name, rate);
            }
            Err(why) => {
                rates.errors.insert(format!("matrix product, {name}"), why);
            }
        }
    }
    rates
}

/// Bytes a second at a size that takes about [`PROBE_S`].
fn copy<B: Backend>(is_cpu: bool, device: &Device<B>) -> f64 {
    const LEAST_BYTES: usize = 1 << 24;
    const MOST_BYTES: usize = 1 << 30;
    let copy = |n_bytes: usize, budget: Budget| {
        let on_device = copy_rate::<B>(n_bytes, device, budget);
        // On the CPU the tensor operation is no plain copy; memory itself can do at least what it
        // does.
        if is_cpu { on_device.max(host_copy_rate(n_bytes, budget)) } else { on_device }
    };
    let n_bytes = (copy(LEAST_BYTES, LOOK) * PROBE_S / 2.0) as usize;
    copy(n_bytes.clamp(LEAST_BYTES, MOST_BYTES) / 64 * 64, PROBE)
}

/// Floating-point operations a second, in the same way.
fn product<B: Backend>(dtype: DType, device: &Device<B>) -> f64 {
    let look = product_rate::<B>(256, dtype, device, LOOK);
    let size = (look * PROBE_S / 2.0).cbrt() as usize / 128 * 128;
    // A small product says little about a large machine: look again from there.
    let look = product_rate::<B>(size.clamp(256, 4096), dtype, device, LOOK);
    let size = ((look * PROBE_S / 2.0).cbrt() as usize / 128 * 128).clamp(256, 8192);
    product_rate::<B>(size, dtype, device, PROBE).max(look)
}
