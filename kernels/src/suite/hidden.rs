//! The operations on hidden states, queries, keys and caches on a device, beside their definitions.
use super::{
    Case, Check, Fill, Matrix, Turns, Upstream,
    hidden_definitions::{self as definitions, AttentionShape, GELU_RANGE},
    numbers::{rounded, scaled, tensor_on, values},
};
use crate::{
    KernelOps,
    attention::{CausalRows, causal_attention},
    cache_write::{CacheSpan, cache_write},
    erf_gelu::erf_gelu,
    rms_norm::rms_norm,
    rotary::rotary,
    swiglu::swiglu,
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Device, Tensor},
};

/// Large enough beside 1 to be seen in the result.
const RMS_EPS: f64 = 1e-2;
/// Gate from which on exp(-gate) leaves the range of f32.
const FAR_GATE: f64 = 200.0;

/// Numbers of order `by`, NaN at the start of the row in the middle if the case is a broken one.
fn input(case: &Case, n_rows: usize, width: usize, salt: f64, by: f64) -> Vec<f64> {
    let mut x = scaled(n_rows * width, salt, by, case.dtype);
    if case.fill == Fill::Broken {
        x[n_rows / 2 * width] = f64::NAN;
    }
    x
}

/// The gradient that comes from above, of the case's type.
fn upstream(case: &Case, n: usize) -> Vec<f64> {
    match case.upstream {
        Upstream::Every => scaled(n, 0.2, 2.0, case.dtype),
        Upstream::None => vec![0.0; n],
    }
}

fn leaf<B: KernelOps, const D: usize>(
    x: &[f64],
    shape: [usize; D],
    dtype: DType,
    device: &Device<B>,
) -> Tensor<Autodiff<B>, D> {
    tensor_on::<Autodiff<B>, D>(x, shape, dtype, device).require_grad()
}

/// Values of `y`, and the gradients of sum(y · upstream).
fn run<B: KernelOps, const D: usize>(
    y: Tensor<Autodiff<B>, D>,
    upstream: &[f64],
    device: &Device<B>,
) -> (Vec<f64>, <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients) {
    let shape: [usize; D] = y.dims();
    let values = values(y.clone().detach());
    (values, (y.cast(DType::F32) * tensor_on(upstream, shape, DType::F32, device)).sum().backward())
}

pub(super) fn check_rms_norm<B: KernelOps>(
    case: &Case,
    matrix: Matrix,
    device: &Device<B>,
) -> Vec<Check> {
    let Matrix { n_rows, width } = matrix;
    let (x, w) = (input(case, n_rows, width, 0.0, 2.0), scaled(width, 0.1, 2.0, case.dtype));
    let grad = upstream(case, x.len());
    let [dx, dw] = definitions::rms_norm_gradients(&x, &w, &grad, RMS_EPS);
    let (x_leaf, w_leaf) = (
        leaf::<B, 2>(&x, [n_rows, width], case.dtype, device),
        leaf::<B, 1>(&w, [width], case.dtype, device),
    );
    let (y, grads) = run(rms_norm(x_leaf.clone(), w_leaf.clone(), RMS_EPS), &grad, device);
    vec![
        Check::new("y", &y, &definitions::rms_norm(&x, &w, RMS_EPS), case.stored(0)),
        Check::new(
            "dx",
            &values(x_leaf.grad(&grads).expect("x has a gradient")),
            &dx,
            case.stored(0),
        ),
        Check::new(
            "dw",
            &values(w_leaf.grad(&grads).expect("the weight has a gradient")),
            &dw,
            case.stored(n_rows),
        ),
    ]
}

pub(super) fn check_swiglu<B: KernelOps>(
    case: &Case,
    matrix: Matrix,
    device: &Device<B>,
) -> Vec<Check> {
    let shape = [matrix.n_rows, matrix.width];
    let by = if matches!(case.fill, Fill::Far(_)) { 2.0 * FAR_GATE } else { 8.0 };
    let (gate, up) = (
        input(case, matrix.n_rows, matrix.width, 0.0, by),
        scaled(matrix.n_rows * matrix.width, 0.1, 2.0, case.dtype),
    );
    let grad = upstream(case, gate.len());
    let [dgate, dup] = definitions::swiglu_gradients(&gate, &up, &grad);
    let (g, u) = (
        leaf::<B, 2>(&gate, shape, case.dtype, device),
        leaf::<B, 2>(&up, shape, case.dtype, device),
    );
    let (y, grads) = run(swiglu(g.clone(), u.clone()), &grad, device);
    vec![
        Check::new("y", &y, &definitions::swiglu(&gate, &up), case.stored(0)),
        Check::new(
            "d gate",
            &values(g.grad(&grads).expect("the gate has a gradient")),
            &dgate,
            case.stored(0),
        ),
        Check::new(
            "d up",
            &values(u.grad(&grads).expect("up has a gradient")),
            &dup,
            case.stored(0),
        ),
    ]
}

pub(super) fn check_erf_gelu<B: KernelOps>(
    case: &Case,
    matrix: Matrix,
    device: &Device<B>,
) -> Vec<Check> {
    let x = input(case, matrix.n_rows, matrix.width, 0.0, 2.0 * GELU_RANGE);
    let grad = upstream(case, x.len());
    let x_leaf = leaf::<B, 2>(&x, [matrix.n_rows, matrix.width], case.dtype, device);
    let (y, grads) = run(erf_gelu(x_leaf.clone()), &grad, device);
    vec![
        Check::new("y", &y, &definitions::erf_gelu(&x), case.stored(0)),
        Check::new(
            "dx",
            &values(x_leaf.grad(&grads).expect("x has a gradient")),
            &definitions::erf_gelu_gradient(&x, &grad),
            case.stored(0),
        ),
    ]
}

pub(super) fn check_rotary<B: KernelOps>(
    case: &Case,
    turns: Turns,
    device: &Device<B>,
) -> Vec<Check> {
    let Turns { n_rows, n_positions, n_heads, half } = turns;
    let width = 2 * n_heads * half;
    let x = input(case, n_rows, width, 0.0, 2.0);
    let grad = upstream(case, x.len());
    let angles = scaled(n_positions * half, 0.1, 6.0, DType::F32);
    let table = |f: fn(f64) -> f64| {
        let entries: Vec<f64> = angles.iter().map(|a| f(*a)).collect();
        tensor_on::<Autodiff<B>, 2>(&entries, [n_positions, half], DType::F32, device)
    };
    let x_leaf = leaf::<B, 2>(&x, [n_rows, width], case.dtype, device);
    let (y, grads) = run(rotary(x_leaf.clone(), table(f64::cos), table(f64::sin)), &grad, device);
    vec![
        Check::new("y", &y, &definitions::rotary(&x, &angles, n_heads, half, 1.0), case.stored(0)),
        Check::new(
            "dx",
            &values(x_leaf.grad(&grads).expect("x has a gradient")),
            &definitions::rotary(&grad, &angles, n_heads, half, -1.0),
            case.stored(0),
        ),
    ]
}

/// Queries, keys and values on the host.
fn attention_inputs(case: &Case, shape: &AttentionShape) -> [Vec<f64>; 3] {
    let n = |shape: [usize; 4]| shape.iter().product();
    let mut q = scaled(n(shape.queries()), 0.1, 6.0, case.dtype);
    if case.fill == Fill::Broken {
        let row = n(shape.queries()) / shape.n_rows();
        q[shape.n_rows() / 2 * row] = f64::NAN;
    }
    [
        q,
        scaled(n(shape.keys()), 0.2, 2.0, case.dtype),
        scaled(n(shape.keys()), 0.3, 2.0, case.dtype),
    ]
}

pub(super) fn check_attention<B: KernelOps>(
    case: &Case,
    shape: &AttentionShape,
    device: &Device<B>,
) -> Vec<Check> {
    let [q, k, v] = attention_inputs(case, shape);
    let grad = upstream(case, q.len());
    let rows =
        CausalRows { starts: shape.starts.clone(), slots: None, lengths: shape.lengths.clone() };
    let leaves = [(&q, shape.queries()), (&k, shape.keys()), (&v, shape.keys())]
        .map(|(x, dims)| leaf::<B, 4>(x, dims, case.dtype, device));
    let [q_leaf, k_leaf, v_leaf] = leaves.clone();
    let (y, grads) = run(causal_attention(q_leaf, k_leaf, v_leaf, &rows), &grad, device);
    // Probabilities are rounded to the case's type before the product with the values, and so is
    // the result.
    let mut checks =
        vec![Check::new("y", &y, &definitions::attention(shape, &q, &k, &v), 2.0 * case.stored(0))];
    if case.fill == Fill::Broken {
        // Backwards, NaN also reaches keys that the broken query does not see: 0 times NaN.
        return checks;
    }
    // Every query of the group adds to a key's gradient.
    let n_added = shape.n_queries * shape.n_heads / shape.n_kv_heads;
    let want = definitions::attention_gradients(shape, &q, &k, &v, &grad);
    for (((name, leaf), want), n) in
        ["dq", "dk", "dv"].into_iter().zip(&leaves).zip(&want).zip([1, n_added, n_added])
    {
        let got = values(leaf.grad(&grads).expect("queries, keys and values have gradients"));
        checks.push(Check::new(
            name,
            &got,
            want,
            2.0 * case.stored(n) * (1.0 + (n as f64).sqrt() / 8.0),
        ));
    }
    checks
}

/// Row b of the queries reads slot `n_rows - b` of `n_rows + 1`.
pub(super) fn slots(shape: &AttentionShape) -> Vec<usize> {
    (0..shape.n_rows()).map(|b| shape.n_rows() - b).collect()
}

/// An empty cache of keys, or of values.
pub(super) fn empty_cache<B: KernelOps>(
    shape: &AttentionShape,
    position_dim: usize,
    dtype: DType,
    device: &Device<B>,
) -> Tensor<B, 4> {
    let mut dims =
        [shape.n_rows() + 1, shape.n_kv_heads, shape.n_keys.next_multiple_of(16), shape.head_dim];
    dims.swap(2, position_dim);
    Tensor::zeros(dims, (device, dtype))
}

pub(super) fn check_decode<B: KernelOps>(
    case: &Case,
    shape: &AttentionShape,
    device: &Device<B>,
) -> Vec<Check> {
    let [q, k, v] = attention_inputs(case, shape);
    let slots = slots(shape);
    let spans: Vec<CacheSpan> = slots
        .iter()
        .zip(&shape.starts)
        .map(|(&slot, start)| CacheSpan {
            slot,
            start: 0,
            n: (start + shape.n_queries).min(shape.n_keys),
        })
        .collect();
    let stored = |x: &[f64], position_dim: usize| {
        let cache = empty_cache::<B>(shape, position_dim, case.dtype, device);
        cache_write(cache, tensor_on(x, shape.keys(), case.dtype, device), &spans, position_dim)
            .swap_dims(2, position_dim)
    };
    let rows = CausalRows { starts: shape.starts.clone(), slots: Some(slots), lengths: None };
    let q_tensor = tensor_on::<B, 4>(&q, shape.queries(), case.dtype, device);
    let y = causal_attention(q_tensor, stored(&k, B::KEY_POSITION_DIM), stored(&v, 2), &rows);
    vec![Check::new(
        "y",
        &values(y),
        &definitions::attention(shape, &q, &k, &v),
        2.0 * case.stored(0),
    )]
}

pub(super) fn check_cache_write<B: KernelOps>(
    case: &Case,
    shape: &AttentionShape,
    device: &Device<B>,
) -> Vec<Check> {
    let (n_rows, n_heads, n_new, head_dim) =
        (shape.n_rows(), shape.n_kv_heads, shape.n_queries, shape.head_dim);
    let slots = slots(shape);
    let n_slots = n_rows + 1;
    let old = scaled(n_slots * n_heads * shape.n_keys * head_dim, 0.1, 2.0, case.dtype);
    let new = scaled(n_rows * n_heads * n_new * head_dim, 0.2, 2.0, case.dtype);
    // Ragged: row b has b new positions fewer, but one.
    let spans: Vec<CacheSpan> = (0..n_rows)
        .map(|b| CacheSpan {
            slot: slots[b],
            start: shape.starts[b],
            n: n_new.saturating_sub(b).max(1),
        })
        .collect();
    let mut want = old.clone();
    for (b, span) in spans.iter().enumerate() {
        for head in 0..n_heads {
            for t in 0..span.n {
                let to = ((span.slot * n_heads + head) * shape.n_keys + span.start + t) * head_dim;
                let from = ((b * n_heads + head) * n_new + t) * head_dim;
                want[to..to + head_dim].copy_from_slice(&new[from..from + head_dim]);
            }
        }
    }
    let dims = [n_slots, n_heads, shape.n_keys, head_dim];
    let written = |position_dim: usize| {
        let cache = tensor_on::<B, 4>(&old, dims, case.dtype, device).swap_dims(2, position_dim);
        let new = tensor_on(&new, [n_rows, n_heads, n_new, head_dim], case.dtype, device);
        values(cache_write(cache, new, &spans, position_dim).swap_dims(2, position_dim))
    };
    // Copies: exact.
    vec![
        Check::new("[.., positions, hd]", &written(2), &rounded(&want, case.dtype), 0.0),
        Check::new("[.., hd, positions]", &written(3), &rounded(&want, case.dtype), 0.0),
    ]
}
