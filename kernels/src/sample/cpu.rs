//! Sampling on the CPU backend: `host.rs` on the tensor's own memory.
use super::{
    host::{pack, sample_rows},
    plan::COLUMNS,
};
use crate::{
    cpu::{CpuTensor, View, from_vec, with_rows},
    types::RowSampling,
};
use burn::tensor::DType;

pub(crate) fn forward(logits: CpuTensor, rows: &[RowSampling]) -> CpuTensor {
    let logits = with_rows(logits);
    let view = View::<2>::new(&logits);
    let draws = sample_rows(view.data, view.shape[1], view.strides[0], rows);
    from_vec(pack(&draws), [rows.len(), COLUMNS], DType::F32)
}
