//! The operations over the vocabulary, written once for every backend that can fold tiles.
use super::{Span, budget::tile_columns};
use crate::{
    KernelOps,
    divergence::Plan,
    linear_log_probs::{HeadLayout, Linear},
};
use burn::tensor::{
    DType, Shape, Slice, TensorMetadata,
    backend::Backend,
    ops::{FloatTensor, IntTensor},
};

/// What a backend does with tiles; `vocabulary` says what a packed row is. `scale` is 1 /
/// temperature.
pub(crate) trait Tiles: KernelOps {
    /// lhs [N, K], rhs [K, M] of one dtype -> [N, M] in f32.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Folds a tile of one model; `packed` is `None` for the first.
    fn fold_one(
        tile: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: Option<FloatTensor<Self>>,
        span: Span,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Folds a tile of both models' shared prefix.
    fn fold_two(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: Option<FloatTensor<Self>>,
        span: Span,
        plan: &Plan,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Second pass over the same tiles.
    fn fold_second(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        packed: FloatTensor<Self>,
        span: Span,
        is_first: bool,
        plan: &Plan,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Gradient of a tile of one model, in `dtype`.
    fn grad_one(
        tile: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        dtype: DType,
        span: Span,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Gradient of the student's tile, in `dtype`; its columns behind the span have no counterpart
    /// in the teacher's.
    #[allow(
        clippy::too_many_arguments,
        reason = "two tiles, three row tensors and what to do with them"
    )]
    fn grad_two(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        labels: IntTensor<Self>,
        packed: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        dtype: DType,
        span: Span,
        plan: &Plan,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Writes `part` into `whole` from index `start` of dimension `dim`, in place if nobody else
    /// holds it.
    fn assign(
        whole: FloatTensor<Self>,
        start: usize,
        dim: usize,
        part: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

fn n_rows<B: Tiles>(linear: &Linear<B>) -> usize {
    linear.hidden.shape()[0]
}

/// The head's columns of a range of the vocabulary, [D, W].
fn head<B: Tiles>(linear: &Linear<B>, start: usize, end: usize) -> FloatTensor<B> {
    let d_model = linear.hidden.shape()[1];
    let (whole, range): (Slice, Slice) = ((0..d_model).into(), (start..end).into());
    match linear.layout {
        HeadLayout::VocabRows => {
            B::float_swap_dims(B::float_slice(linear.weight.clone(), &[range, whole]), 0, 1)
        }
        HeadLayout::VocabColumns => B::float_slice(linear.weight.clone(), &[whole, range]),
    }
}

/// The logits of a range of the vocabulary, [N, W] f32.
fn logits<B: Tiles>(linear: &Linear<B>, start: usize, end: usize) -> FloatTensor<B> {
    B::product(linear.hidden.clone(), head(linear, start, end))
}

/// Gradients of a [`Linear`], added up tile by tile.
struct LinearGradients<B: Backend> {
    /// [N, D] f32
    hidden: Option<FloatTensor<B>>,
    /// As the weight; 0 for entries without a logit.
    weight: FloatTensor<B>,
}

impl<B: Tiles> LinearGradients<B> {
    fn new(linear: &Linear<B>) -> Self {
        let weight = &linear.weight;
        Self {
            hidden: None,
            weight: B::float_zeros(weight.shape(), &B::float_device(weight), weight.dtype().into()),
        }
    }

    /// Adds what the gradient of a tile of logits, [N, W] in the dtype of the weight, brings.
    fn add(&mut self, linear: &Linear<B>, start: usize, end: usize, tile: FloatTensor<B>) {
        let part = B::product(tile.clone(), B::float_swap_dims(head(linear, start, end), 0, 1));
        self.hidden = Some(match self.hidden.take() {
            Some(sum) => B::float_add(sum, part),
            None => part,
        });
        let part = match linear.layout {
            HeadLayout::VocabRows => {
                B::product(B::float_swap_dims(tile, 0, 1), linear.hidden.clone())
            }
            HeadLayout::VocabColumns => {
                B::product(B::float_swap_dims(linear.hidden.clone(), 0, 1), tile)
            }
        };
        let weight = std::mem::replace(
            &mut self.weight,
            B::float_empty(Shape::new([0, 0]), &B::float_device(&linear.hidden), DType::F32.into()),
        );
        self.weight = B::assign(weight, start, linear.layout.vocab_dim(), part);
    }

    /// (d hidden, d weight) in the dtypes of hidden and weight.
    fn finish(self, linear: &Linear<B>) -> [FloatTensor<B>; 2] {
        let hidden = self.hidden.expect("a vocabulary has a tile");
        [B::float_cast(hidden, linear.hidden.dtype().into()), self.weight]
    }
}

/// `start..end` in tiles for `n_rows` rows.
fn tiles<B: Tiles>(n_rows: usize, start: usize, end: usize) -> Vec<Span> {
    let columns = tile_columns(n_rows, end - start, B::TILE_ELEMENTS);
    (start..end)
        .step_by(columns)
        .map(|at| Span { start: 0, end: columns.min(end - at), offset: at })
        .collect()
}

pub(crate) fn log_probs<B: Tiles>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let span = Span::whole(logits.shape()[1]);
    B::fold_one(logits, labels, None, span, (1.0 / temperature) as f32)
}

pub(crate) fn log_probs_backward<B: Tiles>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let (span, dtype) = (Span::whole(logits.shape()[1]), logits.dtype());
    B::grad_one(logits, labels, packed, grad, dtype, span, (1.0 / temperature) as f32)
}

pub(crate) fn log_softmax_kl<B: Tiles>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    labels: IntTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> FloatTensor<B> {
    let scale = (1.0 / temperature) as f32;
    let n_student = student.shape()[1];
    let shared = Span::whole(n_student.min(teacher.shape()[1]));
    let mut packed =
        B::fold_two(student.clone(), teacher.clone(), labels.clone(), None, shared, plan, scale);
    if plan.needs_second_pass() {
        packed = B::fold_second(student.clone(), teacher, packed, shared, true, plan, scale);
    }
    if shared.end < n_student {
        packed = B::fold_one(
            student,
            labels,
            Some(packed),
            Span { start: shared.end, end: n_student, offset: 0 },
            scale,
        );
    }
    packed
}

pub(crate) fn log_softmax_kl_backward<B: Tiles>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> FloatTensor<B> {
    let (shared, dtype) =
        (Span::whole(student.shape()[1].min(teacher.shape()[1])), student.dtype());
    B::grad_two(
        student,
        teacher,
        labels,
        packed,
        grad,
        dtype,
        shared,
        plan,
        (1.0 / temperature) as f32,
    )
}

pub(crate) fn linear_log_probs<B: Tiles>(
    linear: Linear<B>,
    labels: IntTensor<B>,
    temperature: f64,
) -> FloatTensor<B> {
    let mut packed = None;
    for span in tiles::<B>(n_rows(&linear), 0, linear.n_logits) {
        let tile = logits(&linear, span.offset, span.offset + span.end);
        packed = Some(B::fold_one(tile, labels.clone(), packed, span, (1.0 / temperature) as f32));
    }
    packed.expect("a vocabulary has a tile")
}

pub(crate) fn linear_log_probs_backward<B: Tiles>(
    linear: Linear<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let mut sums = LinearGradients::new(&linear);
    for span in tiles::<B>(n_rows(&linear), 0, linear.n_logits) {
        let (start, end) = (span.offset, span.offset + span.end);
        let (scale, dtype) = ((1.0 / temperature) as f32, linear.weight.dtype());
        let tile = B::grad_one(
            logits(&linear, start, end),
            labels.clone(),
            packed.clone(),
            grad.clone(),
            dtype,
            span,
            scale,
        );
        sums.add(&linear, start, end, tile);
    }
    sums.finish(&linear)
}

pub(crate) fn linear_kl<B: Tiles>(
    student: Linear<B>,
    teacher: Linear<B>,
    labels: IntTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> FloatTensor<B> {
    let scale = (1.0 / temperature) as f32;
    let shared = student.n_logits.min(teacher.n_logits);
    let shared_tiles = tiles::<B>(n_rows(&student), 0, shared);
    let tile =
        |linear: &Linear<B>, span: &Span| logits(linear, span.offset, span.offset + span.end);
    let mut packed = None;
    for span in &shared_tiles {
        packed = Some(B::fold_two(
            tile(&student, span),
            tile(&teacher, span),
            labels.clone(),
            packed,
            *span,
            plan,
            scale,
        ));
    }
    let mut packed = packed.expect("a shared vocabulary has a tile");
    if plan.needs_second_pass() {
        for (i, span) in shared_tiles.iter().enumerate() {
            packed = B::fold_second(
                tile(&student, span),
                tile(&teacher, span),
                packed,
                *span,
                i == 0,
                plan,
                scale,
            );
        }
    }
    for span in tiles::<B>(n_rows(&student), shared, student.n_logits) {
        packed = B::fold_one(tile(&student, &span), labels.clone(), Some(packed), span, scale);
    }
    packed
}

pub(crate) fn linear_kl_backward<B: Tiles>(
    student: Linear<B>,
    teacher: Linear<B>,
    labels: IntTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    plan: &Plan,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let (scale, dtype) = ((1.0 / temperature) as f32, student.weight.dtype());
    let shared = student.n_logits.min(teacher.n_logits);
    let mut sums = LinearGradients::new(&student);
    for span in tiles::<B>(n_rows(&student), 0, shared) {
        let (start, end) = (span.offset, span.offset + span.end);
        let (s, t) = (logits(&student, start, end), logits(&teacher, start, end));
        let tile = B::grad_two(
            s,
            t,
            labels.clone(),
            packed.clone(),
            grad.clone(),
            dtype,
            span,
            plan,
            scale,
        );
        sums.add(&student, start, end, tile);
    }
    for span in tiles::<B>(n_rows(&student), shared, student.n_logits) {
        let (start, end) = (span.offset, span.offset + span.end);
        let tile = B::grad_one(
            logits(&student, start, end),
            labels.clone(),
            packed.clone(),
            grad.clone(),
            dtype,
            span,
            scale,
        );
        sums.add(&student, start, end, tile);
    }
    sums.finish(&student)
}
