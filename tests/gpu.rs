//! What the tests on graphics devices share.
use crate::support::World;

/// Whether the program finds the device. Without one a test says so and passes, unless the
/// environment variable is 1.
pub(crate) fn has_device(device: &str, variable: &str) -> bool {
    let found = World::new().dgpo(&["doctor", "--device", device]).code == Some(0);
    let is_required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(found || !is_required, "{variable}=1 and there is no {device} device");
    if !found {
        dgpo_core::testing::skipped(&format!("there is no {device} device"));
    }
    found
}

pub(crate) fn assert_the_smoke_recipe_runs(device: &str) {
    let summary = World::new()
        .dgpo(&["train", "--config", "smoke", "--name", "smoke", "--device", device, "--json"])
        .json();
    let em = |model: &str| {
        summary[model]["em"]
            .as_f64()
            .unwrap_or_else(|| panic!("no exact match of {model} in {summary:#}"))
    };
    // The teacher answers nearly every question: what it says is not noise.
    assert!(em("teacher") > 0.8, "{summary:#}");
    assert!(["student", "kd", "rl"].map(em).iter().all(|em| (0.0..=1.0).contains(em)));
}
