//! Every operation in every float type: compared with its definition, and timed at a size that
//! suits the device.
use super::{Rates, dtype_name, guarded::guarded};
use burn::tensor::{DType, Device};
use dgpo_kernels::{
    KernelOps,
    suite::{
        Case, Check, Op,
        probes::{Budget, time},
        standard,
        timed::{Body, Pass, prepare, shapes},
    },
};
use serde::Serialize;
use std::time::{Duration, Instant};

const TIMED: Budget = Budget { time: Duration::from_millis(200), most_runs: 10 };
/// Time that the timed operations that memory decides, and those that products decide, should take
/// forwards and backwards.
const MEMORY_S: f64 = 0.008;
const PRODUCT_S: f64 = 0.1;
/// Qwen2.5's vocabulary and the width of its half-billion shape, and what a device that is slower
/// than a billion multiplications a millisecond gets.
const REAL: [usize; 2] = [151_936, 896];
const SMALL: [usize; 2] = [32_000, 256];
const REAL_FLOPS: f64 = 1e12;

/// One operation in one float type.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    pub name: &'static str,
    pub dtype: &'static str,
    pub shape: String,
    pub passed: bool,
    /// The result or gradient that used most of its tolerance.
    pub quantity: &'static str,
    /// |got - want| / (1 + |want|), for gradients over a vocabulary a share of what the entry may be off by; absent where it is not finite.
    pub worst_error: Option<f64>,
    pub tolerance: f64,
    /// Why there is no number, or what went wrong when it was timed.
    pub error: Option<String>,
    pub speeds: Vec<Speed>,
}

/// Speed of an operation.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    pub shape: String,
    /// "forward", or "forward and backward"
    pub pass: &'static str,
    pub best_ms: f64,
    /// "GB/s" where memory decides, "GFLOP/s" where matrix products do.
    pub unit: &'static str,
    pub rate: f64,
    /// Of the copy's or the matrix product's rate in the same report, where that could be measured.
    pub fraction: Option<f64>,
}

/// An operation that was left without a speed.
#[derive(Clone, Debug, Serialize)]
pub struct NotTimed {
    pub name: &'static str,
    pub dtype: &'static str,
    pub shape: String,
    pub why: String,
}

/// Every operation in every float type.
pub(super) fn check_all<B: KernelOps>(
    dtypes: &[DType],
    device: &Device<B>,
    say: &dyn Fn(&str),
) -> Vec<Operation> {
    let mut operations = Vec::new();
    for &dtype in dtypes {
        for case in standard(dtype) {
            say(&format!("{} {} {}", case.op.name(), dtype_name(dtype), case.op.shape()));
            operations.push(check::<B>(&case, device));
        }
    }
    operations
}

/// Adds speeds to the operations until `limit` is over, so that a slow or busy device still ends.
/// Goes operation by operation through all float types: none takes the time of another.
pub(super) fn time_all<B: KernelOps>(
    operations: &mut [Operation],
    dtypes: &[DType],
    rates: &Rates,
    limit: Duration,
    device: &Device<B>,
    say: &dyn Fn(&str),
) -> Vec<NotTimed> {
    let started = Instant::now();
    let lists: Vec<Vec<Op>> = dtypes.iter().map(|&dtype| shapes_for(dtype, rates)).collect();
    let n_ops = lists.iter().map(Vec::len).max().unwrap_or(0);
    let mut not_timed = Vec::new();
    for number in 0..n_ops {
        for (&dtype, ops) in dtypes.iter().zip(&lists) {
            let Some(op) = ops.get(number) else { continue };
            let (name, dtype_name, shape) = (op.name(), dtype_name(dtype), op.shape());
            if started.elapsed() >= limit {
                let why = format!(
                    "the {} s for timing were over: the device is slow, or busy with other work",
                    limit.as_secs()
                );
                not_timed.push(NotTimed { name, dtype: dtype_name, shape, why });
                continue;
            }
            say(&format!("timing {name} {dtype_name} {shape}"));
            let (speeds, error) = speeds::<B>(op, dtype, rates, device);
            let same = operations
                .iter_mut()
                .rev()
                .find(|other| other.name == name && other.dtype == dtype_name);
            let operation = same.expect("what is timed is among what is checked");
            operation.speeds.extend(speeds);
            if let Some(error) = error {
                operation.passed = false;
                operation.error.get_or_insert(format!("when it was timed ({shape}): {error}"));
            }
        }
    }
    not_timed
}

fn check<B: KernelOps>(case: &Case, device: &Device<B>) -> Operation {
    let result = guarded::<B, _>(device, || case.check::<B>(device));
    let used = |check: &Check| {
        if check.holds() {
            check.worst / check.tolerance.max(f64::MIN_POSITIVE)
        } else {
            f64::INFINITY
        }
    };
    let (worst, error) = match &result {
        Ok(checks) => (checks.iter().max_by(|a, b| used(a).total_cmp(&used(b))).copied(), None),
        Err(error) => (None, Some(error.clone())),
    };
    Operation {
        name: case.op.name(),
        dtype: dtype_name(case.dtype),
        shape: case.op.shape(),
        passed: worst.is_some_and(|check| check.holds()),
        quantity: worst.map_or("", |check| check.quantity),
        worst_error: worst.map(|check| check.worst).filter(|worst| worst.is_finite()),
        tolerance: worst.map_or(0.0, |check| check.tolerance),
        error: error.or_else(|| {
            worst
                .filter(|check| check.worst.is_infinite())
                .map(|_| "NaN where a number is due, or the reverse".to_owned())
        }),
        speeds: Vec::new(),
    }
}

/// Rows that take about as long as they should.
fn shapes_for(dtype: DType, rates: &Rates) -> Vec<Op> {
    // A rate that could not be measured counts as a slow device's.
    let (copy, product) =
        (rates.copy_bytes_per_s.unwrap_or_default(), rates.product(dtype).unwrap_or_default());
    let [n_vocab, width] = if product >= REAL_FLOPS { REAL } else { SMALL };
    let by_memory = copy * MEMORY_S / (3 * n_vocab * dtype.size()) as f64;
    let by_products = product * PRODUCT_S / (8.0 * (n_vocab * width) as f64);
    let rows = |n: f64| (n as usize).clamp(8, 4096).next_power_of_two();
    let is_product =
        |op: &Op| matches!(op, Op::LinearLogProbs(..) | Op::LinearKl(..) | Op::Attention(_));
    let of = |n_rows: usize, products: bool| {
        shapes(n_rows, n_vocab, width).into_iter().filter(move |op| is_product(op) == products)
    };
    of(rows(by_memory), false).chain(of(rows(by_products), true)).collect()
}

/// The speeds of each pass, and why there are no more.
fn speeds<B: KernelOps>(
    op: &Op,
    dtype: DType,
    rates: &Rates,
    device: &Device<B>,
) -> (Vec<Speed>, Option<String>) {
    let mut speeds = Vec::new();
    let work = op.work(dtype);
    for (pass, name, n_passes) in
        [(Pass::Forward, "forward", 1), (Pass::Training, "forward and backward", 2)]
    {
        // Its inputs may already be more than the device can hold.
        let run = || prepare::<B>(op, dtype, Body::Fused, pass, device).map(|job| time(job, TIMED));
        let timing = match guarded::<B, _>(device, run) {
            Ok(Some(timing)) => timing,
            Ok(None) => continue,
            Err(why) => return (speeds, Some(why)),
        };
        let of_passes = |work: &[usize; 2]| work.iter().take(n_passes).sum::<usize>() as f64;
        let (bytes, multiply_adds) = (of_passes(&work.bytes), of_passes(&work.multiply_adds));
        let (amount, most, unit) = match multiply_adds > 0.0 {
            true => (2.0 * multiply_adds, rates.product(dtype), "GFLOP/s"),
            false => (bytes, rates.copy_bytes_per_s, "GB/s"),
        };
        let rate = amount / timing.best_s;
        let fraction = most.map(|most| rate / most);
        speeds.push(Speed {
            shape: op.shape(),
            pass: name,
            best_ms: timing.best_s * 1e3,
            unit,
            rate: rate / 1e9,
            fraction,
        });
    }
    (speeds, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;
    use dgpo_kernels::suite::{Rows, hidden_definitions::AttentionShape};

    #[test]
    fn a_slow_device_gets_fewer_rows_and_a_smaller_vocabulary() {
        let rates = |copy, product| Rates {
            copy_bytes_per_s: Some(copy),
            product_flops_per_s: [("f32", product)].into(),
            ..Rates::default()
        };
        let [slow, fast] =
            [rates(5e9, 5e9), rates(2e12, 5e13)].map(|rates| shapes_for(DType::F32, &rates));
        assert_eq!(slow.len(), fast.len());
        let rows = |ops: &[Op]| {
            ops.iter().find_map(|op| {
                if let Op::LogProbs(rows) = op { Some((rows.n_rows, rows.n_vocab)) } else { None }
            })
        };
        assert_eq!((rows(&slow), rows(&fast)), (Some((128, 32_000)), Some((4096, 151_936))));
    }

    #[test]
    fn a_panic_is_a_failed_line_with_its_message() {
        let [sound, broken] = [2, 3].map(|n_heads| {
            let shape = AttentionShape {
                starts: vec![0],
                lengths: None,
                n_heads,
                n_kv_heads: 2,
                n_queries: 3,
                n_keys: 3,
                head_dim: 4,
            };
            check::<Flex>(&Case::new(Op::Attention(shape), DType::F32), &Default::default())
        });
        assert!(sound.passed && sound.error.is_none(), "{sound:?}");
        assert!(
            !broken.passed
                && broken.error.as_ref().is_some_and(|error| error.contains("not a multiple")),
            "{broken:?}"
        );
    }

    #[test]
    fn a_speed_is_a_fraction_of_the_rate_that_decides() {
        let rates = Rates {
            copy_bytes_per_s: Some(1e9),
            product_flops_per_s: [("f32", 1e9)].into(),
            ..Rates::default()
        };
        let ops = shapes(8, 300, 64);
        for (op, unit) in [(&ops[0], "GB/s"), (&ops[4], "GFLOP/s")] {
            let (speeds, error) = speeds::<Flex>(op, DType::F32, &rates, &Default::default());
            assert_eq!((speeds.len(), error), (2, None));
            for speed in speeds {
                assert_eq!(speed.unit, unit);
                assert!(
                    (speed.fraction.unwrap() - speed.rate).abs() < 1e-9 * speed.rate
                        && speed.rate > 0.0,
                    "{speed:?}"
                );
            }
        }
    }

    #[test]
    fn a_panic_in_front_of_the_timing_is_an_error_and_not_the_end() {
        // Labels below an empty vocabulary.
        let (speeds, error) = speeds::<Flex>(
            &Op::LogProbs(Rows::new(2, 0)),
            DType::F32,
            &Rates::default(),
            &Default::default(),
        );
        assert!(
            speeds.is_empty() && error.as_ref().is_some_and(|error| error.contains("zero")),
            "{error:?}"
        );
    }

    #[test]
    fn what_the_time_does_not_reach_is_named_in_every_float_type() {
        let (device, dtypes) = (Default::default(), [DType::F32, DType::BF16]);
        let mut operations = check_all::<Flex>(&dtypes, &device, &|_| ());
        let not_timed = time_all::<Flex>(
            &mut operations,
            &dtypes,
            &Rates::default(),
            Duration::ZERO,
            &device,
            &|_| (),
        );
        for dtype in ["f32", "bf16"] {
            let names: Vec<&str> =
                not_timed.iter().filter(|left| left.dtype == dtype).map(|left| left.name).collect();
            let missing = operations
                .iter()
                .find(|operation| operation.dtype == dtype && !names.contains(&operation.name));
            assert!(missing.is_none(), "{missing:?}");
            assert!(
                names.iter().all(|name| operations.iter().any(|operation| operation.name == *name)),
                "{names:?}"
            );
        }
        assert!(
            not_timed.iter().all(|left| left.why.contains("0 s"))
                && operations.iter().all(|operation| operation.speeds.is_empty())
        );
    }
}
