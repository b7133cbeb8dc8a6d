//! The one place that names concrete backends: `--device` -> code.
use dgpo_models::TrainBackend;
use std::{fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    Wgpu(usize),
    Cuda(usize),
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("unknown device \"{0}\"; hint: cpu, wgpu, wgpu:N, cuda or cuda:N")]
    Unknown(String),
    #[error("this binary was built without {0}; hint: cargo xtask --features {0} …")]
    NotBuilt(&'static str),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, number.parse().map_err(|_| unknown())?),
            None => (text, 0),
        };
        match kind {
            "cpu" if number == 0 => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu(number)),
            "cuda" => Ok(Self::Cuda(number)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Wgpu(n) => write!(f, "wgpu:{n}"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Work that is generic over the backend: `with_device` instantiates it once for each backend built in.
pub trait Job {
    type Output;
    /// `B` records gradients; `B::InnerBackend` does everything else.
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output;
}

/// The CPU backend.
pub type Cpu = burn::backend::Flex;
/// The CPU backend with gradients.
pub type CpuTrain = burn::backend::Autodiff<Cpu>;

/// Runs a job on the chosen device.
/// # Errors
/// If the binary was built without that backend.
pub fn with_device<J: Job>(choice: DeviceChoice, job: J) -> Result<J::Output, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(job.run::<CpuTrain>(&Default::default())),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(number) => {
            let device = if number == 0 {
                burn::backend::wgpu::WgpuDevice::DefaultDevice
            } else {
                burn::backend::wgpu::WgpuDevice::DiscreteGpu(number)
            };
            Ok(job.run::<burn::backend::Autodiff<burn::backend::Wgpu>>(&device))
        }
        #[cfg(not(feature = "wgpu"))]
        DeviceChoice::Wgpu(_) => Err(DeviceError::NotBuilt("wgpu")),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(number) => {
            Ok(job.run::<burn::backend::Autodiff<burn::backend::Cuda>>(&burn::backend::cuda::CudaDevice::new(number)))
        }
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(_) => Err(DeviceError::NotBuilt("cuda")),
    }
}
