//! The adapters that wgpu finds on this machine: `--device wgpu:N` is number N of this list, the
//! order the drivers report them in.
//!
//! CubeCL picks an adapter by its kind and its rank among those of that kind; this file turns the
//! one number into the other pair. Both ask wgpu for the same list, of the one graphics API that
//! CubeCL uses on the system (Vulkan, on macOS Metal).
use super::DeviceError;
use burn::backend::wgpu::{
    WgpuDevice,
    graphics::{AutoGraphicsApi, GraphicsApi},
};
use std::{fmt, sync::Once};
use wgpu::DeviceType;

/// The kinds, fastest first: the order in which `--device wgpu` looks for one.
const KINDS: [DeviceType; 5] = [
    DeviceType::DiscreteGpu,
    DeviceType::IntegratedGpu,
    DeviceType::VirtualGpu,
    DeviceType::Other,
    DeviceType::Cpu,
];

/// One adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub info: wgpu::AdapterInfo,
    /// The largest tensor, in bytes.
    pub max_tensor_bytes: u64,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wgpu::AdapterInfo { name, driver, driver_info, backend, device_type, .. } = &self.info;
        let kind = match device_type {
            DeviceType::DiscreteGpu => "discrete GPU",
            DeviceType::IntegratedGpu => "integrated GPU",
            DeviceType::VirtualGpu => "virtual GPU",
            DeviceType::Cpu => "software",
            DeviceType::Other => "unknown kind",
        };
        write!(f, "{name}, {kind}, {backend}")?;
        let driver = [driver.as_str(), driver_info.as_str()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        if driver.is_empty() { Ok(()) } else { write!(f, ", driver {driver}") }
    }
}

/// All adapters, in the order of their numbers.
pub fn adapters() -> Vec<Adapter> {
    let backend = wgpu::Backends::from(AutoGraphicsApi::backend());
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = futures_lite::future::block_on(instance.enumerate_adapters(backend));
    let adapter = |adapter: wgpu::Adapter| Adapter {
        max_tensor_bytes: adapter.limits().max_storage_buffer_binding_size,
        info: adapter.get_info(),
    };
    found.into_iter().map(adapter).collect()
}

/// The adapter with a number, or the default one where no number is given.
/// # Errors
/// If there is none at all, or none of that number.
pub fn select(number: Option<usize>) -> Result<WgpuDevice, DeviceError> {
    let adapters = adapters();
    let kinds: Vec<DeviceType> = adapters.iter().map(|adapter| adapter.info.device_type).collect();
    let Some(default) = default_number(&kinds) else { return Err(DeviceError::NoAdapter) };
    if number.is_none() && kinds[default] == DeviceType::Cpu {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| {
            tracing::warn!(
                "no graphics card was found, only {}; hint: --device cpu is faster",
                adapters[default]
            )
        });
    }
    let number = number.unwrap_or(default);
    runtime_device(&kinds, number).ok_or_else(|| {
        let describe = |(n, adapter): (usize, &Adapter)| format!("wgpu:{n} ({adapter})");
        DeviceError::NoSuchAdapter {
            number,
            found: adapters.iter().enumerate().map(describe).collect::<Vec<_>>().join(", "),
        }
    })
}

/// The adapter that a choice of device refers to.
pub fn chosen(number: Option<usize>) -> Option<Adapter> {
    let mut adapters = adapters();
    let kinds: Vec<DeviceType> = adapters.iter().map(|adapter| adapter.info.device_type).collect();
    let number =
        number.or_else(|| default_number(&kinds)).filter(|&number| number < adapters.len())?;
    Some(adapters.swap_remove(number))
}

/// The first adapter of the fastest kind; none where there are no adapters.
pub fn default_number(kinds: &[DeviceType]) -> Option<usize> {
    KINDS.iter().find_map(|kind| kinds.iter().position(|of| of == kind))
}

/// CubeCL's name for an adapter. `None` where there is no such number, and for a second software
/// driver, for which CubeCL has no name.
fn runtime_device(kinds: &[DeviceType], number: usize) -> Option<WgpuDevice> {
    let kind = *kinds.get(number)?;
    let n_of =
        |kind: DeviceType, among: &[DeviceType]| among.iter().filter(|of| **of == kind).count();
    let rank = n_of(kind, &kinds[..number]);
    match kind {
        DeviceType::DiscreteGpu => Some(WgpuDevice::DiscreteGpu(rank)),
        DeviceType::IntegratedGpu => Some(WgpuDevice::IntegratedGpu(rank)),
        DeviceType::VirtualGpu => Some(WgpuDevice::VirtualGpu(rank)),
        DeviceType::Cpu => (rank == 0).then_some(WgpuDevice::Cpu),
        // CubeCL takes the adapters of unknown kind, by the same rank, where a kind has too few of
        // its own.
        DeviceType::Other => {
            let names = [
                (DeviceType::VirtualGpu, WgpuDevice::VirtualGpu(rank)),
                (DeviceType::IntegratedGpu, WgpuDevice::IntegratedGpu(rank)),
                (DeviceType::DiscreteGpu, WgpuDevice::DiscreteGpu(rank)),
            ];
            names.into_iter().find(|(kind, _)| n_of(*kind, kinds) <= rank).map(|(_, device)| device)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};

    #[test]
    fn a_number_is_the_place_in_the_list_of_all_adapters() {
        let kinds = [IntegratedGpu, DiscreteGpu, Cpu, DiscreteGpu];
        let devices: Vec<_> = (0..5).map(|number| runtime_device(&kinds, number)).collect();
        let expected = [
            Some(WgpuDevice::IntegratedGpu(0)),
            Some(WgpuDevice::DiscreteGpu(0)),
            Some(WgpuDevice::Cpu),
            Some(WgpuDevice::DiscreteGpu(1)),
            None,
        ];
        assert_eq!(devices, expected);
    }

    #[test]
    fn an_adapter_of_unknown_kind_takes_the_name_of_a_kind_that_has_too_few() {
        assert_eq!(
            runtime_device(&[Other, DiscreteGpu, Other], 2),
            Some(WgpuDevice::VirtualGpu(1))
        );
        assert_eq!(
            runtime_device(&[VirtualGpu, IntegratedGpu, Other], 2),
            Some(WgpuDevice::DiscreteGpu(0))
        );
        assert_eq!(runtime_device(&[VirtualGpu, IntegratedGpu, DiscreteGpu, Other], 3), None);
    }

    #[test]
    fn a_second_software_driver_has_no_name() {
        assert_eq!(runtime_device(&[Cpu, Cpu], 1), None);
    }

    #[test]
    fn without_a_number_the_fastest_kind_is_taken() {
        assert_eq!(default_number(&[Cpu, IntegratedGpu, DiscreteGpu, DiscreteGpu]), Some(2));
        assert_eq!(default_number(&[Cpu]), Some(0));
        assert_eq!(default_number(&[]), None);
    }
}
