//! Tools of the tests: backends to run on, comparisons, finite differences. Numbers and
//! definitions are those of [`crate::suite`].
pub(crate) use crate::suite::{
    numbers::{epsilon, numbers, rounded, scaled, values},
    vocabulary_definitions::{DIVERGENCES, divergence, transposed},
};
use crate::{
    KernelOps,
    suite::{
        Case,
        numbers::{dtypes_of, tensor_on},
    },
};
use burn::tensor::{DType, Tensor, backend::Backend};

/// Instantiates generic tests `fn name<B: KernelOps>()` for the CPU backend and, with the features
/// `wgpu` and `cuda`, for the device that is there (with fusion). `cargo xtask test-wgpu` and
/// `test-cuda` find them by the modules' names.
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
        #[cfg(feature = "cuda")]
        mod on_cuda {
            $(#[test] fn $name() {
                if crate::testing::has_cuda() {
                    super::$name::<burn::backend::Cuda>();
                }
            })*
        }
    };
}
pub(crate) use on_every_backend;

/// True if wgpu finds something to run on. Without one, tests say so and pass, unless
/// `DGPO_REQUIRE_WGPU=1`.
#[cfg(feature = "wgpu")]
pub(crate) fn has_adapter() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| is_there::<burn::backend::Wgpu>("wgpu", "DGPO_REQUIRE_WGPU"))
}

/// True if there is a CUDA device. Without one, tests say so and pass, unless
/// `DGPO_REQUIRE_CUDA=1`.
#[cfg(feature = "cuda")]
pub(crate) fn has_cuda() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| is_there::<burn::backend::Cuda>("CUDA", "DGPO_REQUIRE_CUDA"))
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn is_there<B: Backend>(name: &str, variable: &str) -> bool {
    // The runtime's client panics where there is no device.
    let found = std::thread::spawn(|| Tensor::<B, 1>::ones([1], &Default::default()).into_data())
        .join()
        .is_ok();
    let is_required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(found || !is_required, "{variable}=1 and {name} finds no device");
    // Past the capture of test output, which hides what a passing test prints.
    let said = match found {
        true => format!("{name} computes with {:?}", dtypes::<B>()),
        false => format!("skipped: tests on {name}, which finds no device"),
    };
    _ = std::io::Write::write_all(&mut std::io::stderr(), (said + "\n").as_bytes());
    found
}

/// The float types that the backend computes with.
pub(crate) fn dtypes<B: Backend>() -> Vec<DType> {
    dtypes_of::<B>(&Default::default())
}

/// True if a matrix product of a new shape costs no more than its multiplications: not on a GPU
/// runtime, which compiles a kernel for it.
pub(crate) fn is_of_cheap_products<B: KernelOps>() -> bool {
    B::TOKENS_AT_ONCE != usize::MAX
}

pub(crate) fn tensor<B: Backend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    tensor_on(values, shape, dtype, &Default::default())
}

/// Runs a case; `--nocapture` shows how much of the tolerances was used.
pub(crate) fn assert_case<B: KernelOps>(case: &Case) {
    for check in case.check::<B>(&Default::default()) {
        let (quantity, worst, tolerance) = (check.quantity, check.worst, check.tolerance);
        println!(
            "{:<18} {:<12} {worst:.1e} of {tolerance:.1e} {} {:?} {:?}",
            case.op.name(),
            quantity,
            case.op.shape(),
            case.dtype,
            case.fill
        );
        assert!(
            check.holds(),
            "{quantity} of {case:?} is off by {worst:e} (tolerance {tolerance:e})"
        );
    }
}

/// |got - want| <= tolerance (1 + |want|), NaN where NaN is wanted.
pub(crate) fn assert_close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close =
            (got - want).abs() <= tolerance * (1.0 + want.abs()) || got.is_nan() && want.is_nan();
        assert!(is_close, "{what}[{i}]: {got} instead of {want} (tolerance {tolerance:e})");
    }
}

/// df/dx of the entries `at` by central differences.
pub(crate) fn differences(x: &[f64], at: &[usize], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
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
