//! Work on tiles by which a backend has the operations over the vocabulary.
use super::packed::Span;
use crate::{device::Hardware, types::DivergencePlan};
use burn::tensor::{
    DType,
    ops::{FloatTensor, IntTensor},
};

/// Work of a backend on tiles; `vocabulary` says what a packed row is. `scale` is 1 /
/// temperature.
pub(crate) trait Tiles: Hardware {
    /// lhs `[N, K]`, rhs `[K, M]` of one dtype -> `[N, M]` in f32.
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
        plan: &DivergencePlan,
        scale: f32,
    ) -> FloatTensor<Self>;

    /// Second pass over the same tiles.
    fn fold_second(
        student: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        packed: FloatTensor<Self>,
        span: Span,
        is_first: bool,
        plan: &DivergencePlan,
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
        plan: &DivergencePlan,
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
