//! Highest rates of a device, measured the same way as the operations: the rate of a copy and
//! of a matrix product.
use burn::tensor::{DType, Device, Distribution, Tensor, backend::Backend};
use rayon::prelude::*;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Limits of a timing. The first run is not counted: it compiles, allocates
/// and picks its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Time that all runs may take together.
    pub time: Duration,
    /// Runs at the most; there is always one.
    pub most_runs: usize,
}

/// Seconds of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The fastest run.
    pub best_s: f64,
    /// The run in the middle.
    pub median_s: f64,
    /// Runs that were timed.
    pub n_runs: usize,
}

/// Times jobs that wait for the device themselves, one run of each in turn, so that a disturbance
/// meets all of them.
pub fn time_interleaved(jobs: &mut [&mut dyn FnMut()], budget: Budget) -> Vec<Timing> {
    jobs.iter_mut().for_each(|job| job());
    let started = Instant::now();
    let mut seconds = vec![Vec::new(); jobs.len()];
    while seconds.first().is_some_and(|s| {
        s.is_empty() || s.len() < budget.most_runs && started.elapsed() < budget.time
    }) {
        for (job, seconds) in jobs.iter_mut().zip(&mut seconds) {
            let start = Instant::now();
            job();
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.into_iter().map(timing).collect()
}

/// Times one job.
pub fn time(mut job: impl FnMut(), budget: Budget) -> Timing {
    time_interleaved(&mut [&mut job], budget)[0]
}

fn timing(mut seconds: Vec<f64>) -> Timing {
    seconds.sort_by(f64::total_cmp);
    Timing { best_s: seconds[0], median_s: seconds[seconds.len() / 2], n_runs: seconds.len() }
}

/// Waits until the device has done everything.
/// # Panics
/// When the device reports an error of earlier work.
pub fn wait_for<B: Backend>(device: &Device<B>) {
    B::sync(device).expect("the device has done what was asked of it");
}

/// Bytes a second, read and written, of `x + 1` over `n_bytes` of f32.
pub fn copy_rate<B: Backend>(n_bytes: usize, device: &Device<B>, budget: Budget) -> f64 {
    let x = Tensor::<B, 1>::ones([n_bytes / 4], (device, DType::F32));
    let copy = || {
        let y = x.clone() + 1.0;
        wait_for::<B>(device);
        drop(y);
    };
    2.0 * n_bytes as f64 / time(copy, budget).best_s
}

/// The same of plain copies in the host's memory, on all threads.
pub fn host_copy_rate(n_bytes: usize, budget: Budget) -> f64 {
    const PIECE: usize = 1 << 18;
    let from = vec![1.0f32; n_bytes / 4];
    let mut to = vec![0.0f32; n_bytes / 4];
    let copy = || {
        to.par_chunks_mut(PIECE)
            .zip(from.par_chunks(PIECE))
            .for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    };
    2.0 * n_bytes as f64 / time(copy, budget).best_s
}

/// Floating-point operations a second of a product of two square matrices of `size`.
pub fn product_rate<B: Backend>(
    size: usize,
    dtype: DType,
    device: &Device<B>,
    budget: Budget,
) -> f64 {
    let random =
        || Tensor::<B, 2>::random([size, size], Distribution::Normal(0.0, 1.0), (device, dtype));
    let (a, b) = (random(), random());
    let product = || {
        let c = a.clone().matmul(b.clone());
        wait_for::<B>(device);
        drop(c);
    };
    2.0 * (size as f64).powi(3) / time(product, budget).best_s
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    const SHORT: Budget = Budget { time: Duration::from_millis(5), most_runs: 3 };

    #[test]
    fn every_job_runs_once_uncounted_and_as_often_as_the_others() {
        let (mut a, mut b) = (0, 0);
        let timings = time_interleaved(
            &mut [&mut || a += 1, &mut || b += 1],
            Budget { time: Duration::from_secs(9), most_runs: 3 },
        );
        assert_eq!((a, b, timings[0].n_runs, timings[1].n_runs), (4, 4, 3, 3));
        assert!(timings.iter().all(|t| t.best_s <= t.median_s));
    }

    #[test]
    fn rates_are_positive_numbers() {
        let device = Default::default();
        for rate in [
            copy_rate::<Flex>(1 << 20, &device, SHORT),
            host_copy_rate(1 << 20, SHORT),
            product_rate::<Flex>(64, DType::F32, &device, SHORT),
        ] {
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }
}
