use super::*;
use crate::{
    divergence::Plan,
    testing::{
        DIVERGENCES, assert_close, differences, divergence, dtypes, epsilon, log_prob_and_entropy,
        numbers, on_every_backend, rounded, tensor, values,
    },
};
use burn::{
    backend::{Autodiff, Flex},
    tensor::{TensorData, TensorPrimitive},
};

on_every_backend!(
    values_are_the_definition,
    vocabularies_of_real_models,
    more_rows_than_cubes_along_an_axis,
    gradients_are_finite_differences,
    the_teacher_itself_has_divergence_zero,
    far_logits_cost_nothing,
    minus_infinity_is_impossible,
    nan_surfaces_in_its_row_only,
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
    dtype: DType,
}

impl Case {
    fn new(n: usize, v_s: usize, v_t: usize, dtype: DType) -> Self {
        let logits = |n: usize, salt: f64| {
            rounded(&numbers(n, salt).iter().map(|x| 8.0 * x).collect::<Vec<_>>(), dtype)
        };
        let labels = (0..n).map(|i| ((i * 7) % v_s) as i64).collect();
        Self {
            n,
            v_s,
            v_t,
            student: logits(n * v_s, 0.0),
            teacher: logits(n * v_t, 0.11),
            labels,
            dtype,
        }
    }

    fn row(&self, i: usize) -> (&[f64], &[f64], usize) {
        (
            &self.student[i * self.v_s..][..self.v_s],
            &self.teacher[i * self.v_t..][..self.v_t],
            self.labels[i] as usize,
        )
    }

    fn student<B: KernelOps>(&self) -> Tensor<B, 2> {
        tensor(&self.student, [self.n, self.v_s], self.dtype)
    }

    fn teacher<B: KernelOps>(&self) -> Tensor<B, 2> {
        tensor(&self.teacher, [self.n, self.v_t], self.dtype)
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

    fn want(&self, d: Divergence, temperature: f64) -> [Vec<f64>; 3] {
        let row = |i: usize| {
            let (student, teacher, label) = self.row(i);
            let (log_p, entropy) = log_prob_and_entropy(student, label, temperature);
            [log_p, entropy, divergence(student, teacher, student, d, temperature)]
        };
        [0, 1, 2].map(|k| (0..self.n).map(|i| row(i)[k]).collect())
    }

    fn assert_values<B: KernelOps>(&self, d: Divergence, temperature: f64, tolerance: f64) {
        let what = format!(
            "{d:?}, {:?}, {} x {} / {}, temperature {temperature}",
            self.dtype, self.n, self.v_s, self.v_t
        );
        for (k, (got, want)) in
            self.rows::<B>(d, temperature).iter().zip(self.want(d, temperature)).enumerate()
        {
            assert_close(got, &want, tolerance, &format!("{what}: column {k}"));
        }
    }
}

fn values_are_the_definition<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for (n, v_s, v_t) in
            [(1, 1, 1), (3, 2, 2), (5, 127, 123), (2, 123, 128), (4, 128, 128), (3, 1000, 1003)]
        {
            for d in DIVERGENCES {
                Case::new(n, v_s, v_t, dtype).assert_values::<B>(
                    d,
                    if v_s % 2 == 0 { 1.0 } else { 0.7 },
                    2e-5,
                );
            }
        }
    }
}

fn vocabularies_of_real_models<B: KernelOps>() {
    for d in
        [Divergence::ForwardKl, Divergence::SkewReverse { alpha: 0.1 }, Divergence::Taid { t: 0.4 }]
    {
        // Sums of 150,000 numbers in f32, a few thousand of them one after the other: 10^4
        // roundings of 2^-24 at most, a hundred of them in the mean.
        Case::new(2, 151_936, 128_256, DType::F32).assert_values::<B>(d, 1.0, 1e-4);
    }
}

fn more_rows_than_cubes_along_an_axis<B: KernelOps>() {
    for n in [4097, 70_000] {
        Case::new(n, 2, 3, DType::F32).assert_values::<B>(Divergence::ReverseKl, 1.0, 2e-5);
    }
}

#[test]
fn the_reference_is_the_definition_and_its_gradient_that_of_the_loops() {
    for d in DIVERGENCES {
        let (case, temperature, plan) = (Case::new(3, 37, 31, DType::F32), 0.7, Plan::new(d, 0.7));
        let primitives = || {
            let float = |tensor: Tensor<Flex, 2>| tensor.into_primitive().tensor();
            (float(case.student()), float(case.teacher()), case.labels::<Flex>().into_primitive())
        };
        let (s, t, y) = primitives();
        let packed = reference::forward::<Flex>(s, t, y, &plan, temperature);
        let rows = DivergenceRows::<Flex>::unpack(packed.clone());
        for (got, want) in [rows.log_probs, rows.entropy, rows.divergence]
            .into_iter()
            .zip(case.want(d, temperature))
        {
            assert_close(&values(got), &want, 2e-5, &format!("reference {d:?}"));
        }
        let weights: Vec<f64> = numbers(3 * crate::vocabulary::COLUMNS, 0.3);
        let grad = || {
            tensor::<Flex, 2>(&weights, [3, crate::vocabulary::COLUMNS], DType::F32)
                .into_primitive()
                .tensor()
        };
        let (s, t, y) = primitives();
        let plain = reference::backward::<Flex>(s, t, y, packed, grad(), &plan, temperature);
        let (s, t, y) = primitives();
        let packed = Flex::log_softmax_kl(s.clone(), t.clone(), y.clone(), d, temperature);
        let loops = Flex::log_softmax_kl_backward(s, t, y, packed, grad(), d, temperature);
        let [plain, loops] = [plain, loops]
            .map(|x| values(Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(x))));
        assert_close(&loops, &plain, 1e-5, &format!("gradient of {d:?}"));
    }
}

fn gradients_are_finite_differences<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for ((n, v_s, v_t), temperature) in
            [((2, 1, 2), 1.0), ((3, 37, 31), 0.7), ((2, 127, 128), 1.5)]
        {
            for d in DIVERGENCES {
                let case = Case::new(n, v_s, v_t, dtype);
                let student = case.student::<Autodiff<B>>().require_grad();
                let rows =
                    log_softmax_kl(student.clone(), case.teacher(), case.labels(), d, temperature);
                let weights = [0.0, 0.2, 0.4].map(|salt| numbers(n, salt));
                let weigh = |k: usize| tensor::<Autodiff<B>, 1>(&weights[k], [n], DType::F32);
                let loss = rows.log_probs * weigh(0)
                    + rows.entropy * weigh(1)
                    + rows.divergence * weigh(2);
                let got = values(
                    student.grad(&loss.sum().backward()).expect("the student has a gradient"),
                );
                for i in 0..n {
                    let (row, teacher, label) = case.row(i);
                    let at: Vec<usize> = (0..v_s).step_by(9).chain([label, v_s - 1]).collect();
                    let want = differences(row, &at, |moved| {
                        let (log_p, entropy) = log_prob_and_entropy(moved, label, temperature);
                        let value = divergence(moved, teacher, row, d, temperature);
                        log_p * weights[0][i] + entropy * weights[1][i] + value * weights[2][i]
                    });
                    let got: Vec<f64> = at.iter().map(|&at| got[i * v_s + at]).collect();
                    // The gradient is rounded to the logits' type once.
                    assert_close(
                        &got,
                        &want,
                        1e-5 + epsilon(dtype),
                        &format!("{d:?}, {dtype:?}, row {i} of {v_s}"),
                    );
                }
            }
        }
    }
}

fn the_teacher_itself_has_divergence_zero<B: KernelOps>() {
    let case = Case::new(3, 127, 127, DType::F32);
    for d in [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Hinton,
        Divergence::TotalVariation,
    ] {
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

fn far_logits_cost_nothing<B: KernelOps>() {
    for (by_s, by_t) in [(1e4, 1e4), (-1e4, 1e4), (1e4, -1e4)] {
        for d in DIVERGENCES {
            let mut case = Case::new(3, 127, 127, DType::F32);
            case.student.iter_mut().for_each(|x| *x += by_s);
            case.teacher.iter_mut().for_each(|x| *x += by_t);
            (case.student, case.teacher) =
                (rounded(&case.student, DType::F32), rounded(&case.teacher, DType::F32));
            // TAID's target is a sum of two far logits, whose rounding (half of 2^-10 for numbers
            // of 1e4, thrice) is in its result.
            let tolerance = if matches!(d, Divergence::Taid { .. }) { 2e-3 } else { 2e-5 };
            case.assert_values::<B>(d, 0.7, tolerance);
        }
    }
}

fn minus_infinity_is_impossible<B: KernelOps>() {
    for d in DIVERGENCES {
        // Both models: nothing is added. Even a whole run of entries at the front, so that some
        // units see nothing else.
        let mut case = Case::new(2, 300, 300, DType::F32);
        for i in (0..40).chain([77, 300 + 5, 599]) {
            (case.student[i], case.teacher[i]) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        }
        case.labels = vec![50, 7];
        case.assert_values::<B>(d, 1.0, 2e-5);
        let student = case.student::<Autodiff<B>>().require_grad();
        let rows = log_softmax_kl(student.clone(), case.teacher(), case.labels(), d, 1.0);
        let grad = values(
            student
                .grad(&(rows.log_probs + rows.divergence + rows.entropy).sum().backward())
                .unwrap(),
        );
        assert!(grad.iter().all(|g| g.is_finite()) && grad[77] == 0.0 && grad[3] == 0.0, "{d:?}");
        // Only one of them: finite, with finite gradients.
        for of_student in [true, false] {
            let mut case = Case::new(2, 20, 20, DType::F32);
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

fn nan_surfaces_in_its_row_only<B: KernelOps>() {
    for d in [
        Divergence::ForwardKl,
        Divergence::TotalVariation,
        Divergence::SkewReverse { alpha: 0.1 },
        Divergence::Taid { t: 0.5 },
    ] {
        for (bad, in_student) in
            [(f64::NAN, true), (f64::NAN, false), (f64::INFINITY, true), (f64::INFINITY, false)]
        {
            let mut case = Case::new(3, 100, 100, DType::F32);
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
    let case = Case { student: vec![f64::NEG_INFINITY; 8], ..Case::new(1, 8, 8, DType::F32) };
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
