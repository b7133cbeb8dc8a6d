//! Jobs on a GPU runtime: the device is opened before and asked for errors afterwards.
use super::{DeviceChoice, DeviceError, DeviceJob, check};
use burn::{backend::Autodiff, tensor::Tensor};
use dgpo_models::{Backend, TrainBackend};
use std::{
    panic,
    sync::{Arc, Mutex},
};

/// # Errors
/// If the device cannot be opened, or failed during the job.
pub(super) fn run<B: Backend, J: DeviceJob>(
    choice: DeviceChoice,
    device: &B::Device,
    job: J,
) -> Result<J::Output, DeviceError>
where
    Autodiff<B>: TrainBackend + burn::tensor::backend::Backend<Device = B::Device>,
{
    open::<B>(choice, device)?;
    let output = job.run::<Autodiff<B>>(device);
    check::<B>(device)?;
    Ok(output)
}

/// Computes one number, so that a faulty driver is found before anything is started.
fn open<B: Backend>(choice: DeviceChoice, device: &B::Device) -> Result<(), DeviceError> {
    let cannot_open = |why| Err(DeviceError::CannotOpen { device: choice, why });
    // The runtimes have no other way to report that a library or a device is missing.
    let probe = || Tensor::<B, 1>::ones([1], device).into_data().iter::<f32>().sum::<f32>();
    let silent = silence_panics();
    let computed = panic::catch_unwind(panic::AssertUnwindSafe(probe));
    let said = silent.restore();
    match computed {
        Ok(1.0) => check::<B>(device).or_else(|error| cannot_open(error.to_string())),
        Ok(other) => cannot_open(format!("it says that 1 is {other}")),
        Err(_) => cannot_open(said.unwrap_or_else(|| "no reason was given".to_owned())),
    }
}

/// A panic hook that keeps messages instead of printing them, until it is restored.
struct SilentPanics {
    previous: Box<dyn Fn(&panic::PanicHookInfo<'_>) + Send + Sync>,
    first: Arc<Mutex<Option<String>>>,
}

fn silence_panics() -> SilentPanics {
    let first = Arc::new(Mutex::new(None));
    let previous = panic::take_hook();
    let kept = first.clone();
    panic::set_hook(Box::new(move |panic| {
        let text = panic
            .payload_as_str()
            .unwrap_or_default()
            .lines()
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" ");
        // The first panic has the reason; later ones are of threads that waited for its thread.
        if let Ok(mut first) = kept.lock() {
            first.get_or_insert(text);
        }
    }));
    SilentPanics { previous, first }
}

impl SilentPanics {
    /// The message of the first panic, if there was one.
    fn restore(self) -> Option<String> {
        panic::set_hook(self.previous);
        self.first.lock().ok().and_then(|mut first| first.take()).filter(|text| !text.is_empty())
    }
}
