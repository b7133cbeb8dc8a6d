//! The operations on a CubeCL runtime without fusion: launches of kernels.
use crate::select::{fused_ops, names::*};
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelOps for CubeBackend<R, F, I, BT> {
    fn max_tensor_bytes(device: &Self::Device) -> Option<u64> {
        Some(R::client(device).properties().memory.max_page_size)
    }

    fused_ops!(kernel);
}
