//! A tile of both vocabularies at a time, and then what the student has alone.
#![allow(clippy::too_many_arguments, reason = "two models, their results and what to do with them")]
use crate::{
    types::{Divergence, DivergencePlan, HeadShape, Linear},
    vocabulary::{
        Span, Tiles,
        linear::{LinearGradients, logits, n_rows, tiles},
    },
};
use burn::tensor::{
    TensorMetadata,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Tiles>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    teacher_hidden: FloatTensor<B>,
    teacher_weight: FloatTensor<B>,
    labels: IntTensor<B>,
    [head, teacher_head]: [HeadShape; 2],
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let student = Linear::<B> { hidden, weight, shape: head };
    let teacher =
        Linear::<B> { hidden: teacher_hidden, weight: teacher_weight, shape: teacher_head };
    let plan = DivergencePlan::new(divergence);
    let scale = (1.0 / temperature) as f32;
    let shared = head.n_logits.min(teacher_head.n_logits);
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
            &plan,
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
                &plan,
                scale,
            );
        }
    }
    for span in tiles::<B>(n_rows(&student), shared, head.n_logits) {
        packed = B::fold_one(tile(&student, &span), labels.clone(), Some(packed), span, scale);
    }
    packed
}

pub(crate) fn backward<B: Tiles>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    teacher_hidden: FloatTensor<B>,
    teacher_weight: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    [head, teacher_head]: [HeadShape; 2],
    divergence: Divergence,
    temperature: f64,
) -> [FloatTensor<B>; 2] {
    let student = Linear::<B> { hidden, weight, shape: head };
    let teacher =
        Linear::<B> { hidden: teacher_hidden, weight: teacher_weight, shape: teacher_head };
    let plan = DivergencePlan::new(divergence);
    let (scale, dtype) = ((1.0 / temperature) as f32, student.weight.dtype());
    let shared = head.n_logits.min(teacher_head.n_logits);
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
            &plan,
            scale,
        );
        sums.add(&student, start, end, tile);
    }
    for span in tiles::<B>(n_rows(&student), shared, head.n_logits) {
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
