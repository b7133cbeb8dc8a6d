//! The same operations in PyTorch, where there is a Python that has it: a script
//! (`xtask/torch_kernels.py`, part of the binary) that prints JSON.
//!
//! Nothing needs it: without Python or torch, or with a device torch does not reach, the figures
//! are left out.
use super::kernels::BenchSizes;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

const SCRIPT: &str = include_str!("../../../xtask/torch_kernels.py");
/// Names the interpreter.
const PYTHON: &str = "DGPO_PYTHON";

/// Output of the script.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Torch {
    /// Of torch.
    pub version: String,
    pub device: String,
    pub n_threads: usize,
    /// By operation (see `kernels::key`) and pass.
    #[serde(skip_serializing)]
    pub figures: BTreeMap<String, BTreeMap<String, TorchFigure>>,
}

/// Milliseconds of one run.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct TorchFigure {
    pub best_ms: f64,
    pub median_ms: f64,
}

/// Runs the script; why there is nothing to compare with, if so.
/// # Errors
/// A sentence: no interpreter, no torch, no such device, or a script that failed.
pub fn measure(
    sizes: BenchSizes,
    device: &str,
    dtype: &str,
    seconds: f64,
) -> Result<Torch, String> {
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let args = [sizes.n_rows, sizes.n_vocab, sizes.width].map(|n| n.to_string());
    let mut child = Command::new(&python)
        .arg("-")
        .args(&args)
        .args([device, dtype, &seconds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{python} does not start: {error}"))?;
    // A Python that ends early closes its end: its own message says more than this error.
    let _ = child.stdin.take().expect("asked for above").write_all(SCRIPT.as_bytes());
    let output = child.wait_with_output().map_err(|error| format!("{python}: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{python}: {}",
            stderr.lines().last().unwrap_or("it failed without a word")
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{python} printed something else than the figures: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_read() {
        let text = r#"{"version": "2", "device": "cpu", "n_threads": 2, "figures": {"rotary": {"forward": {"best_ms": 1.5, "median_ms": 2}}}}"#;
        let torch: Torch = serde_json::from_str(text).unwrap();
        assert_eq!(
            torch.figures["rotary"]["forward"],
            TorchFigure { best_ms: 1.5, median_ms: 2.0 }
        );
    }
}
