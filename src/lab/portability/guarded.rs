//! A piece of work whose failure is its own: a panic, and an error that the device reports late,
//! become a message.
//!
//! A GPU is given work and computes it later; what it could not do is said at the next wait,
//! whoever waits. So everything that is reported on its own is waited for on its own.
use burn::tensor::Device;
use dgpo_core::contained::caught;
use dgpo_models::Backend;
use dgpo_run::devices::{self, DeviceError};

/// Does the work and waits for the device.
/// # Errors
/// Message of a panic, or of the device about what it could not do.
pub(super) fn guarded<B: Backend, R>(
    device: &Device<B>,
    work: impl FnOnce() -> R,
) -> Result<R, String> {
    let wait = || {
        devices::check::<B>(device).map_err(|error| match error {
            // Without the advice for a training run.
            DeviceError::Failed(why) => format!("the device failed: {why}"),
            other => other.to_string(),
        })
    };
    work_and_wait(work, wait)
}

/// Waits behind a panic too: what it left behind must not be blamed on the next piece of work.
fn work_and_wait<R>(
    work: impl FnOnce() -> R,
    wait: impl FnOnce() -> Result<(), String>,
) -> Result<R, String> {
    let result = caught(work);
    let late = caught(wait).and_then(|waited| waited);
    result.and_then(|value| late.map(|()| value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_the_device_reports_late_is_that_of_the_work_before() {
        assert_eq!(work_and_wait(|| 7, || Ok(())), Ok(7));
        assert_eq!(
            work_and_wait(|| 7, || Err("no memory".to_owned())),
            Err("no memory".to_owned())
        );
        assert_eq!(work_and_wait(|| 7, || panic!("lost")), Err("lost".to_owned()));
    }

    #[test]
    fn a_panic_says_more_than_what_it_left_behind_and_that_is_waited_for() {
        let mut has_waited = false;
        let result = work_and_wait(
            || -> i32 { panic!("no {}", "kernel") },
            || {
                has_waited = true;
                Err("it is a consequence".to_owned())
            },
        );
        assert_eq!((result, has_waited), (Err("no kernel".to_owned()), true));
    }
}
