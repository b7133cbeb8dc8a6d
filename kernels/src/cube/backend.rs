//! The operations on a CubeCL runtime without fusion: launches of kernels.
use crate::{
    DeviceFacts,
    device::of_cube,
    select::{fused_ops, names::*},
};
use burn::tensor::{Device, backend::Backend};
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> KernelOps
    for CubeBackend<R, F, I, BT>
{
    const KEY_POSITION_DIM: usize = 3;

    fn max_tensor_bytes(device: &Self::Device) -> Option<u64> {
        Some(R::client(device).properties().memory.max_page_size)
    }

    fused_ops!(kernel);

    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        of_cube::facts(Self::name(device), &R::client(device))
    }

    fn reserved_bytes(device: &Device<Self>, give_back_first: bool) -> Option<u64> {
        of_cube::reserved_bytes(&R::client(device), give_back_first)
    }
}
