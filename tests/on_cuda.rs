//! The program on a CUDA device: the recorded references, a whole small run, resuming, and what
//! `dgpo portability` says.
//!
//! Without a device, tests say so and pass, unless `DGPO_REQUIRE_CUDA=1`.
use crate::{
    conformance::assert_all_is_reproduced,
    gpu::{assert_the_smoke_recipe_runs, has_device},
    portability::assert_definitions_hold,
    resume::{assert_same_end, train_whole_and_killed},
};

fn has_cuda() -> bool {
    has_device("cuda", "DGPO_REQUIRE_CUDA")
}

#[test]
fn every_recorded_reference_number_is_reproduced() {
    if has_cuda() {
        assert_all_is_reproduced("cuda");
    }
}

#[test]
fn the_built_in_smoke_recipe_runs_through_all_phases() {
    if has_cuda() {
        assert_the_smoke_recipe_runs("cuda");
    }
}

/// Also: a second process computes the same bits.
#[test]
fn a_killed_rl_run_continues_bit_for_bit() {
    if has_cuda() {
        let world = train_whole_and_killed("rl.toml", "rl", "cuda");
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
fn the_device_computes_what_the_definitions_say() {
    if has_cuda() {
        assert_definitions_hold("cuda");
    }
}
