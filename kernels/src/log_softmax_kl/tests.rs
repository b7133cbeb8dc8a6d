use super::*;
use crate::{
    KernelOps,
    testing::{
        DIVERGENCES, assert_close, divergence, numbers, on_every_backend, rounded, tensor, values,
    },
};
use burn::{backend::Autodiff, tensor::TensorData};

on_every_backend!(
    the_teacher_itself_has_divergence_zero,
    logits_of_both_models_far_in_one_direction_cost_nothing,
    what_is_impossible_for_one_model_is_finite,
    nan_and_infinity_of_either_model_surface_in_their_row_only,
    no_rows_are_no_rows,
);

/// Logits of both models, row-major, with labels.
struct Case {
    n: usize,
    v_s: usize,
    v_t: usize,
    student: Vec<f64>,
    teacher: Vec<f64>,
    labels: Vec<i64>,
}

impl Case {
    fn new(n: usize, v_s: usize, v_t: usize) -> Self {
        let logits = |n: usize, salt: f64| numbers(n, salt).iter().map(|x| 8.0 * x).collect();
        let labels = (0..n).map(|i| ((i * 7) % v_s) as i64).collect();
        Self { n, v_s, v_t, student: logits(n * v_s, 0.0), teacher: logits(n * v_t, 0.11), labels }
    }

    fn student<B: KernelOps>(&self) -> Tensor<B, 2> {
        tensor(&self.student, [self.n, self.v_s], DType::F32)
    }

    fn teacher<B: KernelOps>(&self) -> Tensor<B, 2> {
        tensor(&self.teacher, [self.n, self.v_t], DType::F32)
    }

    fn labels<B: KernelOps>(&self) -> Tensor<B, 1, Int> {
        Tensor::from_data(TensorData::new(self.labels.clone(), [self.n]), &Default::default())
    }

    fn rows<B: KernelOps>(&self, divergence: Divergence, temperature: f64) -> [Vec<f64>; 3] {
        let rows = log_softmax_kl(
            self.student::<B>(),
            self.teacher::<B>(),
            self.labels(),
            divergence,
            temperature,
        );
        [rows.log_probs, rows.entropy, rows.divergence].map(values)
    }
}

fn the_teacher_itself_has_divergence_zero<B: KernelOps>() {
    let case = Case::new(3, 127, 127);
    for d in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::TotalVariation] {
        let student = case.student::<Autodiff<B>>().require_grad();
        let rows = row_divergence(student.clone(), case.student(), d, 0.7);
        assert_eq!(values(rows.clone().detach()), [0.0; 3], "{d:?}");
        let grad = values(student.grad(&rows.sum().backward()).unwrap());
        assert_close(&grad, &vec![0.0; grad.len()], 1e-6, &format!("gradient of {d:?}"));
    }
    let jsd = row_divergence(
        case.student::<B>(),
        case.student(),
        Divergence::GeneralisedJsd { beta: 0.3 },
        1.0,
    );
    assert_close(&values(jsd), &[0.0; 3], 1e-6, "jsd");
}

fn logits_of_both_models_far_in_one_direction_cost_nothing<B: KernelOps>() {
    for d in DIVERGENCES {
        let mut case = Case::new(3, 127, 127);
        for logits in [&mut case.student, &mut case.teacher] {
            *logits = rounded(&logits.iter().map(|z| z + 1e4).collect::<Vec<_>>(), DType::F32);
        }
        let row = |logits: &[f64], i: usize| logits[i * 127..(i + 1) * 127].to_vec();
        let want: Vec<f64> = (0..3)
            .map(|i| (row(&case.student, i), row(&case.teacher, i)))
            .map(|(student, teacher)| divergence(&student, &teacher, &student, d, 0.7))
            .collect();
        // TAID's target is a sum of two far logits, whose rounding (half of 2^-10 for numbers of
        // 1e4, thrice) is in its result.
        let tolerance = if matches!(d, Divergence::Taid { .. }) { 2e-3 } else { 2e-5 };
        let got = row_divergence(case.student::<B>(), case.teacher(), d, 0.7);
        assert_close(&values(got), &want, tolerance, &format!("{d:?}"));
    }
}

fn what_is_impossible_for_one_model_is_finite<B: KernelOps>() {
    for d in DIVERGENCES {
        for of_student in [true, false] {
            let mut case = Case::new(2, 20, 20);
            let logits = if of_student { &mut case.student } else { &mut case.teacher };
            (logits[3], logits[25]) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
            let student = case.student::<Autodiff<B>>().require_grad();
            let rows = row_divergence(student.clone(), case.teacher(), d, 1.0);
            assert!(values(rows.clone().detach()).iter().all(|x| x.is_finite()), "{d:?}");
            let grad = values(student.grad(&rows.sum().backward()).unwrap());
            assert!(grad.iter().all(|g| g.is_finite()), "gradient of {d:?}");
        }
    }
}

fn nan_and_infinity_of_either_model_surface_in_their_row_only<B: KernelOps>() {
    for d in [
        Divergence::ForwardKl,
        Divergence::TotalVariation,
        Divergence::SkewReverse { alpha: 0.1 },
        Divergence::Taid { t: 0.5 },
    ] {
        for (bad, in_student) in
            [(f64::NAN, true), (f64::NAN, false), (f64::INFINITY, true), (f64::INFINITY, false)]
        {
            let mut case = Case::new(3, 100, 100);
            let logits = if in_student { &mut case.student } else { &mut case.teacher };
            logits[177] = bad;
            let student = case.student::<Autodiff<B>>().require_grad();
            let rows = log_softmax_kl(student.clone(), case.teacher(), case.labels(), d, 1.0);
            let value = values(rows.divergence.clone().detach());
            assert!(
                value[1].is_nan() && value[0].is_finite() && value[2].is_finite(),
                "{d:?} {bad}: {value:?}"
            );
            let grad = values(student.grad(&rows.divergence.sum().backward()).unwrap());
            assert!(grad[100..200].iter().any(|g| g.is_nan()), "{d:?} {bad}");
            assert!(grad[..100].iter().chain(&grad[200..]).all(|g| g.is_finite()), "{d:?} {bad}");
        }
    }
    let case = Case { student: vec![f64::NEG_INFINITY; 8], ..Case::new(1, 8, 8) };
    let [log_probs, entropy, divergence] = case.rows::<B>(Divergence::ForwardKl, 1.0);
    assert!(
        log_probs[0].is_nan() && entropy[0].is_nan() && divergence[0].is_nan(),
        "a row without a finite logit has no distribution"
    );
}

fn no_rows_are_no_rows<B: KernelOps>() {
    let rows = log_softmax_kl(
        Tensor::<B, 2>::zeros([0, 5], &Default::default()),
        Tensor::zeros([0, 6], &Default::default()),
        Tensor::zeros([0], &Default::default()),
        Divergence::ForwardKl,
        1.0,
    );
    assert_eq!(
        (rows.log_probs.dims(), rows.entropy.dims(), rows.divergence.dims()),
        ([0], [0], [0])
    );
}
