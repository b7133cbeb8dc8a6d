//! The `dgpo` binary: everything lives in the library.
fn main() -> std::process::ExitCode {
    keep_freed_memory();
    // Here and not in the library: cargo builds anew what reads it, and the library takes minutes.
    dgpo::cli::main(option_env!("DGPO_COMMIT"))
}

/// Makes glibc's allocator keep freed blocks of up to 32 MiB for the next allocation; no effect
/// elsewhere.
///
/// Activations and logits are freed in every step. By default the end of the heap then goes back to
/// the system and returns a page fault at a time: 2.3 of 7.9 seconds of CPU time in 60 KD steps of
/// the tiny recipe, 0.3 of 5.5 with this. Freeing a block that was mapped by itself raises the size
/// from which blocks are mapped to its own (32 MiB at most), and the free memory kept at the heap's
/// end to twice that: mallopt(3), `M_MMAP_THRESHOLD`.
fn keep_freed_memory() {
    const BELOW_THE_LIMIT: usize = (32 << 20) - (64 << 10);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(BELOW_THE_LIMIT)));
}
