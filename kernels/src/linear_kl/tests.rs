use crate::{
    Divergence, KernelOps,
    linear_kl::{by_tiles as kl_by_tiles, linear_kl},
    linear_log_probs::{HeadLayout, LinearHead, by_tiles as log_probs_by_tiles, linear_log_probs},
    log_softmax_kl::{DivergenceRows, log_softmax_kl, row_divergence},
    testing::{
        DIVERGENCES, assert_close, differences, divergence, dtypes, epsilon, log_prob_and_entropy,
        numbers, on_every_backend, product, rounded, tensor, transposed, values,
    },
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Int, Tensor, TensorData},
};

on_every_backend!(
    values_are_the_definition,
    gradients_are_finite_differences,
    many_tiles_are_one_tile,
    a_far_hidden_state_costs_nothing,
    nan_surfaces_in_its_row_only,
    no_rows_are_no_rows,
    kept_logits_give_the_numbers_of_tiles,
    a_cut_head_is_a_smaller_head,
);

/// One model's numbers.
struct Model {
    d: usize,
    v: usize,
    hidden: Vec<f64>,
    /// [V, D]
    weight: Vec<f64>,
    layout: HeadLayout,
}

impl Model {
    fn new(n: usize, d: usize, v: usize, salt: f64, layout: HeadLayout, dtype: DType) -> Self {
        let scaled = |values: Vec<f64>, by: f64| {
            rounded(&values.iter().map(|x| by * x).collect::<Vec<_>>(), dtype)
        };
        Self {
            d,
            v,
            hidden: scaled(numbers(n * d, salt), 4.0),
            weight: scaled(numbers(v * d, salt + 0.05), 2.0),
            layout,
        }
    }

    fn n(&self) -> usize {
        self.hidden.len() / self.d
    }

    fn logits(&self) -> Vec<f64> {
        product(&self.hidden, &transposed(&self.weight, self.d), self.d, self.v)
    }

    fn head<B: KernelOps>(&self, dtype: DType) -> LinearHead<B> {
        let weight = match self.layout {
            HeadLayout::VocabRows => tensor(&self.weight, [self.v, self.d], dtype),
            HeadLayout::VocabColumns => {
                tensor(&transposed(&self.weight, self.d), [self.d, self.v], dtype)
            }
        };
        LinearHead::new(tensor(&self.hidden, [self.n(), self.d], dtype), weight, self.layout)
    }

    /// A gradient of the weight as it lies, [V, D].
    fn as_rows(&self, gradient: Vec<f64>) -> Vec<f64> {
        match self.layout {
            HeadLayout::VocabRows => gradient,
            HeadLayout::VocabColumns => transposed(&gradient, self.v),
        }
    }
}

fn pair(n: usize, v_s: usize, v_t: usize, layout: HeadLayout, dtype: DType) -> (Model, Model) {
    (
        Model::new(n, 5, v_s, 0.0, layout, dtype),
        Model::new(n, 7, v_t, 0.11, HeadLayout::VocabRows, dtype),
    )
}

fn labels<B: KernelOps>(n: usize, v: usize) -> (Vec<usize>, Tensor<B, 1, Int>) {
    let labels: Vec<usize> = (0..n).map(|i| (i * 611 + v - 1) % v).collect();
    let data = TensorData::new(labels.iter().map(|&label| label as i64).collect::<Vec<_>>(), [n]);
    (labels, Tensor::from_data(data, &Default::default()))
}

/// Products of numbers of a type: exact in f32, but for what the CPU backend and drivers make of
/// f16.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 2e-5 } else { 4.0 * epsilon(dtype) }
}

fn values_are_the_definition<B: KernelOps>() {
    for (n, v_s, v_t) in [(1, 1, 1), (3, 127, 123), (4, 2, 128), (3, 1300, 1250)] {
        for layout in [HeadLayout::VocabRows, HeadLayout::VocabColumns] {
            let (student, teacher) = pair(n, v_s, v_t, layout, DType::F32);
            let (label, label_tensor) = labels::<B>(n, v_s);
            let (z_s, z_t) = (student.logits(), teacher.logits());
            let rows = |i: usize| (&z_s[i * v_s..][..v_s], &z_t[i * v_t..][..v_t]);
            for d in [
                Divergence::ForwardKl,
                Divergence::SymmetricKl { lambda: 0.4 },
                Divergence::SkewForward { alpha: 0.1 },
                Divergence::Taid { t: 0.3 },
            ] {
                let got = kl_by_tiles(
                    student.head::<B>(DType::F32),
                    teacher.head(DType::F32),
                    label_tensor.clone(),
                    d,
                    0.7,
                );
                let want = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<_>>();
                let what = format!("{d:?} {n} x {v_s} / {v_t}");
                assert_close(
                    &values(got.divergence),
                    &want(&|i| divergence(rows(i).0, rows(i).1, rows(i).0, d, 0.7)),
                    2e-5,
                    &what,
                );
                assert_close(
                    &values(got.log_probs),
                    &want(&|i| log_prob_and_entropy(rows(i).0, label[i], 0.7).0),
                    2e-5,
                    &what,
                );
                assert_close(
                    &values(got.entropy),
                    &want(&|i| log_prob_and_entropy(rows(i).0, label[i], 0.7).1),
                    2e-5,
                    &what,
                );
            }
            let (log_probs, entropy) =
                log_probs_by_tiles(student.head::<B>(DType::F32), label_tensor, 0.7);
            let want = |f: &dyn Fn((f64, f64)) -> f64| {
                (0..n)
                    .map(|i| f(log_prob_and_entropy(rows(i).0, label[i], 0.7)))
                    .collect::<Vec<_>>()
            };
            assert_close(&values(log_probs), &want(&|x| x.0), 2e-5, "log_probs");
            assert_close(&values(entropy), &want(&|x| x.1), 2e-5, "entropy");
        }
    }
}

fn gradients_are_finite_differences<B: KernelOps>() {
    let (n, v_s, v_t, temperature) = (3, 1100, 1060, 0.7);
    for dtype in dtypes::<B>() {
        for (layout, d) in [
            (HeadLayout::VocabRows, Divergence::ForwardKl),
            (HeadLayout::VocabColumns, Divergence::JsDistance { lambda: 0.9 }),
            (HeadLayout::VocabRows, Divergence::TotalVariation),
        ] {
            let (student, teacher) = pair(n, v_s, v_t, layout, dtype);
            let (label, label_tensor) = labels::<Autodiff<B>>(n, v_s);
            let (z_t, z_held) = (teacher.logits(), student.logits());
            let weights = [0.0, 0.2, 0.4].map(|salt| numbers(n, salt));
            let loss = |hidden: &[f64], weight: &[f64]| -> f64 {
                let z = product(hidden, &transposed(weight, student.d), student.d, v_s);
                let row = |i: usize| {
                    let (z, z_t, held) =
                        (&z[i * v_s..][..v_s], &z_t[i * v_t..][..v_t], &z_held[i * v_s..][..v_s]);
                    let (log_p, entropy) = log_prob_and_entropy(z, label[i], temperature);
                    log_p * weights[0][i]
                        + entropy * weights[1][i]
                        + divergence(z, z_t, held, d, temperature) * weights[2][i]
                };
                (0..n).map(row).sum()
            };
            let head = student.head::<Autodiff<B>>(dtype);
            let head = LinearHead {
                hidden: head.hidden.require_grad(),
                weight: head.weight.require_grad(),
                ..head
            };
            let rows = kl_by_tiles(head.clone(), teacher.head(dtype), label_tensor, d, temperature);
            let weigh = |k: usize| tensor::<Autodiff<B>, 1>(&weights[k], [n], DType::F32);
            let grads =
                (rows.log_probs * weigh(0) + rows.entropy * weigh(1) + rows.divergence * weigh(2))
                    .sum()
                    .backward();
            let d_hidden = values(head.hidden.grad(&grads).unwrap());
            let d_weight = student.as_rows(values(head.weight.grad(&grads).unwrap()));
            let at: Vec<usize> = (0..n * student.d).collect();
            let want = differences(&student.hidden, &at, |moved| loss(moved, &student.weight));
            assert_close(
                &d_hidden,
                &want,
                tolerance(dtype),
                &format!("d hidden of {d:?} in {dtype:?}"),
            );
            let at: Vec<usize> = (0..v_s * student.d)
                .step_by(97)
                .chain([label[0] * student.d, v_s * student.d - 1])
                .collect();
            let want = differences(&student.weight, &at, |moved| loss(&student.hidden, moved));
            let got: Vec<f64> = at.iter().map(|&i| d_weight[i]).collect();
            assert_close(&got, &want, tolerance(dtype), &format!("d weight of {d:?} in {dtype:?}"));
        }
    }
}

/// The same numbers as from whole logits, by way of three tiles, the last of them ragged and the
/// student's alone.
fn many_tiles_are_one_tile<B: KernelOps>() {
    let (student, teacher) = pair(2, 1100, 1000, HeadLayout::VocabRows, DType::F32);
    let (_, labels) = labels::<B>(2, 1100);
    let whole = |model: &Model| tensor::<B, 2>(&model.logits(), [2, model.v], DType::F32);
    for d in DIVERGENCES {
        let tiled = kl_by_tiles(
            student.head::<B>(DType::F32),
            teacher.head(DType::F32),
            labels.clone(),
            d,
            1.3,
        );
        let one = log_softmax_kl(whole(&student), whole(&teacher), labels.clone(), d, 1.3);
        assert_close(&values(tiled.divergence), &values(one.divergence), 1e-5, &format!("{d:?}"));
        assert_close(&values(tiled.log_probs), &values(one.log_probs), 1e-5, &format!("{d:?}"));
    }
}

fn a_far_hidden_state_costs_nothing<B: KernelOps>() {
    // One feature with weight 1 everywhere shifts all logits of a row by the same amount.
    let mut model = Model::new(2, 5, 700, 0.0, HeadLayout::VocabRows, DType::F32);
    model.weight.iter_mut().skip(4).step_by(5).for_each(|w| *w = 1.0);
    (model.hidden[4], model.hidden[9]) = (8192.0, -8192.0);
    let z = model.logits();
    let (label, labels) = labels::<B>(2, 700);
    let (log_probs, _) = log_probs_by_tiles(model.head::<B>(DType::F32), labels, 1.0);
    let want: Vec<f64> =
        (0..2).map(|i| log_prob_and_entropy(&z[i * 700..][..700], label[i], 1.0).0).collect();
    // A logit of 8192 is a multiple of 2^-10.
    assert_close(&values(log_probs), &want, 1e-3, "log_probs");
}

fn nan_surfaces_in_its_row_only<B: KernelOps>() {
    let (mut student, teacher) = pair(3, 600, 600, HeadLayout::VocabRows, DType::F32);
    student.hidden[7] = f64::NAN;
    let (_, labels) = labels::<B>(3, 600);
    let rows = kl_by_tiles(
        student.head::<B>(DType::F32),
        teacher.head(DType::F32),
        labels,
        Divergence::ForwardKl,
        1.0,
    );
    for column in [rows.divergence, rows.log_probs, rows.entropy] {
        let column = values(column);
        assert!(column[0].is_finite() && column[1].is_nan() && column[2].is_finite(), "{column:?}");
    }
}

fn no_rows_are_no_rows<B: KernelOps>() {
    let zeros = |n: usize, m: usize| Tensor::<B, 2>::zeros([n, m], &Default::default());
    let head = || LinearHead::new(zeros(0, 5), zeros(9, 5), HeadLayout::VocabRows);
    let labels = Tensor::zeros([0], &Default::default());
    let rows = linear_kl(head(), head(), labels.clone(), Divergence::ForwardKl, 1.0);
    assert_eq!((rows.log_probs.dims(), linear_log_probs(head(), labels, 1.0).1.dims()), ([0], [0]));
    assert_eq!(row_divergence(zeros(0, 3), zeros(0, 3), Divergence::Hinton, 1.0).dims(), [0]);
}

/// Results and gradients (hidden, weight) of all three columns, each weighed differently.
fn results<B: KernelOps>(
    head: &LinearHead<Autodiff<B>>,
    rows: DivergenceRows<Autodiff<B>>,
) -> [Vec<f64>; 5] {
    let n = head.hidden.dims()[0];
    let weigh = |salt: f64| tensor::<Autodiff<B>, 1>(&numbers(n, salt), [n], DType::F32);
    let columns =
        [&rows.log_probs, &rows.entropy, &rows.divergence].map(|column| values(column.clone()));
    let grads =
        (rows.log_probs * weigh(0.0) + rows.entropy * weigh(0.2) + rows.divergence * weigh(0.4))
            .sum()
            .backward();
    let [d_hidden, d_weight] = [&head.hidden, &head.weight]
        .map(|leaf| values(leaf.grad(&grads).expect("both are leaves")));
    let [log_probs, entropy, divergence] = columns;
    [log_probs, entropy, divergence, d_hidden, d_weight]
}

fn assert_equal_results(got: &[Vec<f64>; 5], want: &[Vec<f64>; 5], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_close(got, want, 1e-5, &format!("{what}, result {i}"));
    }
}

fn leaves<B: KernelOps>(head: LinearHead<Autodiff<B>>) -> LinearHead<Autodiff<B>> {
    LinearHead { hidden: head.hidden.require_grad(), weight: head.weight.require_grad(), ..head }
}

/// Small logits are kept whole; the public function takes that way here.
fn kept_logits_give_the_numbers_of_tiles<B: KernelOps>() {
    for layout in [HeadLayout::VocabRows, HeadLayout::VocabColumns] {
        for n_logits in [1100, 700] {
            let (student, teacher) = pair(4, 1100, 1000, layout, DType::F32);
            let (_, labels) = labels::<Autodiff<B>>(4, 700);
            let head = leaves(student.head::<Autodiff<B>>(DType::F32).cut_to(n_logits));
            let teacher = || teacher.head(DType::F32);
            let what = format!("{layout:?} {n_logits}");
            let kept = results(
                &head,
                linear_kl(head.clone(), teacher(), labels.clone(), Divergence::ReverseKl, 0.7),
            );
            let tiled = results(
                &head,
                kl_by_tiles(head.clone(), teacher(), labels.clone(), Divergence::ReverseKl, 0.7),
            );
            assert_equal_results(&kept, &tiled, &what);
            let alone = |(log_probs, entropy): (Tensor<Autodiff<B>, 1>, Tensor<Autodiff<B>, 1>)| {
                results(
                    &head,
                    DivergenceRows { divergence: log_probs.clone().detach(), log_probs, entropy },
                )
            };
            let kept = alone(linear_log_probs(head.clone(), labels.clone(), 0.7));
            let tiled = alone(log_probs_by_tiles(head.clone(), labels.clone(), 0.7));
            assert_equal_results(&kept, &tiled, &what);
        }
    }
}

fn a_cut_head_is_a_smaller_head<B: KernelOps>() {
    let (n, d, v, cut) = (3, 5, 1100, 1030);
    for layout in [HeadLayout::VocabRows, HeadLayout::VocabColumns] {
        let (whole, teacher) = pair(n, v, 1000, layout, DType::F32);
        let smaller = Model {
            d,
            v: cut,
            hidden: whole.hidden.clone(),
            weight: whole.weight[..cut * d].to_vec(),
            layout,
        };
        let (_, labels) = labels::<Autodiff<B>>(n, cut);
        let of = |head: LinearHead<Autodiff<B>>| {
            let head = leaves(head);
            results(
                &head,
                kl_by_tiles(
                    head.clone(),
                    teacher.head(DType::F32),
                    labels.clone(),
                    Divergence::ForwardKl,
                    1.0,
                ),
            )
        };
        let [mut got, mut want] =
            [of(whole.head(DType::F32).cut_to(cut)), of(smaller.head(DType::F32))];
        (got[4], want[4]) = (whole.as_rows(got[4].clone()), smaller.as_rows(want[4].clone()));
        assert!(got[4][cut * d..].iter().all(|&g| g == 0.0), "{layout:?}: no logit, no gradient");
        got[4].truncate(cut * d);
        assert_equal_results(&got, &want, &format!("{layout:?}"));
    }
}
