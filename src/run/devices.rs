//! The one place that names concrete backends: `--device` -> code.
//!
//! GPU runtimes answer a missing driver with a panic, and a kernel that cannot run with an error
//! that shows only when the device is asked for it; until then, reading a tensor returns whatever
//! is in its memory. So a device is opened before work starts, and asked at the end of every piece
//! of work ([`check`]).
#[cfg(feature = "wgpu")]
pub mod adapters;
// The crate's unit tests run on the CPU. Every generic function is compiled for each backend, so
// without GPU backends they are built in half the time.
#[cfg(all(any(feature = "wgpu", feature = "cuda"), not(test)))]
mod gpu;

use dgpo_models::{Backend, TrainBackend};
use std::{fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    /// An adapter by its place in the list that `dgpo doctor --device wgpu` prints; without a
    /// number the first of the fastest kind.
    Wgpu(Option<usize>),
    Cuda(usize),
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("unknown device \"{0}\"; hint: cpu, wgpu, wgpu:N, cuda or cuda:N")]
    Unknown(String),
    #[error("this binary was built without {0}")]
    NotBuilt(&'static str),
    #[error(
        "wgpu finds no adapter on this machine; hint: install the graphics card's Vulkan driver; \
         without a card, a software driver (Debian: mesa-vulkan-drivers) computes correctly and \
         slowly; or --device cpu"
    )]
    NoAdapter,
    #[error("there is no wgpu:{number}; hint: this machine has {found}")]
    NoSuchAdapter { number: usize, found: String },
    #[error(
        "{device} cannot be opened: {why}; hint: is its driver installed and new enough? --device \
         cpu needs none"
    )]
    CannotOpen { device: DeviceChoice, why: String },
    /// The device failed: results that were read since it was last asked may be wrong.
    #[error(
        "the device failed: {0}; hint: what was saved before is sound; where memory ran out, make \
         micro_batch_tokens smaller"
    )]
    Failed(String),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match kind {
            "cpu" if number.unwrap_or(0) == 0 => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu(number)),
            "cuda" => Ok(Self::Cuda(number.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Wgpu(None) => write!(f, "wgpu"),
            Self::Wgpu(Some(n)) => write!(f, "wgpu:{n}"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl DeviceChoice {
    /// The flags before and after the verb of a `cargo xtask` command that select this device.
    pub fn launcher_flags(self) -> (&'static str, String) {
        match self {
            Self::Cpu => ("", String::new()),
            Self::Wgpu(_) => ("--features wgpu ", format!("--device {self} ")),
            Self::Cuda(_) => ("--features cuda ", format!("--device {self} ")),
        }
    }
}

/// Work that is generic over the backend: `with_device` instantiates it once for each backend built
/// in.
pub trait DeviceJob {
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
/// If the binary was built without that backend, the device is not there or cannot be used, or it
/// failed during the job.
pub fn with_device<J: DeviceJob>(choice: DeviceChoice, job: J) -> Result<J::Output, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(job.run::<CpuTrain>(&Default::default())),
        #[cfg(all(feature = "wgpu", not(test)))]
        DeviceChoice::Wgpu(number) => {
            gpu::run::<burn::backend::Wgpu, J>(choice, &adapters::select(number)?, job)
        }
        #[cfg(any(not(feature = "wgpu"), test))]
        DeviceChoice::Wgpu(_) => Err(DeviceError::NotBuilt("wgpu")),
        #[cfg(all(feature = "cuda", not(test)))]
        DeviceChoice::Cuda(number) => gpu::run::<burn::backend::Cuda, J>(
            choice,
            &burn::backend::cuda::CudaDevice::new(number),
            job,
        ),
        #[cfg(any(not(feature = "cuda"), test))]
        DeviceChoice::Cuda(_) => Err(DeviceError::NotBuilt("cuda")),
    }
}

/// A device with the name of its adapter, for the record of a run: another adapter gives other last
/// bits.
pub fn describe(choice: DeviceChoice) -> String {
    #[cfg(feature = "wgpu")]
    if let DeviceChoice::Wgpu(number) = choice
        && let Some(adapter) = adapters::chosen(number)
    {
        return format!("{choice} ({adapter})");
    }
    choice.to_string()
}

/// Asks a device whether everything it was given has been computed. Waits for it.
/// # Errors
/// If a kernel could not be compiled or started, or memory ran out: results read since the last
/// call must not be trusted.
pub fn check<B: Backend>(device: &B::Device) -> Result<(), DeviceError> {
    B::sync(device).map_err(|error| DeviceError::Failed(causes(&error.to_string())))
}

/// The message of a runtime with each cause once. A runtime repeats a cause for every operation
/// that waited for another, with a line in place of a backtrace.
fn causes(text: &str) -> String {
    const N_CAUSES: usize = 6;
    let mut causes: Vec<&str> = Vec::new();
    for line in text.lines() {
        let cause = line
            .trim()
            .trim_start_matches("No backtrace available")
            .trim_start_matches([')', ',', ' '])
            .trim_end_matches([']', ')']);
        if !cause.is_empty() && !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    causes.truncate(N_CAUSES);
    causes.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_a_runtime_repeats_is_said_once() {
        let text = "An error\nCaused by:\n  [Io(no memory\nNo backtrace available), Io(no page\nNo \
                    backtrace available), Io(no page\nNo backtrace available)]";
        assert_eq!(causes(text), "An error Caused by: [Io(no memory Io(no page");
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["cpu", "wgpu", "wgpu:0", "wgpu:3", "cuda:0", "cuda:1"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["tpu", "wgpu:", "wgpu:x", "cuda:-1", "cpu:1", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
