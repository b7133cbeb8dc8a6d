//! The operations on the CPU backend: loops over its memory.
use crate::select::{fused_ops, names::*};
use burn::backend::Flex;

impl KernelOps for Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;

    fused_ops!(cpu);
}
