//! The rotation on the CPU backend, in place where x has no other owner.
use super::reference;
use crate::cpu::{CpuTensor, row_major, simd};
use burn::{
    backend::Flex,
    tensor::{DType, TensorMetadata},
};

pub(super) fn forward(x: CpuTensor, cos: CpuTensor, sin: CpuTensor) -> CpuTensor {
    if x.dtype() != DType::F32 {
        return reference::forward::<Flex>(x, cos, sin);
    }
    let (mut x, cos, sin) = (owned_row_major(x), row_major(cos), row_major(sin));
    let ([_, width], [n_positions, half]) = (x.shape().dims::<2>(), cos.shape().dims::<2>());
    let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
    let data = x.storage_mut::<f32>();
    simd!({
        for (n, token) in data.chunks_exact_mut(width).enumerate() {
            let row = n % n_positions * half;
            let (cos, sin) = (&cos[row..row + half], &sin[row..row + half]);
            for head in token.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * sin[i];
                    b[i] = y * cos[i] + x * sin[i];
                }
            }
        }
    });
    x
}

/// `row_major` that gives up its argument, so that a tensor with one owner keeps having one.
fn owned_row_major(x: CpuTensor) -> CpuTensor {
    let is_whole = x.is_contiguous()
        && x.layout().start_offset() == 0
        && x.storage::<f32>().len() == x.layout().num_elements();
    if is_whole { x } else { x.to_contiguous() }
}
