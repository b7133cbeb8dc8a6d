//! A panic as an error: for the code of others on bytes from outside, and for work whose failure is
//! reported on its own.
//!
//! Files are checked before a library sees them. What those checks do not foresee ends in the
//! library's panic, and here. It is the last resort, not the check: an allocation that fails, a
//! stack that overflows and a loop that does not end are no panics.
use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Panics that became errors.
static N_CONTAINED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Does the work of a library on bytes from outside. Nothing is printed if it panics.
/// # Errors
/// Message of the panic.
pub fn contained<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_SILENT.get() {
                previous(panic);
            }
        }));
    });
    let was_silent = IS_SILENT.replace(true);
    let result = caught(work);
    IS_SILENT.set(was_silent);
    _ = N_CONTAINED.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
    result
}

/// Number of panics that [`contained`] has turned into errors in this process.
pub fn n_contained() -> usize {
    N_CONTAINED.load(Ordering::Relaxed)
}

/// Does work of our own; the panic, which is a bug, is printed as always.
/// # Errors
/// Message of the panic.
pub fn caught<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    text.unwrap_or_else(|| "it panicked without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_thread_is_loud_again() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(
            contained(|| -> i32 { panic!("index {} of 3", 5) }),
            Err("index 5 of 3".to_owned())
        );
        assert!(!IS_SILENT.get());
        // One inside another: the outer one stays silent.
        let nested = contained(|| (contained(|| -> i32 { panic!("inner") }), IS_SILENT.get()));
        assert_eq!(nested, Ok((Err("inner".to_owned()), true)));
    }
}
