//! The whole rows as one tile; forms that need the normalisers first pass over it twice.
use crate::{
    types::{Divergence, DivergencePlan},
    vocabulary::{Span, Tiles},
};
use burn::tensor::{
    TensorMetadata,
    ops::{FloatTensor, IntTensor},
};

pub(crate) fn forward<B: Tiles>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    labels: IntTensor<B>,
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let plan = DivergencePlan::new(divergence);
    let scale = (1.0 / temperature) as f32;
    let n_student = student.shape()[1];
    let shared = Span::whole(n_student.min(teacher.shape()[1]));
    let mut packed =
        B::fold_two(student.clone(), teacher.clone(), labels.clone(), None, shared, &plan, scale);
    if plan.needs_second_pass() {
        packed = B::fold_second(student.clone(), teacher, packed, shared, true, &plan, scale);
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

pub(crate) fn backward<B: Tiles>(
    student: FloatTensor<B>,
    teacher: FloatTensor<B>,
    packed: FloatTensor<B>,
    grad: FloatTensor<B>,
    labels: IntTensor<B>,
    divergence: Divergence,
    temperature: f64,
) -> FloatTensor<B> {
    let plan = DivergencePlan::new(divergence);
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
        &plan,
        (1.0 / temperature) as f32,
    )
}
