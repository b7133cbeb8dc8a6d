//! Peak extra memory of an operation: what it takes beyond its inputs.
//!
//! On the CPU backend in a process of its own: the growth of the resident set's high-water mark
//! (Linux) over one run, inputs in place, so that nothing freed by earlier work is used again
//! unseen. On GPU runtimes the growth of what the runtime holds on the device: pages of its pools,
//! more than the tensors themselves.
use burn::tensor::{DType, Device};
use dgpo_kernels::{
    KernelOps,
    suite::{
        Op,
        timed::{Body, Pass, prepare},
    },
};
use serde::{Deserialize, Serialize};
use std::fs;

/// Method by which a peak was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    ResidentSet,
    DevicePages,
}

/// Bytes at the peak above those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    pub bytes: u64,
    pub method: Method,
}

/// The peak of one run, the first in this process as far as the operation is concerned. `None`
/// where there is no such body, or nobody counts.
pub fn peak<B: KernelOps>(
    op: &Op,
    dtype: DType,
    body: Body,
    pass: Pass,
    is_cpu: bool,
    device: &Device<B>,
) -> Option<Peak> {
    let mut job = prepare::<B>(op, dtype, body, pass, device)?;
    dgpo_kernels::suite::probes::wait_for::<B>(device);
    if is_cpu {
        // Writing 5 sets the high-water mark back to what is resident now.
        fs::write("/proc/self/clear_refs", "5").ok()?;
        let before = status_bytes("VmHWM:")?;
        job();
        return Some(Peak {
            bytes: status_bytes("VmHWM:")?.saturating_sub(before),
            method: Method::ResidentSet,
        });
    }
    let before = B::reserved_bytes(device, true)?;
    job();
    Some(Peak {
        bytes: B::reserved_bytes(device, false)?.saturating_sub(before),
        method: Method::DevicePages,
    })
}

/// A line of this process's status, in bytes.
fn status_bytes(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
