//! The plain-tensor bodies, called by name: they run where there is no other body, and a test on a
//! backend with kernels would not meet them.
use crate::{
    Divergence, KernelOps,
    divergence::Plan,
    linear_kl,
    linear_log_probs::{HeadLayout, LinearHead},
    log_softmax_kl::DivergenceRows,
    suite::{
        numbers::{scaled, tensor_on, values, worst_error},
        vocabulary_definitions::{
            DIVERGENCES, divergence, head_gradients, log_prob_and_entropy, product_of_rows,
            row_gradient,
        },
    },
    testing::on_every_backend,
    vocabulary::{COLUMNS, ENTROPY, LOG_PROB, VALUE},
};
use burn::tensor::{DType, Int, Tensor, TensorPrimitive};

on_every_backend!(linear_kl_is_its_definition, linear_kl_keeps_nan_in_its_row);

const N: usize = 3;
const D: usize = 6;
const V: [usize; 2] = [37, 31];
const LABELS: [i64; N] = [0, 36, 20];
const TEMPERATURE: f64 = 0.7;
/// Sums of 37 terms in f32.
const TOLERANCE: f64 = 1e-5;

fn head<B: KernelOps>(hidden: &[f64], weight: &[f64], v: usize) -> LinearHead<B> {
    let device = Default::default();
    let (hidden, weight) = (
        tensor_on(hidden, [N, D], DType::F32, &device),
        tensor_on(weight, [v, D], DType::F32, &device),
    );
    LinearHead::new(hidden, weight, HeadLayout::VocabRows)
}

fn labels<B: KernelOps>() -> burn::tensor::ops::IntTensor<B> {
    Tensor::<B, 1, Int>::from_data(LABELS, &Default::default()).into_primitive()
}

fn linear_kl_is_its_definition<B: KernelOps>() {
    let (h_s, w_s) = (scaled(N * D, 0.0, 4.0, DType::F32), scaled(V[0] * D, 0.05, 2.0, DType::F32));
    let (h_t, w_t) =
        (scaled(N * D, 0.11, 4.0, DType::F32), scaled(V[1] * D, 0.16, 2.0, DType::F32));
    let (z_s, z_t) = (product_of_rows(&h_s, &w_s, D), product_of_rows(&h_t, &w_t, D));
    let row = |i: usize| (&z_s[i * V[0]..][..V[0]], &z_t[i * V[1]..][..V[1]], LABELS[i] as usize);
    let weights = scaled(N * COLUMNS, 0.3, 2.0, DType::F32);
    for d in DIVERGENCES {
        let plan = Plan::new(d, TEMPERATURE);
        let heads = || {
            (
                head::<B>(&h_s, &w_s, V[0]).into_primitive(),
                head::<B>(&h_t, &w_t, V[1]).into_primitive(),
            )
        };
        let (student, teacher) = heads();
        let packed =
            linear_kl::reference::forward::<B>(student, teacher, labels::<B>(), &plan, TEMPERATURE);
        let got = DivergenceRows::<B>::unpack(packed.clone());
        let of_row = |i: usize| {
            let (s, t, label) = row(i);
            let (log_p, entropy) = log_prob_and_entropy(s, label, TEMPERATURE);
            [log_p, entropy, divergence(s, t, s, d, TEMPERATURE)]
        };
        for (k, column) in [got.log_probs, got.entropy, got.divergence].into_iter().enumerate() {
            let want: Vec<f64> = (0..N).map(|i| of_row(i)[k]).collect();
            assert!(worst_error(&values(column), &want) < TOLERANCE, "{d:?}, column {k}");
        }
        let grad = tensor_on::<B, 2>(&weights, [N, COLUMNS], DType::F32, &Default::default())
            .into_primitive()
            .tensor();
        let dz: Vec<f64> = (0..N)
            .flat_map(|i| {
                let (s, t, label) = row(i);
                let row_weights =
                    [LOG_PROB, ENTROPY, VALUE].map(|column| weights[i * COLUMNS + column]);
                row_gradient(s, Some((t, d)), label, row_weights, TEMPERATURE).dz
            })
            .collect();
        let (student, teacher) = heads();
        let got = linear_kl::reference::backward::<B>(
            student,
            teacher,
            labels::<B>(),
            packed,
            grad,
            &plan,
            TEMPERATURE,
        );
        for (got, want) in got.into_iter().zip(head_gradients(&dz, &h_s, &w_s, D)) {
            let got = values(Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(got)));
            assert!(
                worst_error(&got, &want) < TOLERANCE,
                "gradient of {d:?}: {got:?} instead of {want:?}"
            );
        }
    }
}

fn linear_kl_keeps_nan_in_its_row<B: KernelOps>() {
    let mut hidden = scaled(N * D, 0.0, 4.0, DType::F32);
    hidden[D + 2] = f64::NAN;
    let weight = scaled(V[0] * D, 0.05, 2.0, DType::F32);
    let teacher = scaled(N * D, 0.11, 4.0, DType::F32);
    for d in
        [Divergence::ForwardKl, Divergence::SkewForward { alpha: 0.1 }, Divergence::TotalVariation]
    {
        let (student, teacher) =
            (head::<B>(&hidden, &weight, V[0]), head::<B>(&teacher, &weight, V[0]));
        let packed = linear_kl::reference::forward::<B>(
            student.into_primitive(),
            teacher.into_primitive(),
            labels::<B>(),
            &Plan::new(d, TEMPERATURE),
            TEMPERATURE,
        );
        let rows = DivergenceRows::<B>::unpack(packed);
        for column in [rows.log_probs, rows.entropy, rows.divergence] {
            let column = values(column);
            assert!(
                column[0].is_finite() && column[1].is_nan() && column[2].is_finite(),
                "{d:?}: {column:?}"
            );
        }
    }
}
