#!/usr/bin/env bash
# burn-flex 0.21.0 (the CPU backend of burn): sums over the first axis lose digits with each row.
#
# They are taken in one line of f32, row after row, so an error grows with the number of rows; along a contiguous last
# axis many partial sums are kept, and it does not. Of n rows of 0.1 and of n rows of 1, as a share of the sum:
#
#               sum_dim(0) of [n, 1]    sum_dim(1) of [1, n]    ones, sum_dim(0)
#   65,536      above 1e-6              below 1e-6              right
#   4,194,304   above 1 %               below 1e-6              right
#   17,825,792                                                  16,777,216: nothing is added beyond 2^24
#
# The gradient of a bias is such a sum over all tokens of a batch, and so are those of a norm's weight and of an
# embedding that many tokens share. Summing blocks first ([n, d] as [n / 64, 64, d]) restores the digits.
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
use burn::{backend::Flex, tensor::Tensor};

/// The sum of `shape` times `value` along `dim`, and its error as a share of the sum.
fn sum(value: f32, shape: [usize; 2], dim: usize) -> (f64, f64) {
    let sum = Tensor::<Flex, 2>::full(shape, value, &Default::default()).sum_dim(dim);
    let sum = f64::from(sum.into_data().to_vec::<f32>().expect("f32")[0]);
    let exact = f64::from(value) * (shape[0] * shape[1]) as f64;
    (sum, (sum - exact).abs() / exact)
}

fn main() {
    let mut is_as_found = true;
    for (n, least) in [(1 << 16, 1e-6), (1 << 22, 1e-2)] {
        let (first, last, ones) = (sum(0.1, [n, 1], 0).1, sum(0.1, [1, n], 1).1, sum(1.0, [n, 1], 0).0);
        println!("{n:>10} {first:>10.1e} {last:>10.1e} {ones:>12}");
        is_as_found &= first > least && last < 1e-6 && ones == n as f64;
    }
    let n = (1 << 24) + (1 << 20);
    let ones = sum(1.0, [n, 1], 0).0;
    println!("{n:>10} {:>10} {:>10} {ones:>12}", "", "");
    is_as_found &= ones == f64::from(1 << 24);
    std::process::exit(i32::from(!is_as_found));
}
RUST
cargo run --quiet --manifest-path "$folder/Cargo.toml"
