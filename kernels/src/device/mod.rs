//! Properties of backend and device that operations ask for, beyond burn's trait.
#[cfg(feature = "cube")]
mod cube;

use burn::{
    backend::{
        Flex,
        autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
    },
    tensor::{Device, backend::Backend},
};

/// Elements of a tile of logits on the CPU, 16 MiB: the products are large enough to run at full
/// speed, and the tile is read back from the last-level cache where there is one.
pub(crate) const CPU_TILE_ELEMENTS: usize = 1 << 22;
/// And on GPUs, 128 MiB.
pub(crate) const GPU_TILE_ELEMENTS: usize = 1 << 25;

/// Preferences of a backend for its tensors, and facts of its device. The defaults suit a GPU.
pub trait Hardware: Backend {
    /// The dimension of a key cache along which positions run: 2 for [n_slots, K, capacity, hd], 3
    /// for [n_slots, K, hd, capacity].
    const KEY_POSITION_DIM: usize = 2;
    /// Tokens that are best worked on together when more could be: a processor wants a layer's
    /// activations to stay in its caches, a GPU wants all.
    const TOKENS_AT_ONCE: usize = usize::MAX;
    /// Elements of a tile of logits (`vocabulary/budget.rs`).
    const TILE_ELEMENTS: usize = GPU_TILE_ELEMENTS;

    /// The largest tensor that the device can hold, in bytes; `None` where memory alone is the
    /// limit. (A tensor is one buffer, and graphics APIs limit buffers.)
    fn max_tensor_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Facts of the device, in its own words.
    fn device_facts(device: &Device<Self>) -> DeviceFacts {
        DeviceFacts { runtime: Self::name(device), ..DeviceFacts::default() }
    }

    /// Bytes that the backend holds on the device, its free pages included unless they are given
    /// back first. `None` where nobody counts.
    fn reserved_bytes(_device: &Device<Self>, _give_back_first: bool) -> Option<u64> {
        None
    }
}

/// Facts about a device in words, for a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// burn's name of the backend.
    pub runtime: String,
    /// Abilities of the device, or what is done instead.
    pub features: Vec<(&'static str, String)>,
    /// Limits of sizes.
    pub limits: Vec<(&'static str, u64)>,
}

impl Hardware for Flex {
    const KEY_POSITION_DIM: usize = 3;
    const TOKENS_AT_ONCE: usize = 1024;
    const TILE_ELEMENTS: usize = CPU_TILE_ELEMENTS;
}

impl<B: Hardware, C: CheckpointStrategy> Hardware for Autodiff<B, C> {
    const KEY_POSITION_DIM: usize = B::KEY_POSITION_DIM;
    const TILE_ELEMENTS: usize = B::TILE_ELEMENTS;
}
