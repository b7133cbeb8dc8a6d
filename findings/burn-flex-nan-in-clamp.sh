#!/usr/bin/env bash
# burn-flex 0.21.0 (the CPU backend of burn): which operations turn NaN into a number.
#
#   clamp(-1, 1)             NaN      kept
#   clamp_min(-20)           -20      the bound instead
#   clamp_max(10)            10       the bound instead
#   relu                     0
#   max_pair(1, NaN)         1        NaN on the right is dropped,
#   max_pair(NaN, 1)         NaN      on the left it is kept
#   autodiff, clamp_min(-20) NaN      through burn-autodiff the same call is a comparison and a mask
#
# A loss that bounds its input before an exponential, as the k3 estimate of a KL divergence does, therefore reports a
# constant where its input is NaN, and only outside of a training step. Ask `is_nan` first, or add 0 or NaN to the
# result by what it says.
#
# Needs cargo and its registry. Exits 1 where the behaviour is another one than above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
burn = { version = "=0.21.0", default-features = false, features = ["std", "autodiff", "flex"] }

[workspace]
TOML
cat > "$folder/src/main.rs" <<'RUST'
use burn::{
    backend::{Autodiff, Flex},
    tensor::{Tensor, activation::relu, backend::Backend},
};

fn vector<B: Backend>(value: f32) -> Tensor<B, 1> {
    Tensor::from_data([value], &Default::default())
}

fn main() {
    let nan = || vector::<Flex>(f32::NAN);
    let recorded = vector::<Autodiff<Flex>>(f32::NAN).require_grad();
    let found = [
        ("clamp(-1, 1)", nan().clamp(-1.0, 1.0), f32::NAN),
        ("clamp_min(-20)", nan().clamp_min(-20.0), -20.0),
        ("clamp_max(10)", nan().clamp_max(10.0), 10.0),
        ("relu", relu(nan()), 0.0),
        ("max_pair(1, NaN)", vector(1.0).max_pair(nan()), 1.0),
        ("max_pair(NaN, 1)", nan().max_pair(vector(1.0)), f32::NAN),
        ("autodiff, clamp_min(-20)", recorded.clamp_min(-20.0).inner(), f32::NAN),
    ];
    let mut is_as_found = true;
    for (name, value, expected) in found {
        let value = value.into_data().to_vec::<f32>().expect("f32")[0];
        println!("{name:<25} {value}");
        is_as_found &= value == expected || value.is_nan() && expected.is_nan();
    }
    std::process::exit(i32::from(!is_as_found));
}
RUST
cargo run --quiet --manifest-path "$folder/Cargo.toml"
