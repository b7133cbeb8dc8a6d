//! What the tests share: backends to run on, numbers, the definitions of the operations over the vocabulary in f64, finite differences.
use crate::Divergence;
use burn::tensor::{DType, Device, Tensor, TensorData, backend::Backend};

/// Instantiates generic tests `fn name<B: KernelOps>()` for the CPU backend and, with the feature `wgpu`, for the adapter that is there (with fusion).
macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        mod on_flex {
            $(#[test] fn $name() { super::$name::<burn::backend::Flex>(); })*
        }
        #[cfg(feature = "wgpu")]
        mod on_wgpu {
            $(#[test] fn $name() {
                if crate::testing::has_adapter() {
                    super::$name::<burn::backend::Wgpu>();
                }
            })*
        }
    };
}
pub(crate) use on_every_backend;

/// Whether wgpu finds something to run on. Without one, tests say so and pass, unless `DGPO_REQUIRE_WGPU=1`.
#[cfg(feature = "wgpu")]
pub fn has_adapter() -> bool {
    use std::sync::OnceLock;
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        // wgpu's client panics where there is no adapter.
        let probe = std::thread::spawn(|| Tensor::<burn::backend::Wgpu, 1>::ones([1], &Default::default()).into_data());
        probe.join().is_ok()
    });
    let is_required = std::env::var_os("DGPO_REQUIRE_WGPU").is_some_and(|value| value == "1");
    assert!(found || !is_required, "DGPO_REQUIRE_WGPU=1 and wgpu finds no adapter");
    match found {
        true => println!("wgpu computes with {:?}", dtypes::<burn::backend::Wgpu>()),
        false => println!("skipped: wgpu finds no adapter"),
    }
    found
}

/// The float types that the backend computes with.
pub fn dtypes<B: Backend>() -> Vec<DType> {
    let device = Device::<B>::default();
    [DType::F32, DType::F16, DType::BF16].into_iter().filter(|dtype| B::supports_dtype(&device, *dtype)).collect()
}

/// Distance of 1 to the next number of a type.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    }
}

/// `n` numbers spread over -0.5..0.5, different for every salt.
pub fn numbers(n: usize, salt: f64) -> Vec<f64> {
    (0..n).map(|i| ((i as f64 + 1.0) * (0.618_033_988_749_894_9 + salt)).fract() - 0.5).collect()
}

/// The numbers as a type can hold them.
pub fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    let data = TensorData::new(values.iter().map(|&x| x as f32).collect::<Vec<_>>(), [values.len()]);
    data.convert_dtype(dtype).convert::<f32>().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

pub fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let data = TensorData::new(values.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape).convert_dtype(dtype);
    Tensor::from_data(data, (&Default::default(), dtype))
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().convert::<f32>().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// |got - want| <= tolerance (1 + |want|), NaN where NaN is wanted.
pub fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close = (got - want).abs() <= tolerance * (1.0 + want.abs()) || got.is_nan() && want.is_nan();
        assert!(is_close, "{what}[{i}]: {got} instead of {want} (tolerance {tolerance:e})");
    }
}

/// a [N, K] times b [K, M], row-major.
pub fn product(a: &[f64], b: &[f64], k: usize, m: usize) -> Vec<f64> {
    let row = |a: &[f64]| -> Vec<f64> { (0..m).map(|j| (0..k).map(|i| a[i] * b[i * m + j]).sum()).collect() };
    a.chunks(k).flat_map(row).collect()
}

/// [N, M] -> [M, N]
pub fn transposed(a: &[f64], m: usize) -> Vec<f64> {
    (0..m).flat_map(|j| a.iter().skip(j).step_by(m).copied()).collect()
}

/// df/dx of the entries `at` by central differences.
pub fn differences(x: &[f64], at: &[usize], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    at.iter()
        .map(|&i| {
            let centre = x[i];
            let mut moved = |to: f64| {
                x[i] = to;
                f(&x)
            };
            let slope = (moved(centre + STEP) - moved(centre - STEP)) / (2.0 * STEP);
            x[i] = centre;
            slope
        })
        .collect()
}

/// All divergences, with inner and extreme parameters.
pub const DIVERGENCES: [Divergence; 18] = [
    Divergence::ForwardKl,
    Divergence::ForwardCrossEntropy,
    Divergence::ReverseKl,
    Divergence::SkewForward { alpha: 0.0 },
    Divergence::SkewForward { alpha: 0.1 },
    Divergence::SkewForward { alpha: 1.0 },
    Divergence::SkewReverse { alpha: 0.3 },
    Divergence::SkewReverse { alpha: 1.0 },
    Divergence::JsDistance { lambda: 0.9 },
    Divergence::JsDistance { lambda: 0.0 },
    Divergence::TotalVariation,
    Divergence::SymmetricKl { lambda: 0.9 },
    Divergence::GeneralisedJsd { beta: 0.0 },
    Divergence::GeneralisedJsd { beta: 0.3 },
    Divergence::GeneralisedJsd { beta: 1.0 },
    Divergence::Hinton,
    Divergence::Taid { t: 0.4 },
    Divergence::Taid { t: 1.0 },
];

/// softmax(logits / temperature) by definition.
pub fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = logits.iter().map(|x| ((x - max) / temperature).exp()).collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|e| e / total).collect()
}

/// sum p ln(p / q); 0 ln 0 = 0.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| if *p == 0.0 { 0.0 } else { p * (p / q).ln() }).sum()
}

/// -sum p ln q
fn cross_entropy(p: &[f64], q: &[f64]) -> f64 {
    -p.iter().zip(q).map(|(p, q)| if *p == 0.0 { 0.0 } else { p * q.ln() }).sum::<f64>()
}

pub fn entropy(p: &[f64]) -> f64 {
    cross_entropy(p, p)
}

/// A divergence of one row as its documentation says it. `held` are the student's logits where they are a constant (TAID's target).
pub fn divergence(student: &[f64], teacher: &[f64], held: &[f64], divergence: Divergence, temperature: f64) -> f64 {
    let shared = student.len().min(teacher.len());
    let (s, t) = (softmax(&student[..shared], temperature), softmax(&teacher[..shared], temperature));
    let mix = |weight: f64| -> Vec<f64> { s.iter().zip(&t).map(|(s, t)| weight * s + (1.0 - weight) * t).collect() };
    match divergence {
        Divergence::ForwardKl => kl(&t, &s),
        Divergence::ForwardCrossEntropy => cross_entropy(&t, &s),
        Divergence::ReverseKl => kl(&s, &t),
        Divergence::SkewForward { alpha } => cross_entropy(&t, &mix(1.0 - alpha)),
        Divergence::SkewReverse { alpha } => kl(&s, &mix(alpha)),
        Divergence::JsDistance { lambda } => lambda * kl(&s, &mix(lambda)) + (1.0 - lambda) * kl(&t, &mix(lambda)),
        Divergence::TotalVariation => 0.5 * s.iter().zip(&t).map(|(s, t)| (s - t).abs()).sum::<f64>(),
        Divergence::SymmetricKl { lambda } => (1.0 - lambda) * cross_entropy(&t, &s) + lambda * kl(&s, &t),
        Divergence::GeneralisedJsd { beta: 0.0 } => kl(&t, &s),
        Divergence::GeneralisedJsd { beta: 1.0 } => kl(&s, &t),
        Divergence::GeneralisedJsd { beta } => beta * kl(&t, &mix(1.0 - beta)) + (1.0 - beta) * kl(&s, &mix(1.0 - beta)),
        Divergence::Hinton => temperature * temperature * kl(&t, &s),
        Divergence::Taid { t: 1.0 } => cross_entropy(&t, &s),
        Divergence::Taid { t } => {
            let target: Vec<f64> = held[..shared].iter().zip(teacher).map(|(s, z)| (1.0 - t) * s + t * z).collect();
            cross_entropy(&softmax(&target, temperature), &s)
        }
    }
}

/// (log p(label), H) of one row.
pub fn log_prob_and_entropy(logits: &[f64], label: usize, temperature: f64) -> (f64, f64) {
    let p = softmax(logits, temperature);
    (p[label].ln(), entropy(&p))
}
