//! Part of `[N, V]` logits that exists at once where they are made only to be reduced. The one
//! place that decides it.
//!
//! | logits of a call | what happens | extra memory beside the gradients |
//! |---|---|---|
//! | f32 and no more elements than a tile may have | made whole, kept for the backward pass: three products | the logits of each model and their gradient: as many tiles |
//! | all others | made a tile of columns at a time and once more backwards: four products | one tile of each model, and one of the gradient |
//!
//! So nothing is larger than a tile of [`Hardware::TILE_ELEMENTS`] f32 elements on either
//! path (but for more than that many rows of 512 columns), and small vocabularies do not pay for
//! the product that saves nothing. 16-bit logits take the second path whatever their size: whole
//! ones would be rounded to 16 bits, or be products of a second, f32 copy of the head.
use crate::{
    device::{GPU_TILE_ELEMENTS, Hardware},
    types::LinearHead,
};
use burn::tensor::DType;

/// Columns of a tile are a multiple of this (where there are so many), so that slices of a head
/// stay aligned.
const TILE_MULTIPLE: usize = 128;
/// A tile has at most this part of the columns there would be without tiles, so that extra memory
/// stays small beside `[N, V]`.
const TILE_PART: usize = 64;
/// Columns below which the products get slow; smaller vocabularies than [`TILE_PART`] of these have
/// relatively larger tiles.
const MIN_TILE: usize = 512;

/// True if the logits of a call are made whole and kept for the backward pass.
pub(crate) fn are_kept<B: Hardware>(head: &LinearHead<B>) -> bool {
    head.hidden.dtype() == DType::F32
        && fit_a_tile(head.hidden.dims()[0], head.n_entries(), B::TILE_ELEMENTS)
}

/// Columns of a tile of `n_rows` rows out of `n_columns`.
pub(crate) fn tile_columns(n_rows: usize, n_columns: usize, tile_elements: usize) -> usize {
    let columns = (tile_elements / n_rows.max(1)).min(n_columns.div_ceil(TILE_PART)).max(MIN_TILE);
    columns.next_multiple_of(TILE_MULTIPLE)
}

/// Elements of one model's logits that exist at once, at most, on any backend: for forecasts.
pub fn most_logits(n_rows: usize, n_vocab: usize) -> usize {
    match fit_a_tile(n_rows, n_vocab, GPU_TILE_ELEMENTS) {
        true => n_rows * n_vocab,
        false => n_rows * tile_columns(n_rows, n_vocab, GPU_TILE_ELEMENTS).min(n_vocab),
    }
}

fn fit_a_tile(n_rows: usize, n_vocab: usize, tile_elements: usize) -> bool {
    n_rows.saturating_mul(n_vocab) <= tile_elements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HeadLayout;
    use burn::{backend::Flex, tensor::Tensor};

    #[test]
    fn whole_logits_are_kept_up_to_a_tile_and_in_f32_only() {
        let head = |n_rows: usize, n_vocab: usize, dtype: DType| {
            let zeros =
                |shape: [usize; 2]| Tensor::<Flex, 2>::zeros(shape, (&Default::default(), dtype));
            LinearHead::new(zeros([n_rows, 1]), zeros([n_vocab, 1]), HeadLayout::VocabRows)
        };
        // 4,096 rows of 1,024 entries are the 2^22 elements of a tile.
        for (n_rows, n_vocab, dtype, expected) in [
            (4096, 1024, DType::F32, true),
            (4097, 1024, DType::F32, false),
            (4096, 1025, DType::F32, false),
            (1, 8, DType::BF16, false),
            (1, 8, DType::F16, false),
        ] {
            assert_eq!(
                are_kept(&head(n_rows, n_vocab, dtype)),
                expected,
                "{n_rows} x {n_vocab} {dtype:?}"
            );
        }
        let cut = head(4096, 1100, DType::F32).cut_to(900);
        assert!(!are_kept(&cut), "the product is that of the whole head");
    }

    #[test]
    fn no_matrix_of_logits_is_larger_than_a_tile_or_a_twentieth_of_them_in_all() {
        for n_rows in [1, 27, 28, 220, 221, 4096, 65_536] {
            for n_vocab in [976, 32_000, 128_256, 151_936] {
                let most = most_logits(n_rows, n_vocab);
                assert!(most <= GPU_TILE_ELEMENTS, "{n_rows} x {n_vocab}: {most}");
                // Student, teacher and gradient, where there is no more than a tile anyway or where
                // tiles have their full share.
                let is_small =
                    n_rows * n_vocab <= GPU_TILE_ELEMENTS || n_vocab < TILE_PART * MIN_TILE;
                assert!(
                    is_small || 3 * most <= n_rows * n_vocab / 20,
                    "{n_rows} x {n_vocab}: {most}"
                );
            }
        }
    }
}
