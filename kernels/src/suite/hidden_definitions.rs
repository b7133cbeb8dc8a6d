//! The operations on hidden states, queries and keys as their documentation says them, in f64:
//! values, and gradients of the sum of outputs times `grad`.
//!
//! The tests hold every gradient to finite differences of the values.

/// x `[N, D]`, weight `[D]` -> `[N, D]`
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let r = rms(x, eps);
        x.iter().zip(weight).map(|(x_d, w)| x_d / r * w).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

fn rms(x: &[f64], eps: f64) -> f64 {
    (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

/// (dx, dw). With y = w x / r: dx = w g / r - x (sum_d w_d g_d x_d) / (D r^3).
pub fn rms_norm_gradients(x: &[f64], weight: &[f64], grad: &[f64], eps: f64) -> [Vec<f64>; 2] {
    let d = weight.len();
    let (mut dx, mut dw) = (Vec::with_capacity(x.len()), vec![0.0; d]);
    for (x, g) in x.chunks(d).zip(grad.chunks(d)) {
        let r = rms(x, eps);
        let along: f64 = (0..d).map(|i| weight[i] * g[i] * x[i]).sum();
        dx.extend((0..d).map(|i| weight[i] * g[i] / r - x[i] * along / (d as f64 * r.powi(3))));
        (0..d).for_each(|i| dw[i] += g[i] * x[i] / r);
    }
    [dx, dw]
}

/// x [N, heads · hd] turned by the angles [P, hd/2] (`direction` 1), or back (-1).
pub fn rotary(x: &[f64], angles: &[f64], n_heads: usize, half: usize, direction: f64) -> Vec<f64> {
    let n_positions = angles.len() / half;
    let mut out = x.to_vec();
    for pair in 0..x.len() / 2 {
        let (i, at) = (pair % half, pair / half * 2 * half + pair % half);
        let (sin, cos) =
            (direction * angles[pair / half / n_heads % n_positions * half + i]).sin_cos();
        out[at] = x[at] * cos - x[at + half] * sin;
        out[at + half] = x[at + half] * cos + x[at] * sin;
    }
    out
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// silu(gate) · up
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g * logistic(*g) * u).collect()
}

/// (dgate, dup)
pub fn swiglu_gradients(gate: &[f64], up: &[f64], grad: &[f64]) -> [Vec<f64>; 2] {
    let slope = |g: f64| logistic(g) + g * logistic(g) * logistic(-g);
    let dgate = gate.iter().zip(up).zip(grad).map(|((g, u), dy)| dy * u * slope(*g)).collect();
    let dup = gate.iter().zip(grad).map(|(g, dy)| dy * g * logistic(*g)).collect();
    [dgate, dup]
}

/// The largest |x| that [`erf_gelu`] is defined for here.
pub const GELU_RANGE: f64 = 5.0;

/// x Phi(x), for |x| <= [`GELU_RANGE`].
pub fn erf_gelu(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x * normal_share(*x)).collect()
}

/// dx = grad (Phi(x) + x phi(x))
pub fn erf_gelu_gradient(x: &[f64], grad: &[f64]) -> Vec<f64> {
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    x.iter().zip(grad).map(|(x, g)| g * (normal_share(*x) + x * density(*x))).collect()
}

/// Phi(x) = (1 + erf(x / sqrt 2)) / 2, erf by its Taylor series: 120 terms hold 1e-12 up to 3.8.
fn normal_share(x: f64) -> f64 {
    let x = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    0.5 + sum / std::f64::consts::PI.sqrt()
}

/// Which queries, keys and heads an attention has; row b of the keys is that of row b of the
/// queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// `[B]` positions before the first query of each row.
    pub starts: Vec<usize>,
    /// `[B]` keys that each row has; `None`: all.
    pub lengths: Option<Vec<usize>>,
    /// H
    pub n_heads: usize,
    /// K
    pub n_kv_heads: usize,
    /// Tq
    pub n_queries: usize,
    /// Tk
    pub n_keys: usize,
    /// hd
    pub head_dim: usize,
}

impl AttentionShape {
    /// B
    pub fn n_rows(&self) -> usize {
        self.starts.len()
    }

    /// `[B, H, Tq, hd]`
    pub fn queries(&self) -> [usize; 4] {
        [self.n_rows(), self.n_heads, self.n_queries, self.head_dim]
    }

    /// `[B, K, Tk, hd]`
    pub fn keys(&self) -> [usize; 4] {
        [self.n_rows(), self.n_kv_heads, self.n_keys, self.head_dim]
    }

    /// Keys that query `t` of row `b` sees.
    pub fn n_seen(&self, b: usize, t: usize) -> usize {
        let n_keys = self.lengths.as_ref().map_or(self.n_keys, |lengths| lengths[b]);
        (self.starts[b] + t + 1).min(n_keys)
    }

    /// Calls `f` with the query's number, the first element of its row's keys and how many it sees,
    /// for every query vector.
    fn for_each_query(&self, mut f: impl FnMut(usize, usize, usize)) {
        let group = self.n_heads / self.n_kv_heads;
        for b in 0..self.n_rows() {
            for h in 0..self.n_heads {
                let keys = (b * self.n_kv_heads + h / group) * self.n_keys * self.head_dim;
                for t in 0..self.n_queries {
                    f((b * self.n_heads + h) * self.n_queries + t, keys, self.n_seen(b, t));
                }
            }
        }
    }

    /// softmax of the scaled products of query `q` with the first `n` of `keys`.
    fn probabilities(&self, q: &[f64], keys: &[f64], n: usize) -> Vec<f64> {
        let scores: Vec<f64> = keys
            .chunks(self.head_dim)
            .take(n)
            .map(|k| dot(q, k) / (self.head_dim as f64).sqrt())
            .collect();
        super::vocabulary_definitions::softmax(&scores, 1.0)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

/// `[B, H, Tq, hd]`
pub fn attention(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let hd = shape.head_dim;
    let mut out = vec![0.0; q.len()];
    shape.for_each_query(|at, keys, n| {
        let p = shape.probabilities(&q[at * hd..][..hd], &k[keys..], n);
        for (s, p) in p.iter().enumerate() {
            add_scaled(&mut out[at * hd..][..hd], *p, &v[keys + s * hd..][..hd]);
        }
    });
    out
}

/// (dq, dk, dv)
pub fn attention_gradients(
    shape: &AttentionShape,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    grad: &[f64],
) -> [Vec<f64>; 3] {
    let hd = shape.head_dim;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    shape.for_each_query(|at, keys, n| {
        let (query, go) = (&q[at * hd..][..hd], &grad[at * hd..][..hd]);
        let p = shape.probabilities(query, &k[keys..], n);
        let dp: Vec<f64> = (0..n).map(|s| dot(go, &v[keys + s * hd..][..hd])).collect();
        let mean = dot(&p, &dp);
        for (s, (p, dp)) in p.iter().zip(&dp).enumerate() {
            let key = keys + s * hd..keys + (s + 1) * hd;
            let ds = p * (dp - mean) / (hd as f64).sqrt();
            add_scaled(&mut dv[key.clone()], *p, go);
            add_scaled(&mut dk[key.clone()], ds, query);
            add_scaled(&mut dq[at * hd..][..hd], ds, &k[key]);
        }
    });
    [dq, dk, dv]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::numbers::{numbers, worst_error};
    use crate::testing::differences;

    fn inputs<const N: usize>(sizes: [usize; N]) -> [Vec<f64>; N] {
        let mut salt = 0.0;
        sizes.map(|n| {
            salt += 0.1;
            numbers(n, salt).iter().map(|x| 4.0 * x).collect()
        })
    }

    /// Holds a gradient to the differences of sum(f(x) · grad).
    fn assert_gradient(
        got: &[f64],
        x: &[f64],
        grad: &[f64],
        f: impl Fn(&[f64]) -> Vec<f64>,
        what: &str,
    ) {
        let at: Vec<usize> = (0..x.len()).collect();
        let want = differences(x, &at, |moved| dot(&f(moved), grad));
        let worst = worst_error(got, &want);
        assert!(worst < 1e-8, "{what}: {worst}");
    }

    #[test]
    fn gradients_of_hidden_states_are_finite_differences() {
        let [x, w, up, grad] = inputs([21, 7, 21, 21]);
        let [dx, dw] = rms_norm_gradients(&x, &w, &grad, 1e-2);
        assert_gradient(&dx, &x, &grad, |x| rms_norm(x, &w, 1e-2), "dx of the norm");
        assert_gradient(&dw, &w, &grad, |w| rms_norm(&x, w, 1e-2), "dw of the norm");
        let [dgate, dup] = swiglu_gradients(&x, &up, &grad);
        assert_gradient(&dgate, &x, &grad, |x| swiglu(x, &up), "d gate");
        assert_gradient(&dup, &up, &grad, |up| swiglu(&x, up), "d up");
        assert_gradient(&erf_gelu_gradient(&x, &grad), &x, &grad, erf_gelu, "d gelu");
        let [x, angles, grad] = inputs([24, 4, 24]);
        assert_gradient(
            &rotary(&grad, &angles, 2, 2, -1.0),
            &x,
            &grad,
            |x| rotary(x, &angles, 2, 2, 1.0),
            "d rotary",
        );
    }

    #[test]
    fn gradients_of_attention_are_finite_differences() {
        let causal = AttentionShape {
            starts: vec![0, 0],
            lengths: None,
            n_heads: 4,
            n_kv_heads: 2,
            n_queries: 3,
            n_keys: 3,
            head_dim: 4,
        };
        let shifted = AttentionShape { starts: vec![1, 3], n_keys: 5, ..causal.clone() };
        let whole =
            AttentionShape { starts: vec![2, 3], lengths: Some(vec![2, 3]), ..causal.clone() };
        for shape in [causal, shifted, whole] {
            let n = |shape: [usize; 4]| shape.iter().product();
            let [q, k, v, grad] =
                inputs([n(shape.queries()), n(shape.keys()), n(shape.keys()), n(shape.queries())]);
            let [dq, dk, dv] = attention_gradients(&shape, &q, &k, &v, &grad);
            assert_gradient(&dq, &q, &grad, |q| attention(&shape, q, &k, &v), "dq");
            assert_gradient(&dk, &k, &grad, |k| attention(&shape, &q, k, &v), "dk");
            assert_gradient(&dv, &v, &grad, |v| attention(&shape, &q, &k, v), "dv");
        }
    }

    #[test]
    fn a_query_that_sees_one_key_gets_its_value() {
        let shape = AttentionShape {
            starts: vec![0],
            lengths: None,
            n_heads: 1,
            n_kv_heads: 1,
            n_queries: 2,
            n_keys: 2,
            head_dim: 2,
        };
        let out =
            attention(&shape, &[1.0, 2.0, 0.0, 0.0], &[1.0, 1.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        assert_eq!(out, [5.0, 6.0, 6.0, 7.0]);
    }

    #[test]
    fn gelu_has_its_known_values() {
        // Phi(1) = 0.841344746068543, Phi(-3) = 0.00134989803163009
        assert!(
            worst_error(
                &erf_gelu(&[1.0, -3.0, 0.0]),
                &[0.841_344_746_068_543, -0.004_049_694_094_890_27, 0.0]
            ) < 1e-14
        );
    }
}
