//! Facts of the machine: cores, instruction sets, memory. Reads /proc, which only Linux has;
//! elsewhere memory is unknown.
use std::fs;

/// Hardware threads this process may use.
pub fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// (total, available) bytes of memory.
pub fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((kilobytes(&text, "MemTotal:")?, kilobytes(&text, "MemAvailable:")?))
}

/// Bytes of memory this process holds.
pub fn resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// The instruction sets that matter to the CPU backend and this processor has.
pub fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ];
        known.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
    }
    // Every 64-bit ARM has NEON.
    #[cfg(target_arch = "aarch64")]
    {
        vec!["neon"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proc_line_is_read_in_bytes() {
        assert_eq!(kilobytes("A:  1 kB\nVmRSS:\t   2048 kB\n", "VmRSS:"), Some(2 << 20));
        assert_eq!(kilobytes("A:  1 kB\n", "VmRSS:"), None);
    }
}
