//! What a device says of itself, and how much memory it holds.

/// Facts about a device in words, for a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// burn's name of the backend.
    pub runtime: String,
    /// What the device can do, or cannot and what is done instead.
    pub features: Vec<(&'static str, String)>,
    /// How large things may be.
    pub limits: Vec<(&'static str, u64)>,
}

#[cfg(feature = "cube")]
pub(crate) mod of_cube {
    use super::DeviceFacts;
    use burn_cubecl::CubeRuntime;
    use cubecl::{
        ir::{AddressType, features::Plane},
        prelude::ComputeClient,
    };
    use std::collections::BTreeSet;

    pub(crate) fn facts<R: CubeRuntime>(runtime: String, client: &ComputeClient<R>) -> DeviceFacts {
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
            .chain(
                hardware.num_streaming_multiprocessors.map(|n| ("multiprocessors", u64::from(n))),
            )
            .collect(),
        }
    }

    /// Bytes that the runtime holds on the device, free pages of its pools included; after `clean`,
    /// without them.
    pub(crate) fn reserved_bytes<R: CubeRuntime>(
        client: &ComputeClient<R>,
        clean: bool,
    ) -> Option<u64> {
        if clean {
            client.memory_cleanup();
        }
        client.memory_usage().ok().map(|usage| usage.bytes_reserved)
    }
}
