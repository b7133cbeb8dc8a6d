//! Times sampling on the CPU backend: `cargo run --release -p dgpo-kernels --example sample_speed`.
use burn::{
    backend::Flex,
    tensor::{Tensor, TensorData},
};
use dgpo_kernels::sample::{RowSampling, read, sample};
use std::time::Instant;

const N_ROWS: usize = 64;
const VOCAB_SIZE: usize = 151_936;
const REPEATS: usize = 5;

fn main() {
    // Logits as of a language model: a few tokens of a hundred thousand matter.
    let noise = |i: usize| (i as f64 * 0.618_033_988_749_894_9).fract();
    let logit = |i: usize| (2.5 * (-2.0 * (1.0 - noise(i)).ln()).sqrt() * (std::f64::consts::TAU * noise(i / 3 + 1)).cos()) as f32;
    let data = TensorData::new((0..N_ROWS * VOCAB_SIZE).map(logit).collect::<Vec<_>>(), [N_ROWS, VOCAB_SIZE]);
    let logits = Tensor::<Flex, 2>::from_data(data, &Default::default());
    let plain = RowSampling { temperature: 1.0, top_k: 0, top_p: 1.0, bits: 0 };
    println!("{N_ROWS} rows of {VOCAB_SIZE}, best of {REPEATS}");
    for (name, row) in [
        ("greedy", RowSampling { temperature: 0.0, ..plain }),
        ("temperature 1", plain),
        ("top-k 50", RowSampling { top_k: 50, ..plain }),
        ("top-p 0.9", RowSampling { top_p: 0.9, ..plain }),
    ] {
        let rows: Vec<RowSampling> =
            (0..N_ROWS as u64).map(|r| RowSampling { bits: r.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..row }).collect();
        let best = (0..REPEATS)
            .map(|_| {
                let start = Instant::now();
                let n_drawn = read(sample(logits.clone(), &rows)).iter().flatten().count();
                assert_eq!(n_drawn, N_ROWS);
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        println!("{name:14} {:6.1} ms", 1e3 * best);
    }
}
