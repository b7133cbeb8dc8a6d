//! What `dgpo portability` and `dgpo bench` say of this machine's CPU, and what they must say of
//! any device.
use crate::support::{Ended, World};
use serde_json::Value;

/// Every check of a report holds and every operation is in it. Timing ends after a while, so on a
/// busy machine only the first one must have been timed; the others have a speed or a reason, in
/// every float type.
fn assert_sound(ended: &Ended) {
    let report: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {ended:?}"));
    let operations = report["operations"].as_array().unwrap();
    let failed: Vec<&Value> =
        operations.iter().filter(|operation| operation["passed"] != true).collect();
    assert!(
        failed.is_empty() && report["failed"] == 0 && ended.code == Some(0),
        "{failed:?} {}",
        report["training"]
    );
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
        let of_name: Vec<&Value> =
            operations.iter().filter(|o| o["name"] == name && o["dtype"] == "f32").collect();
        let speeds: Vec<&Value> =
            of_name.iter().flat_map(|o| o["speeds"].as_array().unwrap()).collect();
        assert!(!of_name.is_empty() && (!speeds.is_empty() || name != "log_probs"), "{name}");
        assert!(
            speeds.iter().all(|speed| speed["fraction"].as_f64().unwrap() > 0.0),
            "{name}: {speeds:?}"
        );
    }
    for operation in operations {
        let is_same = |other: &&Value| {
            other["name"] == operation["name"] && other["dtype"] == operation["dtype"]
        };
        let is_timed = operations
            .iter()
            .filter(is_same)
            .any(|other| !other["speeds"].as_array().unwrap().is_empty());
        let why = report["not_timed"]
            .as_array()
            .unwrap()
            .iter()
            .find(is_same)
            .and_then(|left| left["why"].as_str());
        assert!(
            is_timed || why.is_some_and(|why| !why.is_empty()),
            "neither timed nor said why not: {operation}"
        );
    }
    assert_eq!(
        (&report["kernels"], &report["device_error"]),
        (&Value::from("fused"), &Value::Null)
    );
    assert!(report["training"].as_array().unwrap().len() >= 10);
    assert!(report["rates"]["copy_bytes_per_s"].as_f64().unwrap() > 0.0);
    assert!(report["rates"]["product_flops_per_s"]["f32"].as_f64().unwrap() > 0.0);
}

pub(crate) fn assert_definitions_hold(device: &str) {
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
    let args = [
        "bench", "kernels", "--rows", "16", "--vocab", "600", "--width", "64", "--time", "0.01",
        "--json",
    ];
    let report = World::new().dgpo(&args).json();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.iter().filter(|figure| figure["pass"] == "forward").count(), 15);
    for figure in figures {
        let is_head = figure["name"].as_str().unwrap().starts_with("linear");
        assert_eq!(figure["all_products"].is_object(), is_head, "{figure}");
        assert!(
            figure["fused"]["best"].as_f64().unwrap() > 0.0
                && figure["unfused"]["best"].as_f64().unwrap() > 0.0,
            "{figure}"
        );
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
    let names: Vec<&str> = report["figures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|figure| figure["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["rms_norm"; 2]);
    world
        .dgpo(&[&sizes[..], &["--op", "nonsense"]].concat())
        .failed(2, &["--op nonsense", "log_softmax_kl"]);
}

#[test]
fn a_peak_of_nothing_is_a_wrong_command() {
    let sizes = ["bench", "kernels", "--rows", "4", "--vocab", "64", "--width", "8"];
    World::new()
        .dgpo(&[&sizes[..], &["--peak-of", "99:fused:forward"]].concat())
        .failed(2, &["--peak-of 99:fused:forward", "hint: "]);
}

#[test]
fn bench_times_the_steps_of_the_tiny_shape_beside_the_plain_ones() {
    let (world, args) = (World::new(), ["bench", "step", "--layers", "0", "--time", "0", "--json"]);
    let report = world.dgpo(&args).json();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(
        figures.iter().map(|figure| figure["step"].as_str().unwrap()).collect::<Vec<_>>(),
        ["KD", "PPO"]
    );
    for figure in figures {
        let [fused, plain, ratio] =
            [&figure["best_ms"], &figure["plain"]["best_ms"], &figure["plain_over_fused"]]
                .map(|x| x.as_f64().unwrap());
        assert!(
            fused > 0.0 && plain > 0.0 && (ratio - plain / fused).abs() < 1e-9 * ratio,
            "{figure}"
        );
    }
    let fused_only = world.dgpo(&[&args[..], &["--without-plain"]].concat()).json();
    assert_eq!(
        (&fused_only["why_no_plain"], &fused_only["figures"][0]["plain"]),
        (&Value::from("--without-plain"), &Value::Null)
    );
}

#[test]
fn bench_times_rollouts_of_every_batch_size() {
    let world = World::new();
    let args = ["bench", "rollout", "--layers", "0", "--prompt", "4", "--time", "0", "--json"];
    let report = world.dgpo(&[&args[..], &["--batch", "2,3", "--tokens", "3"]].concat()).json();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(
        figures.iter().map(|figure| figure["n_rows"].as_u64().unwrap()).collect::<Vec<_>>(),
        [2, 3]
    );
    for figure in figures {
        for name in ["prefill_ms", "decode_step_best_ms", "decode_step_median_ms", "tokens_per_s"] {
            assert!(figure[name].as_f64().unwrap() > 0.0, "{name}: {figure}");
        }
    }
    world.dgpo(&[&args[..], &["--tokens", "1"]].concat()).failed(2, &["--tokens 1", "hint: "]);
}

#[test]
fn reference_bodies_do_not_go_unseen() {
    let world = World::new();
    let doctor = |bodies: Option<&str>| {
        let mut command = world.command(&["doctor", "--json"]);
        command.envs(bodies.map(|bodies| ("DGPO_KERNELS", bodies)));
        let report = Ended::of(&mut command).json();
        let kernels = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["name"] == "kernels")
            .cloned()
            .unwrap();
        kernels["status"].as_str().unwrap().to_owned()
    };
    assert_eq!((doctor(None), doctor(Some("reference"))), ("ok".to_owned(), "note".to_owned()));
}
