//! For backends without a kernel of their own: the logits are read back and sampled on the host.
use super::{host, plan::COLUMNS};
use crate::host::to_host;
use crate::types::RowSampling;
use burn::tensor::{Tensor, TensorData, TensorPrimitive, backend::Backend, ops::FloatTensor};

pub(crate) fn forward<B: Backend>(logits: FloatTensor<B>, rows: &[RowSampling]) -> FloatTensor<B> {
    let device = B::float_device(&logits);
    let logits = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(logits));
    let vocab_size = logits.dims()[1];
    let logits = to_host(logits);
    let packed = host::pack(&host::sample_rows(&logits, vocab_size, vocab_size, rows));
    B::float_from_data(TensorData::new(packed, [rows.len(), COLUMNS]), &device)
}
