use crate::{
    Divergence, KernelOps,
    linear_kl::{by_tiles, linear_kl},
    linear_log_probs::{HeadLayout, LinearHead, linear_log_probs},
    log_softmax_kl::{DivergenceRows, log_softmax_kl, row_divergence},
    suite::vocabulary_definitions::product_of_rows,
    testing::{
        DIVERGENCES, assert_close, numbers, on_every_backend, rounded, tensor, transposed, values,
    },
};
use burn::{
    backend::Autodiff,
    tensor::{DType, Int, Tensor, TensorData},
};

on_every_backend!(many_tiles_are_one_tile, no_rows_are_no_rows, a_cut_head_is_a_smaller_head);

/// One model's numbers.
struct Model {
    d: usize,
    v: usize,
    hidden: Vec<f64>,
    /// `[V, D]`
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
        product_of_rows(&self.hidden, &self.weight, self.d)
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

    /// A gradient of the weight as it lies, `[V, D]`.
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

fn labels<B: KernelOps>(n: usize, v: usize) -> Tensor<B, 1, Int> {
    let labels: Vec<i64> = (0..n).map(|i| ((i * 611 + v - 1) % v) as i64).collect();
    Tensor::from_data(TensorData::new(labels, [n]), &Default::default())
}

/// The same numbers as from whole logits, by way of three tiles, the last of them ragged and the
/// student's alone.
fn many_tiles_are_one_tile<B: KernelOps>() {
    let (student, teacher) = pair(2, 1100, 1000, HeadLayout::VocabRows, DType::F32);
    let labels = labels::<B>(2, 1100);
    let whole = |model: &Model| tensor::<B, 2>(&model.logits(), [2, model.v], DType::F32);
    for d in DIVERGENCES {
        let tiled = by_tiles(
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

fn no_rows_are_no_rows<B: KernelOps>() {
    let zeros = |n: usize, m: usize| Tensor::<B, 2>::zeros([n, m], &Default::default());
    let head = || LinearHead::new(zeros(0, 5), zeros(9, 5), HeadLayout::VocabRows);
    let labels = Tensor::zeros([0], &Default::default());
    let rows = linear_kl(head(), head(), labels.clone(), Divergence::ForwardKl, 1.0);
    assert_eq!((rows.log_probs.dims(), linear_log_probs(head(), labels, 1.0).1.dims()), ([0], [0]));
    assert_eq!(row_divergence(zeros(0, 3), zeros(0, 3), Divergence::ForwardKl, 1.0).dims(), [0]);
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
        let labels = labels::<Autodiff<B>>(n, cut);
        let of = |head: LinearHead<Autodiff<B>>| {
            let head = leaves(head);
            results(
                &head,
                by_tiles(
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
