//! The same of CubeCL runtimes, alone and with fusion.
use super::{DeviceFacts, Hardware};
use burn::tensor::{Device, backend::Backend};
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement};
use burn_fusion::{Fusion, FusionBackend};
use cubecl::{
    ir::{AddressType, features::Plane},
    prelude::ComputeClient,
};
use std::collections::BTreeSet;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Hardware
    for CubeBackend<R, F, I, BT>
{
    const KEY_POSITION_DIM: usize = 3;

    fn max_tensor_bytes(device: &Self::Device) -> Option<u64> {
        Some(R::client(device).properties().memory.max_page_size)
    }

    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        facts(Self::name(device), &R::client(device))
    }

    fn reserved_bytes(device: &Device<Self>, give_back_first: bool) -> Option<u64> {
        reserved_bytes(&R::client(device), give_back_first)
    }
}

impl<B: FusionBackend + Hardware> Hardware for Fusion<B> {
    const KEY_POSITION_DIM: usize = B::KEY_POSITION_DIM;
    const TOKENS_AT_ONCE: usize = B::TOKENS_AT_ONCE;
    const TILE_ELEMENTS: usize = B::TILE_ELEMENTS;

    fn max_tensor_bytes(device: &Self::Device) -> Option<u64> {
        B::max_tensor_bytes(device)
    }

    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        DeviceFacts { runtime: <Self as Backend>::name(device), ..B::device_facts(device) }
    }

    fn reserved_bytes(device: &Device<Self>, give_back_first: bool) -> Option<u64> {
        B::reserved_bytes(device, give_back_first)
    }
}

fn facts<R: CubeRuntime>(runtime: String, client: &ComputeClient<R>) -> DeviceFacts {
    let (features, hardware) = (client.features(), &client.properties().hardware);
    let planes = match features.plane.contains(Plane::Ops) {
        true if hardware.plane_size_min == hardware.plane_size_max => {
            format!("yes, {} units", hardware.plane_size_min)
        }
        true => {
            format!("yes, {} to {} units", hardware.plane_size_min, hardware.plane_size_max)
        }
        false => "no: matrix products take kernels without them; this project's kernels meet \
                  in shared memory"
            .to_owned(),
    };
    let mut matrices: BTreeSet<String> = BTreeSet::new();
    for config in features.matmul.cmma.iter().chain(&features.matmul.mma) {
        matrices.insert(format!("{} x {} -> {}", config.a_type, config.b_type, config.cd_type));
    }
    let matrices = match matrices.is_empty() {
        true => "no: matrix products run on the ordinary units".to_owned(),
        false => matrices.into_iter().collect::<Vec<_>>().join(", "),
    };
    let addresses = match features.types.address.contains(&AddressType::U64) {
        true => "yes".to_owned(),
        false => "no: a tensor has less than 2^32 elements".to_owned(),
    };
    DeviceFacts {
        runtime,
        features: vec![
            ("plane (subgroup) operations", planes),
            ("cooperative matrices", matrices),
            ("64-bit addresses", addresses),
            (
                "tensor memory accelerator",
                if features.tma.is_empty() { "no".to_owned() } else { "yes".to_owned() },
            ),
        ],
        limits: [
            ("bytes of one allocation", client.properties().memory.max_page_size),
            ("bytes of shared memory a cube", hardware.max_shared_memory_size as u64),
            ("units a cube", u64::from(hardware.max_units_per_cube)),
            ("cubes along x", u64::from(hardware.max_cube_count.0)),
            ("buffers a kernel", u64::from(hardware.max_bindings)),
        ]
        .into_iter()
        .chain(hardware.num_streaming_multiprocessors.map(|n| ("multiprocessors", u64::from(n))))
        .collect(),
    }
}

/// Bytes that the runtime holds on the device, free pages of its pools included; after `clean`,
/// without them.
fn reserved_bytes<R: CubeRuntime>(client: &ComputeClient<R>, clean: bool) -> Option<u64> {
    if clean {
        client.memory_cleanup();
    }
    client.memory_usage().ok().map(|usage| usage.bytes_reserved)
}
