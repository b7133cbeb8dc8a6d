//! The program on a graphics adapter: the recorded references, whole runs, resuming, and devices
//! that are not there.
//!
//! A software driver (Debian: mesa-vulkan-drivers) is an adapter too. Without any, tests say so and
//! pass, unless `DGPO_REQUIRE_WGPU=1`.
use crate::{
    conformance::assert_all_is_reproduced,
    gpu::{assert_the_smoke_recipe_runs, has_device},
    portability::assert_definitions_hold,
    resume::{assert_same_end, train_whole_and_killed},
    support::{Ended, World, config_json, metrics_of},
};

fn has_adapter() -> bool {
    has_device("wgpu", "DGPO_REQUIRE_WGPU")
}

#[test]
fn every_recorded_reference_number_is_reproduced() {
    if has_adapter() {
        assert_all_is_reproduced("wgpu");
    }
}

#[test]
fn the_built_in_smoke_recipe_runs_through_all_phases() {
    if has_adapter() {
        assert_the_smoke_recipe_runs("wgpu");
    }
}

#[test]
fn the_adapter_computes_what_the_definitions_say() {
    if has_adapter() {
        assert_definitions_hold("wgpu");
    }
}

/// Two devices add the same f32 terms in another order. A sum of n terms of one sign is off by some
/// sqrt(n) roundings of 6e-8, which for the longest sum of this network (976 logits) is 2e-6; a
/// mean over tokens cancels more of it. Adam's first steps divide by the gradient's size and so
/// carry an error on without making it much larger. Ten times that is allowed; 1.2e-6 was seen
/// (built-in smoke recipe, four steps).
const F32_SUMS: f64 = 2e-5;

#[test]
fn distillation_goes_as_on_the_cpu() {
    if !has_adapter() {
        return;
    }
    let world = World::new();
    let [cpu, gpu] = ["cpu", "wgpu"].map(|device| {
        world.dgpo(&["train", "--config", "kd.toml", "--name", device, "--device", device]).done();
        metrics_of(&world.path(&format!("runs/{device}")))
    });
    assert_eq!((cpu.len(), gpu.len()), (4, 4));
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        for (name, on_cpu) in cpu.iter().filter(|(_, value)| value.is_f64()) {
            let (on_cpu, on_gpu) = (on_cpu.as_f64().unwrap(), gpu[name].as_f64().unwrap());
            assert!(
                (on_cpu - on_gpu).abs() <= F32_SUMS * on_cpu.abs(),
                "{name} of step {}: {on_gpu}, on the CPU {on_cpu}",
                cpu["step"]
            );
        }
    }
}

/// Also: a second process computes the same bits.
#[test]
fn a_killed_rl_run_continues_bit_for_bit() {
    if has_adapter() {
        let world = train_whole_and_killed("rl.toml", "rl", "wgpu");
        let parts = [
            "model/model.safetensors",
            "optimizer.safetensors",
            "critic/model.safetensors",
            "critic_optimizer.safetensors",
        ];
        assert_same_end(&world, "rl", &parts);
    }
}

#[test]
fn an_adapter_that_is_not_there_is_refused_with_a_list_of_those_that_are() {
    if !has_adapter() {
        return;
    }
    let world = World::new();
    world
        .dgpo(&["train", "--config", "kd.toml", "--device", "wgpu:99"])
        .failed(2, &["there is no wgpu:99", "wgpu:0 ("]);
    assert!(!world.path("runs").exists());
}

#[test]
fn a_machine_without_a_driver_is_told_what_to_install() {
    let world = World::new();
    let mut command = world.command(&["train", "--config", "kd.toml", "--device", "wgpu"]);
    command.env("VK_DRIVER_FILES", "/no/driver.json").env("VK_ICD_FILENAMES", "/no/driver.json");
    // Where the system itself has a graphics API, the variables change nothing.
    if cfg!(target_os = "linux") {
        Ended::of(&mut command).failed(2, &["no adapter", "mesa-vulkan-drivers", "--device cpu"]);
        assert!(!world.path("runs").exists());
    }
}

#[test]
fn a_model_with_a_tensor_that_no_adapter_holds_is_refused() {
    if !has_adapter() {
        return;
    }
    let world = World::new();
    let mut config = config_json(1, 1 << 24, true);
    config["hidden_size"] = (1 << 13).into();
    world.write("student/config.json", &config.to_string());
    let refused = world.dgpo(&[
        "ask",
        "Who?",
        "--config",
        "rl.toml",
        "--set",
        "model.student=random:student",
        "--device",
        "wgpu",
    ]);
    refused.failed(2, &["random:student", "549755813888 bytes", "holds tensors up to"]);
}

#[test]
fn a_float_type_that_the_adapter_does_not_compute_in_is_refused() {
    if !has_adapter() {
        return;
    }
    let world = World::new();
    let doctor = world.dgpo(&["doctor", "--device", "wgpu"]).done().stdout;
    let computes_in = |dtype: &str| {
        doctor.lines().any(|line| line.contains("computes in") && line.contains(dtype))
    };
    assert!(computes_in("f32"), "{doctor}");
    if !computes_in("bf16") {
        let refused = world.dgpo(&[
            "train",
            "--config",
            "kd.toml",
            "--set",
            "model.dtype=bf16",
            "--device",
            "wgpu",
        ]);
        refused.failed(2, &["does not compute in bf16", "model.dtype=f32"]);
        assert!(!world.path("runs").exists());
    }
}
