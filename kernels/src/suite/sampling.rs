//! `sample` on a device, beside its definition: the token drawn, where its interval of the
//! cumulative distribution lies, and its log-prob.
use super::{
    Case, Check, Rows,
    numbers::tensor_on,
    vocabulary::logits,
    vocabulary_definitions::{log_prob_and_entropy, softmax},
};
use crate::{
    KernelOps,
    sample::{Draw, RowSampling, read, sample},
};
use burn::{
    backend::Flex,
    tensor::{DType, Device},
};
use std::ops::Range;

/// Share of the probability mass by which a drawn interval may be moved: weights are integers of 32
/// bits, top-p is a fraction of 2^32.
const BORDER: f64 = 1e-6;

/// Greedy, plain, top-k and top-p rows by turns, with random numbers spread over all of 2^64; and
/// the same with nothing left out, which a backend may draw in another way.
pub(super) fn samplings(rows: &Rows) -> [Vec<RowSampling>; 2] {
    let kinds = [
        (0.0, 0, 1.0),
        (rows.temperature, 0, 1.0),
        (rows.temperature, 20, 1.0),
        (rows.temperature, 0, 0.9),
    ];
    let row = |i: usize| {
        let (temperature, top_k, top_p) = kinds[i % kinds.len()];
        // The golden ratio as a fraction of 2^64.
        let bits = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(i as u64 + 1);
        RowSampling { temperature, top_k, top_p, bits }
    };
    let all: Vec<RowSampling> = (0..rows.n_rows).map(row).collect();
    let whole = all.iter().map(|row| RowSampling { top_k: 0, top_p: 1.0, ..*row }).collect();
    [all, whole]
}

pub(super) fn check_sample<B: KernelOps>(
    case: &Case,
    rows: &Rows,
    device: &Device<B>,
) -> Vec<Check> {
    let z = logits(case, rows, rows.n_vocab, 0.0, 1.0);
    let shape = [rows.n_rows, rows.n_vocab];
    let id = |draw: &Option<Draw>| draw.map_or(f64::NAN, |draw| f64::from(draw.id));
    let (mut ids, mut cpu_ids) = (Vec::new(), Vec::new());
    let (mut outside, mut log_probs, mut want) = (Vec::new(), Vec::new(), Vec::new());
    for samplings in samplings(rows) {
        let draws = read(sample(tensor_on::<B, 2>(&z, shape, case.dtype, device), &samplings));
        // The same logits, drawn from on the CPU: no tolerance.
        let on_cpu = tensor_on::<Flex, 2>(&z, shape, DType::F32, &Default::default());
        ids.extend(draws.iter().map(id));
        cpu_ids.extend(read(sample(on_cpu, &samplings)).iter().map(id));
        for ((z, sampling), draw) in z.chunks(rows.n_vocab).zip(&samplings).zip(&draws) {
            let is_drawable = z.iter().all(|z| !z.is_nan());
            match draw {
                Some(Draw { id, log_prob }) if is_drawable => {
                    let temperature =
                        if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
                    let uniform = sampling.bits as f64 / 2f64.powi(64);
                    let Range { start, end } = interval(z, sampling, *id as usize);
                    outside.push((start - uniform).max(uniform - end).max(0.0));
                    log_probs.push(f64::from(*log_prob));
                    want.push(log_prob_and_entropy(z, *id as usize, temperature).0);
                }
                // A row without a distribution must be refused, and no other.
                _ => outside.push(if is_drawable == draw.is_some() { 0.0 } else { f64::INFINITY }),
            }
        }
    }
    vec![
        Check::new("token, as on the CPU", &ids, &cpu_ids, 0.0),
        Check::new("token, its interval", &outside, &vec![0.0; outside.len()], BORDER),
        Check::new("log p", &log_probs, &want, case.rounding(0)),
    ]
}

/// Place of a token in the cumulative distribution of what may be drawn, in vocabulary order;
/// empty and far off for a token that may not.
fn interval(z: &[f64], sampling: &RowSampling, id: usize) -> Range<f64> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    if sampling.temperature == 0.0 {
        return if order[0] == id { 0.0..1.0 } else { f64::INFINITY..f64::INFINITY };
    }
    let p = softmax(z, sampling.temperature);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let reach = sampling.top_p * order.iter().map(|&v| p[v]).sum::<f64>();
    let mut mass = 0.0;
    let n_kept = order.iter().position(|&v| {
        mass += p[v];
        sampling.top_p < 1.0 && mass >= reach
    });
    order.truncate(n_kept.map_or(order.len(), |last| last + 1));
    if !order.contains(&id) {
        return f64::INFINITY..f64::INFINITY;
    }
    let total: f64 = order.iter().map(|&v| p[v]).sum();
    let before: f64 = order.iter().filter(|&&v| v < id).map(|&v| p[v]).sum();
    before / total..(before + p[id]) / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_the_share_of_the_token_behind_those_of_lower_ids() {
        let z: Vec<f64> = [0.1f64, 0.2, 0.3, 0.4].map(f64::ln).into();
        let row = |temperature, top_k, top_p| RowSampling { temperature, top_k, top_p, bits: 0 };
        let close = |got: Range<f64>, want: Range<f64>| {
            (got.start - want.start).abs() < 1e-12 && (got.end - want.end).abs() < 1e-12
        };
        assert!(close(interval(&z, &row(1.0, 0, 1.0), 2), 0.3..0.6));
        assert!(close(interval(&z, &row(1.0, 2, 1.0), 3), 3.0 / 7.0..1.0));
        assert!(close(interval(&z, &row(1.0, 0, 0.8), 1), 0.0..2.0 / 9.0));
        assert_eq!(interval(&z, &row(1.0, 2, 1.0), 1).start, f64::INFINITY);
        assert_eq!(interval(&z, &row(0.0, 0, 1.0), 3), 0.0..1.0);
    }
}
