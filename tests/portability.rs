//! What `dgpo portability` and `dgpo bench` say of this machine's CPU, and what they must say of any device.
use crate::support::{Ended, World};
use serde_json::Value;

/// Every check of a report holds and every operation is in it. Timing ends after a while, so on a busy machine only the first one must have been timed.
fn assert_sound(ended: &Ended) {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {ended:?}"));
    let operations = report["operations"].as_array().unwrap();
    let failed: Vec<&Value> = operations.iter().filter(|operation| operation["passed"] != true).collect();
    assert!(failed.is_empty() && report["failed"] == 0 && ended.code == Some(0), "{failed:?} {}", report["training"]);
    for name in [
        "log_probs",
        "log_softmax_kl",
        "linear_log_probs",
        "linear_kl",
        "rms_norm",
        "rotary",
        "swiglu",
        "erf_gelu",
        "attention",
        "attention, decode",
        "cache_write",
        "sample",
    ] {
        let of_name: Vec<&Value> = operations.iter().filter(|o| o["name"] == name && o["dtype"] == "f32").collect();
        let speeds: Vec<&Value> = of_name.iter().flat_map(|o| o["speeds"].as_array().unwrap()).collect();
        assert!(!of_name.is_empty() && (!speeds.is_empty() || name != "log_probs"), "{name}");
        assert!(speeds.iter().all(|speed| speed["fraction"].as_f64().unwrap() > 0.0), "{name}: {speeds:?}");
    }
    assert!(report["training"].as_array().unwrap().len() >= 10);
    assert!(report["rates"]["copy_bytes_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["rates"]["product_flops_per_s"]["f32"].as_f64().unwrap() > 0.0);
}

pub fn assert_definitions_hold(device: &str) {
    assert_sound(&World::new().dgpo(&["portability", "--device", device, "--json"]));
}

#[test]
fn the_cpu_computes_what_the_definitions_say() {
    assert_definitions_hold("cpu");
}

#[test]
fn a_device_that_is_not_built_in_is_a_wrong_command() {
    if !cfg!(feature = "cuda") {
        let ended = World::new().dgpo(&["portability", "--device", "cuda"]);
        assert!(ended.code == Some(2) && ended.stderr.contains("hint: "), "{ended:?}");
    }
}

#[test]
fn bench_puts_every_operation_beside_what_it_replaces() {
    let args = ["bench", "kernels", "--rows", "16", "--vocab", "600", "--width", "64", "--time", "0.01", "--json"];
    let report = World::new().dgpo(&args).json();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.iter().filter(|figure| figure["pass"] == "forward").count(), 15);
    for figure in figures {
        let is_head = figure["name"].as_str().unwrap().starts_with("linear");
        assert_eq!(figure["all_products"].is_object(), is_head, "{figure}");
        assert!(figure["fused"]["best"].as_f64().unwrap() > 0.0 && figure["unfused"]["best"].as_f64().unwrap() > 0.0, "{figure}");
        if cfg!(target_os = "linux") {
            assert_eq!(figure["fused_peak"]["method"], "resident_set", "{figure}");
        }
    }
}

#[test]
fn bench_times_one_operation_where_one_is_named() {
    let world = World::new();
    let sizes = ["bench", "kernels", "--rows", "4", "--vocab", "64", "--width", "8", "--time", "0"];
    let report = world.dgpo(&[&sizes[..], &["--op", "rms", "--json"]].concat()).json();
    let names: Vec<&str> = report["figures"].as_array().unwrap().iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["rms_norm"; 2]);
    world.dgpo(&[&sizes[..], &["--op", "nonsense"]].concat()).failed(2, &["--op nonsense", "log_softmax_kl"]);
}

#[test]
fn bench_times_the_steps_of_the_tiny_shape() {
    let report = World::new().dgpo(&["bench", "step", "--layers", "0", "--time", "0", "--json"]).json();
    let steps: Vec<&str> = report["figures"].as_array().unwrap().iter().map(|figure| figure["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["KD", "PPO"]);
}
