//! Rows of logits as the loops over tiles read them.
use crate::{
    cpu::{CpuTensor, Elements, for_each_piece, stored, strides},
    nan::LOG_ZERO,
};
use burn::{
    backend::Flex,
    tensor::{IntDType, ops::IntTensorOps},
};

/// Elements of one task, in whole rows.
const TASK: usize = 1 << 15;
/// An exponential and its surroundings, counted in multiply-adds.
const WORK_PER_ELEMENT: usize = 16;

/// Rows of logits as they lie in memory.
pub(super) struct Rows<'a> {
    elements: Elements<'a>,
    stride: usize,
}

/// Makes a tensor readable by [`Rows`] (a copy only of what is not so already).
pub(super) fn readable(tile: CpuTensor) -> CpuTensor {
    let tile = stored(tile);
    if tile.layout().strides()[1] == 1 { tile } else { tile.to_contiguous() }
}

impl<'a> Rows<'a> {
    pub(super) fn new(tile: &'a CpuTensor) -> Self {
        Self { elements: Elements::new(tile), stride: strides::<2>(tile)[0] }
    }

    /// Columns `start..end` of a row in f32, by way of `scratch` where they are not.
    #[inline(always)]
    pub(super) fn row<'b>(
        &'b self,
        row: usize,
        start: usize,
        end: usize,
        scratch: &'b mut Vec<f32>,
    ) -> &'b [f32] {
        self.elements.widened(row * self.stride + start..row * self.stride + end, scratch)
    }
}

/// A logit with -1e30 for -inf; NaN stays.
#[inline(always)]
pub(super) fn finite(logit: f32) -> f32 {
    if logit < LOG_ZERO { LOG_ZERO } else { logit }
}

#[inline(always)]
pub(super) fn target(z_s: f32, z_t: f32, blend: f32) -> f32 {
    if blend == 1.0 { z_t } else { z_t * blend + z_s * (1.0 - blend) }
}

fn rows_per_task(n_columns: usize) -> usize {
    (TASK / n_columns.max(1)).max(1)
}

pub(super) fn host_labels(labels: CpuTensor) -> Vec<usize> {
    let labels = Flex::int_cast(labels, IntDType::I64).to_contiguous();
    labels
        .storage::<i64>()
        .iter()
        .map(|&label| usize::try_from(label).expect("labels are not negative"))
        .collect()
}

/// Applies `fold` to every row of `packed` with its number, in parallel.
pub(super) fn for_each_row(
    packed: &mut [f32],
    columns: usize,
    n_columns: usize,
    fold: impl Fn(usize, &mut [f32], &mut [Vec<f32>; 2]) + Sync + Send,
) {
    let n_rows = packed.len() / columns;
    let rows = rows_per_task(n_columns);
    for_each_piece(
        packed.chunks_mut(rows * columns).enumerate().collect(),
        WORK_PER_ELEMENT * n_rows * n_columns,
        |(task, packed)| {
            let mut scratch = [Vec::new(), Vec::new()];
            for (i, packed) in packed.chunks_exact_mut(columns).enumerate() {
                fold(task * rows + i, packed, &mut scratch);
            }
        },
    );
}
