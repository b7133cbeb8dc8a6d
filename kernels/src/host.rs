//! Tensors read on the host.
use burn::tensor::{Tensor, backend::Backend};

/// The elements of a tensor as f32, row-major. Waits for the device.
pub fn to_host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32")
}
