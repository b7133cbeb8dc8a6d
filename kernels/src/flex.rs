//! The operations on the CPU backend: loops over its memory.
use crate::{
    select::{fused_ops, names::*},
    vocabulary::budget::CPU_TILE_ELEMENTS,
};
use burn::backend::Flex;

impl KernelOps for Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;
    const TILE_ELEMENTS: usize = CPU_TILE_ELEMENTS;

    fused_ops!(cpu);
}
