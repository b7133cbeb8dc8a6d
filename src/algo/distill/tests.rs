//! Values and gradients against literal f64 loops, and the properties the losses must have. The
//! recorded reference numbers run in `conformance`.
use super::*;
use crate::{
    rng::{Key, Purpose},
    trainer::devices::CpuTrain,
};
use burn::tensor::TensorData;

type B = CpuTrain;

const ALL: [Divergence; 13] = [
    Divergence::ForwardKl,
    Divergence::ForwardCrossEntropy,
    Divergence::ReverseKl,
    Divergence::SkewForward { alpha: 0.1 },
    Divergence::SkewReverse { alpha: 0.3 },
    Divergence::JsDistance { lambda: 0.9 },
    Divergence::TotalVariation,
    Divergence::SymmetricKl { lambda: 0.9 },
    Divergence::GeneralisedJsd { beta: 0.0 },
    Divergence::GeneralisedJsd { beta: 0.25 },
    Divergence::GeneralisedJsd { beta: 1.0 },
    Divergence::Hinton,
    Divergence::Taid { t: 0.4 },
];

fn logits(seed: u64, n: usize, scale: f64) -> Vec<f64> {
    (0..n)
        .map(|i| f64::from((Key::new(seed, Purpose::Init).normal(i as u64) * scale) as f32))
        .collect()
}

fn tensor(values: &[f64], rows: usize) -> Tensor<B, 2> {
    let data = values.iter().map(|&x| x as f32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(data, [rows, values.len() / rows]), &Default::default())
}

fn host<const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = logits.iter().map(|x| ((x - max) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

/// One row, straight from the definitions in the enum's documentation. `frozen` is the student that
/// TAID mixes into its target.
fn literal(
    student: &[f64],
    frozen: &[f64],
    teacher: &[f64],
    divergence: Divergence,
    temperature: f64,
) -> f64 {
    let (s, t) = (softmax(student, temperature), softmax(teacher, temperature));
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
    let cross = |p: &[f64], q: &[f64]| -p.iter().zip(q).map(|(p, q)| p * q.ln()).sum::<f64>();
    let mix = |w: f64, p: &[f64], q: &[f64]| {
        p.iter().zip(q).map(|(p, q)| w * p + (1.0 - w) * q).collect::<Vec<_>>()
    };
    match divergence {
        Divergence::ForwardKl => kl(&t, &s),
        Divergence::ForwardCrossEntropy => cross(&t, &s),
        Divergence::ReverseKl => kl(&s, &t),
        Divergence::SkewForward { alpha } => cross(&t, &mix(alpha, &t, &s)),
        Divergence::SkewReverse { alpha } => kl(&s, &mix(alpha, &s, &t)),
        Divergence::JsDistance { lambda } => {
            let m = mix(lambda, &s, &t);
            lambda * kl(&s, &m) + (1.0 - lambda) * kl(&t, &m)
        }
        Divergence::TotalVariation => {
            s.iter().zip(&t).map(|(s, t)| (s - t).abs()).sum::<f64>() / 2.0
        }
        Divergence::SymmetricKl { lambda } => (1.0 - lambda) * cross(&t, &s) + lambda * kl(&s, &t),
        Divergence::GeneralisedJsd { beta: 0.0 } => kl(&t, &s),
        Divergence::GeneralisedJsd { beta: 1.0 } => kl(&s, &t),
        Divergence::GeneralisedJsd { beta } => {
            let m = mix(1.0 - beta, &s, &t);
            beta * kl(&t, &m) + (1.0 - beta) * kl(&s, &m)
        }
        Divergence::Hinton => temperature * temperature * kl(&t, &s),
        Divergence::Taid { t: at } => {
            let target: Vec<f64> =
                frozen.iter().zip(teacher).map(|(s, t)| (1.0 - at) * s + at * t).collect();
            cross(&softmax(&target, temperature), &s)
        }
    }
}

#[test]
fn values_and_gradients_equal_literal_loops_and_finite_differences() {
    let (rows, vocab) = (3, 17);
    let (student, teacher) = (logits(1, rows * vocab, 3.0), logits(2, rows * vocab, 3.0));
    for divergence in ALL {
        for temperature in [1.0, 2.5] {
            let s = tensor(&student, rows).require_grad();
            let values = row_divergence(s.clone(), tensor(&teacher, rows), divergence, temperature);
            let mut grads = values.clone().sum().backward();
            let grad = host(Tensor::<B, 2>::from_inner(s.grad_remove(&mut grads).unwrap()));
            for (row, &value) in host(values).iter().enumerate() {
                let cells = row * vocab..(row + 1) * vocab;
                let (frozen, t) = (&student[cells.clone()], &teacher[cells.clone()]);
                let expected = literal(frozen, frozen, t, divergence, temperature);
                assert!(
                    (value - expected).abs() < 1e-5 * (1.0 + expected),
                    "{divergence:?} T={temperature}: {value} vs {expected}"
                );
                for v in 0..vocab {
                    let at = |shift: f64| {
                        let mut moved = frozen.to_vec();
                        moved[v] += shift;
                        literal(&moved, frozen, t, divergence, temperature)
                    };
                    // Central difference in f64: error about 1e-10; the f32 gradient has entries up
                    // to about 1.
                    let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                    let got = grad[cells.start + v];
                    assert!(
                        (got - expected).abs() < 2e-5,
                        "{divergence:?} T={temperature} [{row},{v}]: {got} vs {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_student_equal_to_its_teacher_has_divergence_zero() {
    let same = logits(3, 5 * 123, 8.0);
    let with_entropy = |d: &Divergence| {
        matches!(
            d,
            Divergence::ForwardCrossEntropy
                | Divergence::SkewForward { .. }
                | Divergence::SymmetricKl { .. }
                | Divergence::Taid { .. }
        )
    };
    for divergence in ALL.iter().filter(|d| !with_entropy(d)) {
        for value in host(row_divergence(tensor(&same, 5), tensor(&same, 5), *divergence, 1.0)) {
            assert!(value.abs() < 1e-6, "{divergence:?}: {value}");
        }
    }
}

#[test]
fn a_constant_added_to_every_logit_changes_nothing() {
    // Multiples of 1/8 up to 8, so that adding 2^17 is exact in f32.
    let grid = |seed: u64| {
        logits(seed, 2 * 40, 3.0).iter().map(|x| (x * 8.0).round() / 8.0).collect::<Vec<_>>()
    };
    let (student, teacher) = (grid(4), grid(5));
    let shifted: Vec<f64> = student.iter().map(|x| x + 131_072.0).collect();
    for divergence in ALL.into_iter().filter(|d| !matches!(d, Divergence::Taid { .. })) {
        let [plain, moved] = [&student, &shifted]
            .map(|s| host(row_divergence(tensor(s, 2), tensor(&teacher, 2), divergence, 1.0)));
        assert_eq!(plain, moved, "{divergence:?}");
    }
}

#[test]
fn forbidden_tokens_of_both_models_contribute_nothing() {
    let (mut student, mut teacher) = (logits(6, 9, 2.0), logits(7, 9, 2.0));
    let allowed = |x: &[f64]| x[..6].to_vec();
    let (s, t) = (allowed(&student), allowed(&teacher));
    student[6..].fill(f64::NEG_INFINITY);
    teacher[6..].fill(f64::NEG_INFINITY);
    for divergence in ALL {
        let with = tensor(&student, 1).require_grad();
        let value = row_divergence(with.clone(), tensor(&teacher, 1), divergence, 1.0);
        let expected = literal(&s, &s, &t, divergence, 1.0);
        assert!(
            (host(value.clone())[0] - expected).abs() < 1e-5 * (1.0 + expected),
            "{divergence:?}"
        );
        let mut grads = value.sum().backward();
        let grad = host(Tensor::<B, 2>::from_inner(with.grad_remove(&mut grads).unwrap()));
        assert!(
            grad.iter().all(|g| g.is_finite()) && grad[6..].iter().all(|&g| g == 0.0),
            "{divergence:?}: {grad:?}"
        );
    }
}

#[test]
fn a_token_only_the_other_side_forbids_leaves_value_and_gradient_finite() {
    let (plain, mut forbidden) = (logits(8, 7, 2.0), logits(9, 7, 2.0));
    forbidden[0] = f64::NEG_INFINITY;
    for divergence in ALL {
        for (student, teacher) in [(&plain, &forbidden), (&forbidden, &plain)] {
            let s = tensor(student, 1).require_grad();
            let value = row_divergence(s.clone(), tensor(teacher, 1), divergence, 1.0);
            let mut grads = value.clone().sum().backward();
            let grad = host(Tensor::<B, 2>::from_inner(s.grad_remove(&mut grads).unwrap()));
            assert!(
                host(value)[0].is_finite() && grad.iter().all(|g| g.is_finite()),
                "{divergence:?}: {grad:?}"
            );
        }
    }
}

#[test]
fn vocabularies_of_different_size_are_cut_before_the_softmax() {
    let (student, teacher) = (logits(10, 12, 2.0), logits(11, 10, 2.0));
    let cut = literal(&student[..10], &student[..10], &teacher, Divergence::ForwardKl, 1.0);
    for (s, t, expected) in [
        (tensor(&student, 1), tensor(&teacher, 1), cut),
        (
            tensor(&teacher, 1),
            tensor(&student, 1),
            literal(&teacher, &teacher, &student[..10], Divergence::ForwardKl, 1.0),
        ),
    ] {
        assert!(
            (host(row_divergence(s, t, Divergence::ForwardKl, 1.0))[0] - expected).abs() < 1e-5
        );
    }
}

fn kd(
    student: Tensor<B, 2>,
    teacher: Tensor<B, 2>,
    mask: &[f32],
    weights: KdWeights,
    normaliser: f64,
) -> Tensor<B, 1> {
    let labels = Tensor::from_data(
        TensorData::new(vec![1i64; mask.len()], [mask.len()]),
        &Default::default(),
    );
    let mask = Tensor::from_data(TensorData::new(mask.to_vec(), [mask.len()]), &Default::default());
    kd_loss(student.into(), Some(teacher.into()), labels, mask, weights, normaliser)
}

#[test]
fn kd_is_the_weighted_sum_of_cross_entropy_and_divergence_over_masked_rows() {
    let (student, teacher) = (logits(12, 3 * 6, 2.0), logits(13, 3 * 6, 2.0));
    let weights = KdWeights {
        ce_weight: 0.5,
        kl_weight: 2.0,
        divergence: Divergence::ForwardKl,
        temperature: 1.0,
    };
    let got = host(kd(tensor(&student, 3), tensor(&teacher, 3), &[1.0, 0.0, 1.0], weights, 2.0))[0];
    let row = |r: usize| {
        let (s, t) = (&student[r * 6..r * 6 + 6], &teacher[r * 6..r * 6 + 6]);
        -0.5 * softmax(s, 1.0)[1].ln() + 2.0 * literal(s, s, t, Divergence::ForwardKl, 1.0)
    };
    assert!((got - (row(0) + row(2)) / 2.0).abs() < 1e-5, "{got}");
}

#[test]
fn splitting_rows_into_micro_batches_does_not_change_loss_or_gradient() {
    let (student, teacher) = (logits(14, 4 * 6, 2.0), logits(15, 4 * 6, 2.0));
    let weights = KdWeights {
        ce_weight: 1.0,
        kl_weight: 1.0,
        divergence: Divergence::ForwardKl,
        temperature: 1.0,
    };
    let mask = [1.0, 1.0, 0.0, 1.0];
    let gradient = |pieces: &[std::ops::Range<usize>]| {
        let s = tensor(&student, 4).require_grad();
        let t = tensor(&teacher, 4);
        let part = |r: &std::ops::Range<usize>| {
            kd(
                s.clone().slice([r.clone()]),
                t.clone().slice([r.clone()]),
                &mask[r.clone()],
                weights,
                3.0,
            )
        };
        let loss = pieces.iter().map(part).reduce(|a, b| a + b).unwrap();
        let value = host(loss.clone())[0];
        let mut grads = loss.backward();
        (value, host(Tensor::<B, 2>::from_inner(s.grad_remove(&mut grads).unwrap())))
    };
    let (whole, split) = (gradient(std::slice::from_ref(&(0..4))), gradient(&[0..1, 1..4]));
    assert!((whole.0 - split.0).abs() < 1e-6);
    assert!(whole.1.iter().zip(&split.1).all(|(a, b)| (a - b).abs() < 1e-7));
}

#[test]
fn the_taid_schedule_follows_the_line_when_the_loss_is_flat_and_survives_a_round_trip() {
    let mut schedule = TaidSchedule::new(0.4, 1.0, 5e-4, 0.99);
    assert_eq!(schedule.update(2.0, 0, 10), None);
    for step in 1..=10 {
        schedule.update(2.0, step, 10);
        assert!((schedule.t - (0.4 + 0.06 * step as f64)).abs() < 1e-12);
    }
    let restored: TaidSchedule =
        serde_json::from_str(&serde_json::to_string(&schedule).unwrap()).unwrap();
    assert_eq!(restored, schedule);
}

#[test]
fn a_nan_logit_of_either_model_is_nan_in_the_loss_of_its_row_alone() {
    for divergence in ALL {
        for is_teacher in [false, true] {
            let (mut student, mut teacher) = (logits(1, 3 * 17, 3.0), logits(2, 3 * 17, 3.0));
            if is_teacher {
                teacher[17 + 4] = f64::NAN
            } else {
                student[17 + 4] = f64::NAN
            }
            let weights =
                KdWeights { ce_weight: 1.0, kl_weight: 1.0, divergence, temperature: 1.0 };
            let labels = Tensor::<B, 1, Int>::from_data([0, 1, 2], &Default::default());
            let rows = kd_rows(
                tensor(&student, 3).into(),
                Some(tensor(&teacher, 3).into()),
                labels,
                weights,
            );
            let loss = host(rows.loss);
            assert!(
                loss[1].is_nan() && loss[0].is_finite() && loss[2].is_finite(),
                "{divergence:?}, teacher {is_teacher}: {loss:?}"
            );
        }
    }
}

#[test]
fn a_loss_that_is_no_number_leaves_the_taid_schedule_to_the_line() {
    let new = || TaidSchedule::new(0.4, 1.0, 0.5, 0.9);
    let (mut broken, mut whole) = (new(), new());
    for loss in [2.0, 1.5] {
        broken.update(loss, 0, 10);
        whole.update(loss, 0, 10);
    }
    for loss in [f64::NAN, f64::INFINITY] {
        assert_eq!(broken.update(loss, 1, 10), None);
    }
    assert_eq!(broken, whole, "t is above the line of step 1, and nothing else has changed");
    broken.update(f64::NAN, 9, 10);
    assert_eq!(broken, TaidSchedule { t: 0.4 + 0.6 * 9.0 / 10.0, ..whole });
    assert!(broken.update(1.0, 9, 10).is_some_and(f64::is_finite) && broken.momentum.is_finite());
}
