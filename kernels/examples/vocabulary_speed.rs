//! Times of the vocabulary operations of the CPU backend beside what they replace: `cargo run --release -p dgpo-kernels --example vocabulary_speed`
//! (arguments: rows, vocabulary, width of the hidden states). Each figure is the best of five runs in one process; machines differ, compare columns only.
use burn::{
    backend::{Autodiff, Flex},
    tensor::{Distribution, Int, Tensor},
};
use dgpo_kernels::{
    Divergence,
    linear_kl::linear_kl,
    linear_log_probs::{HeadLayout, LinearHead, linear_log_probs},
    log_probs::log_probs,
    log_softmax_kl::log_softmax_kl,
};
use std::time::Instant;

type Train = Autodiff<Flex>;

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse().expect("arguments are numbers")).collect();
    let [n, v, d] = sizes.try_into().unwrap_or([512, 32_000, 896]);
    println!("rows {n}, vocabulary {v}, width {d}, f32, {} threads; ms forwards and backwards", rayon_threads());
    let random = |shape: [usize; 2]| Tensor::<Flex, 2>::random(shape, Distribution::Normal(0.0, 1.0), &Default::default());
    let (student, teacher) = (random([n, v]), random([n, v]));
    let (hidden, weight) = (random([n, d]), random([v, d]) / (d as f32).sqrt());
    let labels = || Tensor::<Train, 1, Int>::zeros([n], &Default::default());

    let plain = time(|| {
        let s = Tensor::<Train, 2>::from_inner(student.clone()).require_grad();
        let log_s = burn::tensor::activation::log_softmax(s, 1);
        let log_t = burn::tensor::activation::log_softmax(Tensor::<Train, 2>::from_inner(teacher.clone()), 1);
        (log_t.clone().exp() * (log_t - log_s)).sum_dim(1).sum().backward();
    });
    println!("forward KL, burn's operations         {plain:9.1}");
    for divergence in [Divergence::ForwardKl, Divergence::SkewForward { alpha: 0.1 }, Divergence::Taid { t: 0.5 }] {
        let fused = time(|| {
            let s = Tensor::<Train, 2>::from_inner(student.clone()).require_grad();
            let rows = log_softmax_kl(s, Tensor::from_inner(teacher.clone()), labels(), divergence, 1.0);
            rows.divergence.sum().backward();
        });
        let per_element = fused * 1e6 / (n * v) as f64;
        println!("log_softmax_kl {:22} {fused:9.1}  {per_element:.2} ns an element, {:.1} x", format!("{divergence:?}"), plain / fused);
    }

    let products = time(|| {
        let z = hidden.clone().matmul(weight.clone().transpose());
        let dh = z.clone().matmul(weight.clone());
        let dw = z.transpose().matmul(hidden.clone());
        drop((dh, dw));
    });
    let again = time(|| drop(hidden.clone().matmul(weight.clone().transpose())));
    println!("three bare products                   {products:9.1}   and the logits once more {:.1}", products + again);
    let leaf = |values: &Tensor<Flex, 2>| Tensor::<Train, 2>::from_inner(values.clone()).require_grad();
    let head = || LinearHead::new(leaf(&hidden), leaf(&weight), HeadLayout::VocabRows);
    let whole = time(|| {
        let head = head();
        log_probs(head.hidden.matmul(head.weight.transpose()), labels(), 1.0).0.sum().backward();
    });
    println!("whole logits, then log_probs          {whole:9.1}");
    let tiled = time(|| drop(linear_log_probs(head(), labels(), 1.0).0.sum().backward()));
    println!("linear_log_probs                      {tiled:9.1}   {:.2} of the four products", tiled / (products + again));
    let teacher = || LinearHead::new(head().hidden.detach(), head().weight.detach(), HeadLayout::VocabRows);
    let tiled = time(|| drop(linear_kl(head(), teacher(), labels(), Divergence::ForwardKl, 1.0).divergence.sum().backward()));
    println!("linear_kl                             {tiled:9.1}   {:.2} of the six products", tiled / (products + 3.0 * again));
}

/// Milliseconds of the best of five.
fn time(mut f: impl FnMut()) -> f64 {
    (0..5).fold(f64::INFINITY, |best, _| {
        let start = Instant::now();
        f();
        best.min(start.elapsed().as_secs_f64() * 1e3)
    })
}

fn rayon_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
