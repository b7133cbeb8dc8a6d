//! The operations over the vocabulary as their documentation says them, in f64 and row by row: what
//! every backend is compared with.
//!
//! Gradients are the chain rule through p = softmax(z), written for each divergence from its own
//! definition (`s dD/ds` below), not from the forms the kernels use; the tests hold them to finite
//! differences of the values.
//!
//! ```text
//! d D / d z_v = a_v - s_v sum_u a_u        a_v = s_v dD/ds_v
//! ```
use crate::log_softmax_kl::Divergence;
use rayon::prelude::*;

/// All divergences, with inner and extreme parameters: what every test runs over.
pub const DIVERGENCES: [Divergence; 14] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::SkewForward { alpha: 0.0 },
    Divergence::SkewForward { alpha: 0.1 },
    Divergence::SkewForward { alpha: 1.0 },
    Divergence::SkewReverse { alpha: 0.3 },
    Divergence::SkewReverse { alpha: 1.0 },
    Divergence::TotalVariation,
    Divergence::SymmetricKl { lambda: 0.9 },
    Divergence::GeneralisedJsd { beta: 0.0 },
    Divergence::GeneralisedJsd { beta: 0.3 },
    Divergence::GeneralisedJsd { beta: 1.0 },
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

/// -sum p ln p
pub fn entropy(p: &[f64]) -> f64 {
    cross_entropy(p, p)
}

/// (log p(label), H) of one row.
pub fn log_prob_and_entropy(logits: &[f64], label: usize, temperature: f64) -> (f64, f64) {
    let p = softmax(logits, temperature);
    (p[label].ln(), entropy(&p))
}

/// A divergence of one row as its documentation says it. `held` are the student's logits where they
/// are a constant (TAID's target).
pub fn divergence(
    student: &[f64],
    teacher: &[f64],
    held: &[f64],
    divergence: Divergence,
    temperature: f64,
) -> f64 {
    let shared = student.len().min(teacher.len());
    let (s, t) =
        (softmax(&student[..shared], temperature), softmax(&teacher[..shared], temperature));
    let mix = |weight: f64| -> Vec<f64> {
        s.iter().zip(&t).map(|(s, t)| weight * s + (1.0 - weight) * t).collect()
    };
    match divergence {
        Divergence::ForwardKl => kl(&t, &s),
        Divergence::ReverseKl => kl(&s, &t),
        Divergence::SkewForward { alpha } => cross_entropy(&t, &mix(1.0 - alpha)),
        Divergence::SkewReverse { alpha } => kl(&s, &mix(alpha)),
        Divergence::TotalVariation => {
            0.5 * s.iter().zip(&t).map(|(s, t)| (s - t).abs()).sum::<f64>()
        }
        Divergence::SymmetricKl { lambda } => {
            (1.0 - lambda) * cross_entropy(&t, &s) + lambda * kl(&s, &t)
        }
        Divergence::GeneralisedJsd { beta: 0.0 } => kl(&t, &s),
        Divergence::GeneralisedJsd { beta: 1.0 } => kl(&s, &t),
        Divergence::GeneralisedJsd { beta } => {
            beta * kl(&t, &mix(1.0 - beta)) + (1.0 - beta) * kl(&s, &mix(1.0 - beta))
        }
        Divergence::Taid { .. } => {
            cross_entropy(&taid_target(&held[..shared], teacher, divergence, temperature), &s)
        }
    }
}

/// softmax of (1 - t) · student + t · teacher
fn taid_target(
    held: &[f64],
    teacher: &[f64],
    divergence: Divergence,
    temperature: f64,
) -> Vec<f64> {
    let Divergence::Taid { t } = divergence else { return Vec::new() };
    // A teacher's weight of 1 leaves nothing of the student, not even 0 · -inf.
    let mixed =
        held.iter().zip(teacher).map(|(s, z)| if t == 1.0 { *z } else { (1.0 - t) * s + t * z });
    softmax(&mixed.collect::<Vec<_>>(), temperature)
}

/// a_v = s_v dD/ds_v of one entry with probabilities s and t; `q` is that of TAID's target.
fn slope(divergence: Divergence, s: f64, t: f64, q: f64) -> f64 {
    // 0 ln 0 = 0, and a mixture of nothing has no share.
    let x_ln = |x: f64, y: f64| if x == 0.0 { 0.0 } else { x * (x / y).ln() };
    let share = |product: f64, mixture: f64| if product == 0.0 { 0.0 } else { product / mixture };
    let mix = |weight: f64| weight * s + (1.0 - weight) * t;
    let jensen_shannon = |weight: f64, of_student: f64, of_teacher: f64| {
        let m = mix(weight);
        of_student * (x_ln(s, m) + s - weight * share(s * s, m))
            - of_teacher * weight * share(s * t, m)
    };
    match divergence {
        Divergence::ForwardKl => -t,
        Divergence::ReverseKl => x_ln(s, t) + s,
        Divergence::SkewForward { alpha } => -(1.0 - alpha) * share(s * t, mix(1.0 - alpha)),
        Divergence::SkewReverse { alpha } => jensen_shannon(alpha, 1.0, 0.0),
        Divergence::TotalVariation => 0.5 * s * if s == t { 0.0 } else { (s - t).signum() },
        Divergence::SymmetricKl { lambda } => -(1.0 - lambda) * t + lambda * (x_ln(s, t) + s),
        Divergence::GeneralisedJsd { beta: 0.0 } => -t,
        Divergence::GeneralisedJsd { beta: 1.0 } => x_ln(s, t) + s,
        Divergence::GeneralisedJsd { beta } => jensen_shannon(1.0 - beta, 1.0 - beta, beta),
        Divergence::Taid { .. } => -q,
    }
}

/// A teacher's row and the distance from it.
pub type Distance<'a> = (&'a [f64], Divergence);

/// A gradient and, entry by entry, the sum of its terms' absolute values: an entry is a difference
/// of terms that may be much larger than it, and those are what roundings are relative to.
pub struct RowGradient {
    /// The gradient, `[V]`.
    pub dz: Vec<f64>,
    /// Sum of the absolute values of its terms, `[V]`.
    pub terms: Vec<f64>,
}

/// Gradient of w_0 log p(label) + w_1 H + w_2 D with respect to the student's logits. Without a
/// teacher there is no D.
pub fn row_gradient(
    student: &[f64],
    distance: Option<Distance<'_>>,
    label: usize,
    weights: [f64; 3],
    temperature: f64,
) -> RowGradient {
    let p = softmax(student, temperature);
    let h = entropy(&p);
    let of_one = |(v, p): (usize, &f64)| {
        let ln_p = if *p == 0.0 { 0.0 } else { p.ln() };
        let is_label = if v == label { 1.0 } else { 0.0 };
        let dz = weights[0] * (is_label - p) - weights[1] * p * (ln_p + h);
        (dz, weights[0].abs() * (is_label + p) + weights[1].abs() * p * (ln_p.abs() + h))
    };
    let (mut dz, mut terms): (Vec<f64>, Vec<f64>) = p.iter().enumerate().map(of_one).unzip();
    if let Some((teacher, divergence)) = distance {
        let shared = student.len().min(teacher.len());
        let (s, t) =
            (softmax(&student[..shared], temperature), softmax(&teacher[..shared], temperature));
        let mut q = taid_target(&student[..shared], teacher, divergence, temperature);
        q.resize(shared, 0.0);
        let a: Vec<f64> = (0..shared).map(|v| slope(divergence, s[v], t[v], q[v])).collect();
        let total: f64 = a.iter().sum();
        // Of every form of a_v: the probabilities it is made of, and the logarithm of their ratio
        // (a mixture's is no larger).
        let ratio = |s: f64, t: f64| if s == 0.0 { 0.0 } else { s * (s / t).ln().abs() };
        let parts: Vec<f64> = (0..shared).map(|v| s[v] + t[v] + q[v] + ratio(s[v], t[v])).collect();
        let all_parts: f64 = parts.iter().sum();
        for v in 0..shared {
            dz[v] += weights[2] * (a[v] - s[v] * total);
            terms[v] += weights[2].abs() * (parts[v] + s[v] * all_parts);
        }
    }
    let over_temperature = |x: Vec<f64>| x.into_iter().map(|x| x / temperature).collect();
    RowGradient { dz: over_temperature(dz), terms: over_temperature(terms) }
}

/// a `[N, K]` times b `[M, K]` transposed: `[N, M]`, row-major.
pub fn product_of_rows(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    a.chunks(k).flat_map(|a| b.par_chunks(k).map(|b| dot(a, b)).collect::<Vec<_>>()).collect()
}

/// `[N, M]` -> `[M, N]`
pub fn transposed(a: &[f64], m: usize) -> Vec<f64> {
    (0..m).flat_map(|j| a.iter().skip(j).step_by(m).copied()).collect()
}

/// (d hidden `[N, D]`, d weight `[V, D]`) given d logits `[N, V]`.
pub fn head_gradients(dz: &[f64], hidden: &[f64], weight: &[f64], d: usize) -> [Vec<f64>; 2] {
    let n = hidden.len() / d;
    let v = dz.len() / n;
    let combine = |factors: &mut dyn Iterator<Item = f64>, rows: &[f64]| {
        let mut sum = vec![0.0; d];
        for (factor, row) in factors.zip(rows.chunks(d)) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
        }
        sum
    };
    let d_hidden =
        dz.par_chunks(v).flat_map_iter(|dz| combine(&mut dz.iter().copied(), weight)).collect();
    let d_weight = (0..v)
        .into_par_iter()
        .flat_map_iter(|at| combine(&mut dz.iter().skip(at).step_by(v).copied(), hidden))
        .collect();
    [d_hidden, d_weight]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::numbers::{numbers, worst_error};
    use crate::testing::differences;

    #[test]
    fn the_gradient_of_a_row_is_its_finite_differences() {
        let logits =
            |n: usize, salt: f64| numbers(n, salt).iter().map(|x| 8.0 * x).collect::<Vec<_>>();
        for (n_student, n_teacher) in [(1, 2), (7, 5), (37, 41)] {
            let (student, teacher) = (logits(n_student, 0.0), logits(n_teacher, 0.11));
            let (label, weights, temperature) = (n_student / 2, [0.7, -0.4, 1.3], 0.7);
            let at: Vec<usize> = (0..n_student).collect();
            for d in DIVERGENCES {
                let want = differences(&student, &at, |moved| {
                    let (log_p, h) = log_prob_and_entropy(moved, label, temperature);
                    weights[0] * log_p
                        + weights[1] * h
                        + weights[2] * divergence(moved, &teacher, &student, d, temperature)
                });
                let got = row_gradient(&student, Some((&teacher, d)), label, weights, temperature);
                assert!(
                    worst_error(&got.dz, &want) < 1e-8,
                    "{d:?}: {:?} instead of {want:?}",
                    got.dz
                );
                assert!(
                    got.dz.iter().zip(&got.terms).all(|(dz, terms)| dz.abs() <= *terms),
                    "{d:?}: {:?} of {:?}",
                    got.dz,
                    got.terms
                );
            }
        }
    }

    #[test]
    fn the_gradients_of_a_head_are_products() {
        // dz [2, 3], hidden [2, 2], weight [3, 2]
        let (dz, hidden, weight) =
            ([1.0, 0.0, 2.0, 0.0, -1.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let [d_hidden, d_weight] = head_gradients(&dz, &hidden, &weight, 2);
        assert_eq!(d_hidden, [3.0, 2.0, 1.0, 0.0]);
        assert_eq!(d_weight, [1.0, 2.0, -3.0, -4.0, 5.0, 8.0]);
        assert_eq!(product_of_rows(&hidden, &weight, 2), [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
    }
}
