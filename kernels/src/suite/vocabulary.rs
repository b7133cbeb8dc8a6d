//! The operations over the vocabulary on a device, beside their definitions.
use super::{
    Case, Check, Fill, Rows, Upstream,
    numbers::{epsilon, numbers, rounded, scaled, tensor_on, values},
    vocabulary_definitions::{
        divergence, head_gradients, log_prob_and_entropy, product_of_rows, row_gradient, transposed,
    },
};
use crate::{
    KernelOps, linear_kl,
    linear_log_probs::{self, HeadLayout, LinearHead},
    log_probs::log_probs,
    log_softmax_kl::{Divergence, log_softmax_kl},
    vocabulary::budget::are_kept,
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use rayon::prelude::*;

/// Logits of -inf: the first eighth of the vocabulary, where no label lies.
fn n_impossible(rows: &Rows) -> usize {
    rows.n_vocab.min(rows.n_teacher_vocab) / 8
}

fn labels(rows: &Rows) -> Vec<usize> {
    let first = n_impossible(rows);
    (0..rows.n_rows)
        .map(|i| first + (i * 611 + rows.n_vocab - 1) % (rows.n_vocab - first))
        .collect()
}

fn label_tensor<B: KernelOps>(labels: &[usize], device: &Device<B>) -> Tensor<B, 1, Int> {
    Tensor::from_data(
        TensorData::new(
            labels.iter().map(|&label| label as i64).collect::<Vec<_>>(),
            [labels.len()],
        ),
        device,
    )
}

/// Weights of log p, H and D of each row in the loss.
fn upstream(case: &Case, rows: &Rows) -> [Vec<f64>; 3] {
    [0.0, 0.2, 0.4].map(|salt| match case.upstream {
        Upstream::Every => rounded(&numbers(rows.n_rows, salt), DType::F32),
        Upstream::None => vec![0.0; rows.n_rows],
    })
}

/// Logits of one model, row-major; `sign` is the direction in which they may be far.
pub(super) fn logits(case: &Case, rows: &Rows, n_vocab: usize, salt: f64, sign: f64) -> Vec<f64> {
    let mut logits = scaled(rows.n_rows * n_vocab, salt, 8.0, case.dtype);
    match case.fill {
        Fill::Ordinary => {}
        Fill::Far(by) => {
            logits = rounded(&logits.iter().map(|z| z + sign * by).collect::<Vec<_>>(), case.dtype)
        }
        Fill::Impossible => logits
            .chunks_mut(n_vocab)
            .for_each(|row| row[..n_impossible(rows)].fill(f64::NEG_INFINITY)),
        // NaN in the teacher makes everything of the row NaN as well, which is more than the
        // definition says.
        Fill::Broken if sign > 0.0 => logits[rows.n_rows / 2 * n_vocab] = f64::NAN,
        Fill::Broken => {}
    }
    logits
}

/// Results of the definition for all rows: log p, H, D (where there is a teacher), d logits
/// `[N, V]` and the terms these are made of.
struct Wanted {
    results: [Vec<f64>; 3],
    dz: Vec<f64>,
    terms: Vec<f64>,
}

fn wanted(
    rows: &Rows,
    student: &[f64],
    teacher: Option<(&[f64], Divergence)>,
    labels: &[usize],
    weights: &[Vec<f64>; 3],
) -> Wanted {
    let one = |i: usize| {
        let z = &student[i * rows.n_vocab..][..rows.n_vocab];
        let (log_p, entropy) = log_prob_and_entropy(z, labels[i], rows.temperature);
        let distance = teacher
            .map(|(teacher, d)| (&teacher[i * rows.n_teacher_vocab..][..rows.n_teacher_vocab], d));
        let value = distance.map_or(0.0, |(t, d)| divergence(z, t, z, d, rows.temperature));
        let row_weights = [0, 1, 2].map(|k| weights[k][i]);
        (
            [log_p, entropy, value],
            row_gradient(z, distance, labels[i], row_weights, rows.temperature),
        )
    };
    let all: Vec<_> = (0..rows.n_rows).into_par_iter().map(one).collect();
    let results = [0, 1, 2].map(|k| all.iter().map(|row| row.0[k]).collect());
    let (mut dz, mut terms) = (Vec::new(), Vec::new());
    for (_, gradient) in all {
        dz.extend(gradient.dz);
        terms.extend(gradient.terms);
    }
    Wanted { results, dz, terms }
}

/// A far target is a sum of far logits: each is rounded to f32 thrice on the way.
fn far_target(case: &Case, d: Option<Divergence>) -> f64 {
    match (case.fill, d) {
        (Fill::Far(by), Some(Divergence::Taid { .. })) => 2.0 * epsilon(DType::F32) * by.abs(),
        _ => 0.0,
    }
}

/// Loss of the results' columns, weighted.
fn weighted<B: KernelOps, const K: usize>(
    columns: [Tensor<B, 1>; K],
    weights: &[Vec<f64>; 3],
    device: &Device<B>,
) -> Tensor<B, 1> {
    let terms = columns.into_iter().zip(weights).map(|(column, weights)| {
        let n = weights.len();
        column * tensor_on::<B, 1>(weights, [n], DType::F32, device)
    });
    terms.reduce(|a, b| a + b).expect("at least one column").sum()
}

pub(super) fn check_log_probs<B: KernelOps>(
    case: &Case,
    rows: &Rows,
    device: &Device<B>,
) -> Vec<Check> {
    let (z, labels, weights) =
        (logits(case, rows, rows.n_vocab, 0.0, 1.0), labels(rows), upstream(case, rows));
    let want = wanted(rows, &z, None, &labels, &weights);
    let input = tensor_on::<Autodiff<B>, 2>(&z, [rows.n_rows, rows.n_vocab], case.dtype, device)
        .require_grad();
    let (log_p, entropy) =
        log_probs(input.clone(), label_tensor(&labels, device), rows.temperature);
    let results = [log_p.clone(), entropy.clone()].map(|column| values(column.detach()));
    let grads = weighted([log_p, entropy], &weights, device).backward();
    let dz = values(input.grad(&grads).expect("the logits have a gradient"));
    vec![
        Check::new("log p", &results[0], &want.results[0], case.rounding(0)),
        Check::new("entropy", &results[1], &want.results[1], case.rounding(0)),
        Check::within("d logits", &dz, &want.dz, &case.allowed(&want.dz, &want.terms, 0.0)),
    ]
}

pub(super) fn check_divergence<B: KernelOps>(
    case: &Case,
    rows: &Rows,
    d: Divergence,
    device: &Device<B>,
) -> Vec<Check> {
    let (student, teacher) = (
        logits(case, rows, rows.n_vocab, 0.0, 1.0),
        logits(case, rows, rows.n_teacher_vocab, 0.11, -1.0),
    );
    let (labels, weights) = (labels(rows), upstream(case, rows));
    let want = wanted(rows, &student, Some((&teacher, d)), &labels, &weights);
    let input =
        tensor_on::<Autodiff<B>, 2>(&student, [rows.n_rows, rows.n_vocab], case.dtype, device)
            .require_grad();
    let teacher = tensor_on(&teacher, [rows.n_rows, rows.n_teacher_vocab], case.dtype, device);
    let got =
        log_softmax_kl(input.clone(), teacher, label_tensor(&labels, device), d, rows.temperature);
    let columns = [got.log_probs, got.entropy, got.divergence];
    let results = columns.clone().map(|column| values(column.detach()));
    let grads = weighted(columns, &weights, device).backward();
    let dz = values(input.grad(&grads).expect("the logits have a gradient"));
    let far = far_target(case, Some(d));
    vec![
        Check::new("log p", &results[0], &want.results[0], case.rounding(0)),
        Check::new("entropy", &results[1], &want.results[1], case.rounding(0)),
        Check::new("divergence", &results[2], &want.results[2], case.rounding(0) + far),
        Check::within("d logits", &dz, &want.dz, &case.allowed(&want.dz, &want.terms, far)),
    ]
}

/// Hidden states and head of one model on the host.
struct Head {
    width: usize,
    n_vocab: usize,
    /// `[N, D]`
    hidden: Vec<f64>,
    /// `[V, D]`
    weight: Vec<f64>,
}

impl Head {
    fn new(case: &Case, n_rows: usize, width: usize, n_vocab: usize, salt: f64, sign: f64) -> Self {
        let mut hidden = scaled(n_rows * width, salt, 4.0, case.dtype);
        // Logits of order 2 whatever the width.
        let mut weight =
            scaled(n_vocab * width, salt + 0.05, 6.0 / (width as f64).sqrt(), case.dtype);
        match case.fill {
            Fill::Far(by) => {
                // One feature with weight 1 everywhere shifts all logits of a row by the same
                // amount.
                weight.iter_mut().skip(width - 1).step_by(width).for_each(|w| *w = 1.0);
                hidden.iter_mut().skip(width - 1).step_by(width).for_each(|h| *h = sign * by);
                hidden = rounded(&hidden, case.dtype);
            }
            Fill::Broken if sign > 0.0 => hidden[n_rows / 2 * width] = f64::NAN,
            _ => {}
        }
        Self { width, n_vocab, hidden, weight }
    }

    fn logits(&self) -> Vec<f64> {
        product_of_rows(&self.hidden, &self.weight, self.width)
    }

    fn on<B: KernelOps>(
        &self,
        layout: HeadLayout,
        dtype: DType,
        device: &Device<B>,
    ) -> LinearHead<B> {
        let weight = match layout {
            HeadLayout::VocabRows => {
                tensor_on(&self.weight, [self.n_vocab, self.width], dtype, device)
            }
            HeadLayout::VocabColumns => tensor_on(
                &transposed(&self.weight, self.width),
                [self.width, self.n_vocab],
                dtype,
                device,
            ),
        };
        LinearHead::new(
            tensor_on(&self.hidden, [self.hidden.len() / self.width, self.width], dtype, device),
            weight,
            layout,
        )
    }
}

/// Error of an f32 sum over the vocabulary, number by number, on the case's own numbers, at
/// worst.
///
/// Whole logits make one product over V, which a device may add up like this. At V = 128,256 it
/// loses more than a random walk of roundings would: evenly spread numbers do not round
/// independently. Another order of the same sum may lose as much again.
fn error_of_plain_sums(dz: &[f64], weight: &[f64], width: usize, d_hidden: &[f64]) -> f64 {
    let n_vocab = weight.len() / width;
    let plain = |dz: &[f64]| {
        let mut sums = vec![0.0f32; width];
        for (dz, row) in dz.iter().zip(weight.chunks(width)) {
            sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += *dz as f32 * *w as f32);
        }
        sums.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let sums: Vec<f64> = dz.par_chunks(n_vocab).flat_map_iter(plain).collect();
    // A NaN on both sides is no error; `max` passes it over.
    let error = sums.iter().zip(d_hidden).map(|(sum, want)| (sum - want).abs()).fold(0.0, f64::max);
    assert!(
        error.is_finite(),
        "an f32 sum overflows where the definition does not: no tolerance can be had from it"
    );
    error
}

/// A logit is a sum of products: a far one is rounded as a far number is.
fn far_product(case: &Case) -> f64 {
    if let Fill::Far(by) = case.fill { 4.0 * epsilon(DType::F32) * by.abs() } else { 0.0 }
}

/// 16-bit factors lose digits where a device multiplies in 16 bits.
fn narrow_product(case: &Case) -> f64 {
    if case.dtype == DType::F32 { 0.0 } else { 2.0 * epsilon(case.dtype) }
}

/// d hidden `[N, D]` and d weight `[V, D]`, and what each entry of them may be off by.
fn head_wanted(case: &Case, want: &Wanted, student: &Head) -> ([Vec<f64>; 2], [Vec<f64>; 2]) {
    let gradients = head_gradients(&want.dz, &student.hidden, &student.weight, student.width);
    let [hidden, weight] =
        [&student.hidden, &student.weight].map(|x| x.iter().map(|x| x.abs()).collect::<Vec<_>>());
    let terms = head_gradients(&want.terms, &hidden, &weight, student.width);
    // The gradient of the logits goes into the products in the case's type.
    let of_least =
        head_gradients(&vec![case.least(); want.dz.len()], &hidden, &weight, student.width);
    let extra = far_product(case) + narrow_product(case);
    let allowed = [0, 1].map(|k| {
        let allowed = case.allowed(&gradients[k], &terms[k], extra);
        allowed.iter().zip(&of_least[k]).map(|(allowed, least)| allowed + least).collect()
    });
    (gradients, allowed)
}

/// Comparison, once as usual and once where the tiles are asked for by name.
const WHATEVER: [&str; 5] = ["log p", "entropy", "divergence", "d hidden", "d weight"];
const BY_TILES: [&str; 5] = [
    "log p by tiles",
    "entropy by tiles",
    "divergence by tiles",
    "d hidden by tiles",
    "d weight by tiles",
];

/// `linear_log_probs`, and with a divergence `linear_kl`.
pub(super) fn check_linear<B: KernelOps>(
    case: &Case,
    rows: &Rows,
    layout: HeadLayout,
    d: Option<Divergence>,
    device: &Device<B>,
) -> Vec<Check> {
    let student = Head::new(case, rows.n_rows, rows.width, rows.n_vocab, 0.0, 1.0);
    // Another width, so that nothing depends on their being equal.
    let teacher = d.map(|d| {
        (Head::new(case, rows.n_rows, rows.width + 2, rows.n_teacher_vocab, 0.11, -1.0), d)
    });
    let (labels, weights) = (labels(rows), upstream(case, rows));
    let teacher_logits = teacher.as_ref().map(|(teacher, d)| (teacher.logits(), *d));
    let want = wanted(
        rows,
        &student.logits(),
        teacher_logits.as_ref().map(|(z, d)| (&z[..], *d)),
        &labels,
        &weights,
    );
    let ([d_hidden, d_weight], [allowed_hidden, allowed_weight]) =
        head_wanted(case, &want, &student);
    let (far, narrow) = (far_product(case), narrow_product(case));
    let mut checks = Vec::new();
    // Logits that fit a tile are kept whole; the tiles must hold for them as well.
    for (is_tiled, names) in [(false, WHATEVER), (true, BY_TILES)] {
        let head = student.on::<Autodiff<B>>(layout, case.dtype, device);
        let head = LinearHead::new(head.hidden.require_grad(), head.weight.require_grad(), layout);
        if is_tiled && !are_kept(&head) {
            continue;
        }
        let teacher = teacher
            .as_ref()
            .map(|(teacher, d)| (teacher.on(HeadLayout::VocabRows, case.dtype, device), *d));
        let label = label_tensor(&labels, device);
        let (results, grads) = match teacher {
            None => {
                let op = if is_tiled {
                    linear_log_probs::by_tiles
                } else {
                    linear_log_probs::linear_log_probs
                };
                let (log_p, entropy) = op(head.clone(), label, rows.temperature);
                let results = vec![log_p.clone(), entropy.clone()];
                (results, weighted([log_p, entropy], &weights, device).backward())
            }
            Some((teacher, d)) => {
                let op = if is_tiled { linear_kl::by_tiles } else { linear_kl::linear_kl };
                let got = op(head.clone(), teacher, label, d, rows.temperature);
                let columns = [got.log_probs, got.entropy, got.divergence];
                (columns.to_vec(), weighted(columns, &weights, device).backward())
            }
        };
        for (k, column) in results.into_iter().enumerate() {
            checks.push(Check::new(
                names[k],
                &values(column.detach()),
                &want.results[k],
                case.stored(0) + narrow + far,
            ));
        }
        let got_hidden =
            values(head.hidden.grad(&grads).expect("the hidden states have a gradient"));
        let got_weight = values(head.weight.grad(&grads).expect("the head has a gradient"));
        let got_weight = match layout {
            HeadLayout::VocabRows => got_weight,
            HeadLayout::VocabColumns => transposed(&got_weight, rows.n_vocab),
        };
        let walk = if is_tiled {
            0.0
        } else {
            2.0 * error_of_plain_sums(&want.dz, &student.weight, rows.width, &d_hidden)
        };
        let allowed_hidden: Vec<f64> =
            allowed_hidden.iter().map(|allowed| allowed + walk).collect();
        checks.push(Check::within(names[3], &got_hidden, &d_hidden, &allowed_hidden));
        checks.push(Check::within(names[4], &got_weight, &d_weight, &allowed_weight));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{
        Op,
        numbers::{DTYPES, worst_share},
    };

    /// The right gradient as a device would store it, and wrong ones: nothing, nothing but the
    /// label, a tenth too much.
    fn assert_only_the_right_one_is_accepted(
        want: &[f64],
        labels: &[usize],
        allowed: &[f64],
        dtype: DType,
        what: &str,
    ) {
        let share = |wrong: &dyn Fn(usize, f64) -> f64| {
            let got: Vec<f64> =
                want.iter().enumerate().map(|(at, want)| wrong(at, *want)).collect();
            worst_share(&rounded(&got, dtype), want, allowed)
        };
        assert!(share(&|_, x| x) <= 1.0, "{what}");
        assert!(share(&|_, _| 0.0) > 1.0, "{what}: nothing");
        assert!(
            share(&|at, x| if labels.contains(&at) { x } else { 0.0 }) > 1.0,
            "{what}: nothing but the label"
        );
        assert!(share(&|_, x| 1.1 * x) > 1.0, "{what}: a tenth too much");
    }

    #[test]
    fn a_wrong_gradient_of_the_logits_is_refused_at_any_size_of_the_vocabulary() {
        for dtype in DTYPES {
            for n_vocab in [2, 1000, 151_936] {
                let rows = Rows::new(3, n_vocab);
                let case = Case::new(Op::LogSoftmaxKl(rows, Divergence::ForwardKl), dtype);
                let [z, teacher] = [0.0, 0.11].map(|salt| logits(&case, &rows, n_vocab, salt, 1.0));
                let (labels, weights) = (labels(&rows), upstream(&case, &rows));
                let want =
                    wanted(&rows, &z, Some((&teacher, Divergence::ForwardKl)), &labels, &weights);
                let at: Vec<usize> =
                    labels.iter().enumerate().map(|(i, label)| i * n_vocab + label).collect();
                let allowed = case.allowed(&want.dz, &want.terms, 0.0);
                assert_only_the_right_one_is_accepted(
                    &want.dz,
                    &at,
                    &allowed,
                    dtype,
                    &format!("V {n_vocab}, {dtype:?}"),
                );
            }
        }
    }

    #[test]
    fn a_wrong_gradient_of_the_head_is_refused_however_far_the_logits() {
        for by in [0.0, 1e4] {
            let rows = Rows::new(5, 300);
            let case = Case {
                fill: Fill::Far(by),
                ..Case::new(Op::LinearLogProbs(rows, HeadLayout::VocabRows), DType::F32)
            };
            let student = Head::new(&case, rows.n_rows, rows.width, rows.n_vocab, 0.0, 1.0);
            let want =
                wanted(&rows, &student.logits(), None, &labels(&rows), &upstream(&case, &rows));
            let (gradients, allowed) = head_wanted(&case, &want, &student);
            for k in [0, 1] {
                assert_only_the_right_one_is_accepted(
                    &gradients[k],
                    &[],
                    &allowed[k],
                    DType::F32,
                    &format!("far by {by}, gradient {k}"),
                );
            }
        }
    }
}
