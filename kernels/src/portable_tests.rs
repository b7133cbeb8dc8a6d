//! Values and gradients of the operations on hidden states by their definitions in f64, on every
//! backend and for every float type it has.
use crate::{
    KernelOps,
    erf_gelu::erf_gelu,
    rms_norm::rms_norm,
    rotary::rotary,
    swiglu::swiglu,
    testing::{
        assert_close, differences, dtypes, epsilon, numbers, on_every_backend, rounded, tensor,
        values,
    },
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Tensor},
};

on_every_backend!(
    rms_norm_is_its_definition,
    swiglu_is_its_definition,
    rotary_turns_and_its_gradient_turns_back,
    erf_gelu_is_its_definition,
    nan_surfaces,
    no_rows_are_no_rows,
);

/// Results are rounded to the type once or twice, and so are the gradients.
fn tolerance(dtype: DType) -> f64 {
    2e-5 + if dtype == DType::F32 { 0.0 } else { 2.0 * epsilon(dtype) }
}

fn scaled(n: usize, salt: f64, by: f64, dtype: DType) -> Vec<f64> {
    rounded(&numbers(n, salt).iter().map(|x| by * x).collect::<Vec<_>>(), dtype)
}

fn leaf<B: KernelOps, const D: usize>(
    x: &[f64],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<Autodiff<B>, D> {
    tensor(x, shape, dtype).require_grad()
}

fn weighted_sum(y: &[f64], weights: &[f64]) -> f64 {
    y.iter().zip(weights).map(|(y, w)| y * w).sum()
}

fn pick(values: &[f64], at: &[usize]) -> Vec<f64> {
    at.iter().map(|&i| values[i]).collect()
}

fn rms_norm_is_its_definition<B: KernelOps>() {
    const EPS: f64 = 1e-2;
    for dtype in dtypes::<B>() {
        for (n, d) in [(1, 1), (3, 5), (130, 48), (2, 700)] {
            let (x, w, weights) = (
                scaled(n * d, 0.0, 2.0, dtype),
                scaled(d, 0.1, 2.0, dtype),
                scaled(n * d, 0.2, 2.0, dtype),
            );
            let literal = |x: &[f64], w: &[f64]| -> Vec<f64> {
                let norm =
                    |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + EPS).sqrt();
                x.chunks(d)
                    .flat_map(|x| x.iter().zip(w).map(move |(x_d, w)| x_d / norm(x) * w))
                    .collect()
            };
            let what = format!("{n} x {d}, {dtype:?}");
            let (x_ad, w_ad) = (leaf::<B, 2>(&x, [n, d], dtype), leaf::<B, 1>(&w, [d], dtype));
            let y = rms_norm(x_ad.clone(), w_ad.clone(), EPS);
            assert_close(&values(y.clone().detach()), &literal(&x, &w), tolerance(dtype), &what);
            let grads =
                (y.cast(DType::F32) * tensor(&weights, [n, d], DType::F32)).sum().backward();
            let at: Vec<usize> = (0..n * d).step_by(1 + n * d / 50).collect();
            let want = differences(&x, &at, |x| weighted_sum(&literal(x, &w), &weights));
            assert_close(
                &pick(&values(x_ad.grad(&grads).unwrap()), &at),
                &want,
                tolerance(dtype),
                &format!("dx, {what}"),
            );
            let at: Vec<usize> = (0..d).step_by(1 + d / 50).collect();
            let want = differences(&w, &at, |w| weighted_sum(&literal(&x, w), &weights));
            assert_close(
                &pick(&values(w_ad.grad(&grads).unwrap()), &at),
                &want,
                tolerance(dtype),
                &format!("dw, {what}"),
            );
        }
    }
}

fn swiglu_is_its_definition<B: KernelOps>() {
    let silu = |g: f64| g / (1.0 + (-g).exp());
    for dtype in dtypes::<B>() {
        for (n, width, by) in [(1, 1, 8.0), (3, 123, 8.0), (2, 300, 400.0)] {
            let shape = [n, width];
            let n = n * width;
            let (gate, up, weights) =
                (scaled(n, 0.0, by, dtype), scaled(n, 0.1, 2.0, dtype), scaled(n, 0.2, 2.0, dtype));
            let want: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
            let (g, u) = (leaf::<B, 2>(&gate, shape, dtype), leaf::<B, 2>(&up, shape, dtype));
            let y = swiglu(g.clone(), u.clone());
            assert_close(&values(y.clone().detach()), &want, tolerance(dtype), "swiglu");
            let grads = (y.cast(DType::F32) * tensor(&weights, shape, DType::F32)).sum().backward();
            let dup: Vec<f64> = gate.iter().zip(&weights).map(|(g, w)| silu(*g) * w).collect();
            assert_close(&values(u.grad(&grads).unwrap()), &dup, tolerance(dtype), "d up");
            let slope = |g: f64| (silu(g + 1e-5) - silu(g - 1e-5)) / 2e-5;
            let dgate: Vec<f64> = (0..n).map(|i| weights[i] * up[i] * slope(gate[i])).collect();
            assert_close(&values(g.grad(&grads).unwrap()), &dgate, tolerance(dtype), "d gate");
        }
    }
}

fn rotary_turns_and_its_gradient_turns_back<B: KernelOps>() {
    // Tokens, positions, heads, half a head.
    for (n, p, heads, half) in [(6, 3, 2, 2), (1, 1, 1, 1), (10, 5, 3, 16)] {
        for dtype in dtypes::<B>() {
            let width = heads * 2 * half;
            let angles: Vec<f64> = numbers(p * half, 0.1).iter().map(|x| 6.0 * x).collect();
            let (x, weights) =
                (scaled(n * width, 0.0, 2.0, dtype), scaled(n * width, 0.2, 2.0, dtype));
            let turned = |x: &[f64], direction: f64| {
                let mut out = vec![0.0; n * width];
                for pair in 0..n * heads * half {
                    let (i, at) = (pair % half, pair / half * 2 * half + pair % half);
                    let (sin, cos) =
                        (direction * angles[pair / half / heads % p * half + i]).sin_cos();
                    out[at] = x[at] * cos - x[at + half] * sin;
                    out[at + half] = x[at + half] * cos + x[at] * sin;
                }
                out
            };
            let table = |f: fn(f64) -> f64| {
                tensor::<Autodiff<B>, 2>(
                    &angles.iter().map(|a| f(*a)).collect::<Vec<_>>(),
                    [p, half],
                    DType::F32,
                )
            };
            let input = leaf::<B, 2>(&x, [n, width], dtype);
            let y = rotary(input.clone(), table(f64::cos), table(f64::sin));
            assert_close(&values(y.clone().detach()), &turned(&x, 1.0), tolerance(dtype), "rotary");
            let grads =
                (y.cast(DType::F32) * tensor(&weights, [n, width], DType::F32)).sum().backward();
            assert_close(
                &values(input.grad(&grads).unwrap()),
                &turned(&weights, -1.0),
                tolerance(dtype),
                "dx",
            );
        }
    }
}

fn erf_gelu_is_its_definition<B: KernelOps>() {
    /// erf by its Taylor series: 120 terms hold 1e-12 for |x| <= 3.8.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }
    let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
    for dtype in dtypes::<B>() {
        let (x, weights) = (scaled(3 * 101, 0.0, 10.0, dtype), scaled(3 * 101, 0.2, 2.0, dtype));
        let input = leaf::<B, 2>(&x, [3, 101], dtype);
        let y = erf_gelu(input.clone());
        assert_close(
            &values(y.clone().detach()),
            &x.iter().map(|x| gelu(*x)).collect::<Vec<_>>(),
            tolerance(dtype),
            "gelu",
        );
        let grads = (y.cast(DType::F32) * tensor(&weights, [3, 101], DType::F32)).sum().backward();
        let want: Vec<f64> = x
            .iter()
            .zip(&weights)
            .map(|(x, w)| w * (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5)
            .collect();
        assert_close(&values(input.grad(&grads).unwrap()), &want, tolerance(dtype), "dx");
    }
}

fn nan_surfaces<B: KernelOps>() {
    let x = || tensor::<B, 2>(&[1.0, f64::NAN, 2.0, 3.0], [2, 2], DType::F32);
    let ones = || tensor::<B, 2>(&[1.0; 4], [2, 2], DType::F32);
    let is_nan =
        |tensor: Tensor<B, 2>| values(tensor).iter().map(|x| x.is_nan()).collect::<Vec<_>>();
    assert_eq!(
        is_nan(rms_norm(x(), tensor(&[1.0; 2], [2], DType::F32), 1e-6)),
        [true, true, false, false]
    );
    assert_eq!(is_nan(swiglu(x(), ones())), [false, true, false, false]);
    assert_eq!(is_nan(swiglu(ones(), x())), [false, true, false, false]);
    assert_eq!(is_nan(erf_gelu(x())), [false, true, false, false]);
    let table = || tensor::<B, 2>(&[0.5; 2], [2, 1], DType::F32);
    assert_eq!(is_nan(rotary(x(), table(), table())), [true, true, false, false]);
}

fn no_rows_are_no_rows<B: KernelOps>() {
    let none = || Tensor::<B, 2>::zeros([0, 4], &Default::default());
    assert_eq!(rms_norm(none(), Tensor::ones([4], &Default::default()), 1e-6).dims(), [0, 4]);
    assert_eq!(swiglu(none(), none()).dims(), [0, 4]);
    assert_eq!(erf_gelu(none()).dims(), [0, 4]);
}
