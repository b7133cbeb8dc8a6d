//! Which body of an operation runs: the backend's own, or the reference.
use std::sync::OnceLock;

/// Which bodies run in this process: "fused", or "reference" where `DGPO_KERNELS=reference` was set
/// when the first operation ran. For reports: a variable that a test left behind must not go
/// unseen.
pub fn bodies() -> &'static str {
    if is_reference_only() { "reference" } else { "fused" }
}

/// True if the environment asks for the reference bodies, looked at once.
pub fn is_reference_only() -> bool {
    #[cfg(test)]
    if reference_here::IS_ASKED_FOR.get() {
        return true;
    }
    static REFERENCE: OnceLock<bool> = OnceLock::new();
    *REFERENCE
        .get_or_init(|| std::env::var_os("DGPO_KERNELS").is_some_and(|value| value == "reference"))
}

/// The reference bodies in one test while the others run beside it.
#[cfg(test)]
pub(crate) mod reference_here {
    use std::cell::Cell;

    thread_local! {
        pub(super) static IS_ASKED_FOR: Cell<bool> = const { Cell::new(false) };
    }

    /// `f` with the reference bodies, as far as it runs on this thread.
    pub(crate) fn with_reference(f: impl FnOnce()) {
        IS_ASKED_FOR.set(true);
        f();
        IS_ASKED_FOR.set(false);
    }
}
