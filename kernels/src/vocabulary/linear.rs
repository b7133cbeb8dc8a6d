//! Logits and gradients of a vocabulary head, a tile at a time.
use super::{budget::tile_columns, packed::Span, tiles::Tiles};
use crate::types::{HeadLayout, Linear};
use burn::tensor::{DType, Shape, Slice, TensorMetadata, backend::Backend, ops::FloatTensor};

pub(crate) fn n_rows<B: Tiles>(linear: &Linear<B>) -> usize {
    linear.hidden.shape()[0]
}

/// The head's columns of a range of the vocabulary, `[D, W]`.
fn head<B: Tiles>(linear: &Linear<B>, start: usize, end: usize) -> FloatTensor<B> {
    let d_model = linear.hidden.shape()[1];
    let (whole, range): (Slice, Slice) = ((0..d_model).into(), (start..end).into());
    match linear.shape.layout {
        HeadLayout::VocabRows => {
            B::float_swap_dims(B::float_slice(linear.weight.clone(), &[range, whole]), 0, 1)
        }
        HeadLayout::VocabColumns => B::float_slice(linear.weight.clone(), &[whole, range]),
    }
}

/// The logits of a range of the vocabulary, `[N, W]` f32.
pub(crate) fn logits<B: Tiles>(linear: &Linear<B>, start: usize, end: usize) -> FloatTensor<B> {
    B::product(linear.hidden.clone(), head(linear, start, end))
}

/// Gradients of a [`Linear`], added up tile by tile.
pub(crate) struct LinearGradients<B: Backend> {
    /// `[N, D]` f32
    hidden: Option<FloatTensor<B>>,
    /// As the weight; 0 for entries without a logit.
    weight: FloatTensor<B>,
}

impl<B: Tiles> LinearGradients<B> {
    pub(crate) fn new(linear: &Linear<B>) -> Self {
        let weight = &linear.weight;
        Self {
            hidden: None,
            weight: B::float_zeros(weight.shape(), &B::float_device(weight), weight.dtype().into()),
        }
    }

    /// Adds what the gradient of a tile of logits, `[N, W]` in the dtype of the weight, brings.
    pub(crate) fn add(
        &mut self,
        linear: &Linear<B>,
        start: usize,
        end: usize,
        tile: FloatTensor<B>,
    ) {
        let part = B::product(tile.clone(), B::float_swap_dims(head(linear, start, end), 0, 1));
        self.hidden = Some(match self.hidden.take() {
            Some(sum) => B::float_add(sum, part),
            None => part,
        });
        let part = match linear.shape.layout {
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
        self.weight = B::assign(weight, start, linear.shape.layout.vocab_dim(), part);
    }

    /// (d hidden, d weight) in the dtypes of hidden and weight.
    pub(crate) fn finish(self, linear: &Linear<B>) -> [FloatTensor<B>; 2] {
        let hidden = self.hidden.expect("a vocabulary has a tile");
        [B::float_cast(hidden, linear.hidden.dtype().into()), self.weight]
    }
}

/// `start..end` in tiles for `n_rows` rows.
pub(crate) fn tiles<B: Tiles>(n_rows: usize, start: usize, end: usize) -> Vec<Span> {
    let columns = tile_columns(n_rows, end - start, B::TILE_ELEMENTS);
    (start..end)
        .step_by(columns)
        .map(|at| Span { start: 0, end: columns.min(end - at), offset: at })
        .collect()
}
