//! The KV cache: owned by the caller, preallocated, one length a row (slot).
//!
//! Contract: position p of a slot holds the key (after RoPE) and value of the p-th token of that
//! slot. Only positions below the slot's length are ever read, so a dropped slot can be used again
//! at once without clearing it. New tokens are written in place behind each slot's own length; a
//! pass costs the tokens it writes and the live positions it reads, never the capacity.
//!
//! Keys are stored as the backend's attention reads them fastest (`Hardware::KEY_POSITION_DIM`),
//! values as [n_slots, K, capacity, hd]. The buffers are allocated by the first pass, in the dtype
//! of the model's keys.
use crate::{Backend, config::DecoderConfig};
use burn::tensor::Tensor;
use dgpo_kernels::{
    attention::CausalRows,
    cache_write::{CacheSpan, cache_write},
};

/// Physical capacities are a multiple of this, so that vector loads of the attention stay inside
/// the buffer of the last head.
const POSITIONS_ALIGNMENT: usize = 16;

/// Keys and values of `n_slots` sequences of up to `capacity` positions, for all layers.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    /// One entry a layer once the first pass has run; `None` while a pass holds it.
    layers: Vec<Option<LayerCache<B>>>,
    /// [n_slots] filled positions.
    lengths: Vec<usize>,
    capacity: usize,
    device: B::Device,
}

#[derive(Debug)]
struct LayerCache<B: Backend> {
    /// [n_slots, K, physical capacity, hd], or with the last two swapped.
    keys: Tensor<B, 4>,
    /// [n_slots, K, physical capacity, hd]
    values: Tensor<B, 4>,
}

impl<B: Backend> KvCache<B> {
    /// `n_slots` rows of `capacity` positions each.
    pub fn new(
        config: &DecoderConfig,
        n_slots: usize,
        capacity: usize,
        device: &B::Device,
    ) -> Self {
        let layers = (0..config.num_hidden_layers).map(|_| None).collect();
        Self { layers, lengths: vec![0; n_slots], capacity, device: device.clone() }
    }

    /// Rows that the cache holds, filled or free.
    pub fn n_slots(&self) -> usize {
        self.lengths.len()
    }

    /// Positions that a slot holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Filled positions of a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// True if no slot holds a position.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|&length| length == 0)
    }

    /// Forget positions from `len` on (0 = drop the row; the slot may be used again at once). A
    /// slot that is shorter stays as it is.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        self.lengths[slot] = self.lengths[slot].min(len);
    }

    /// Bytes held on the device (0 before the first pass).
    pub fn size_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor<B, 4>| tensor.shape().num_elements() * tensor.dtype().size();
        self.layers.iter().flatten().map(|layer| bytes(&layer.keys) + bytes(&layer.values)).sum()
    }

    /// Writes the new keys and values of one layer behind the slots' lengths and returns all of
    /// that layer, as attention takes them. k, v `[B, K, T, hd]` -> [n_slots, K, physical capacity,
    /// hd] twice.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        spans: &[CacheSpan],
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        // Taken out, so that each tensor has one owner and is written in place.
        let LayerCache { keys, values } =
            self.layers[layer].take().unwrap_or_else(|| self.allocate(&k));
        let keys = cache_write(keys, k, spans, B::KEY_POSITION_DIM);
        let values = cache_write(values, v, spans, 2);
        self.layers[layer] = Some(LayerCache { keys: keys.clone(), values: values.clone() });
        (keys.swap_dims(2, B::KEY_POSITION_DIM), values)
    }

    fn allocate(&self, k: &Tensor<B, 4>) -> LayerCache<B> {
        let [_, n_kv_heads, _, head_dim] = k.dims();
        let capacity = self.capacity.next_multiple_of(POSITIONS_ALIGNMENT);
        let values = [self.n_slots(), n_kv_heads, capacity, head_dim];
        let mut keys = values;
        keys.swap(2, B::KEY_POSITION_DIM);
        let zeros = |shape: [usize; 4]| Tensor::zeros(shape, (&self.device, k.dtype()));
        LayerCache { keys: zeros(keys), values: zeros(values) }
    }
}

/// Which slots the rows of a forward pass belong to, and how many of the (right-padded) columns of
/// each row are real.
#[derive(Debug)]
pub struct CacheRows<'a, B: Backend> {
    /// The cache that is read and written.
    pub cache: &'a mut KvCache<B>,
    /// `[B]` slot of each row; distinct.
    pub slots: &'a [usize],
    /// `[B]` number of real new tokens of each row, 1..=T. After the pass the slot's length has
    /// grown by this.
    pub n_new: &'a [usize],
}

impl<B: Backend> CacheRows<'_, B> {
    /// Place of each row's new tokens.
    /// # Panics
    /// When slots repeat or do not exist, or a row does not fit into its slot (a bug of the
    /// caller).
    pub(crate) fn spans(&self, n_rows: usize, n_columns: usize) -> Vec<CacheSpan> {
        assert!(
            self.slots.len() == n_rows && self.n_new.len() == n_rows,
            "one slot and one count a row of {n_rows}"
        );
        let mut is_used = vec![false; self.cache.n_slots()];
        self.slots
            .iter()
            .zip(self.n_new)
            .map(|(&slot, &n)| {
                assert!(!std::mem::replace(&mut is_used[slot], true), "slot {slot} is named twice");
                let start = self.cache.len(slot);
                assert!((1..=n_columns).contains(&n), "{n} new tokens in {n_columns} columns");
                assert!(
                    start + n <= self.cache.capacity,
                    "slot {slot}: {start} + {n} positions exceed {}",
                    self.cache.capacity
                );
                CacheSpan { slot, start, n }
            })
            .collect()
    }

    /// Keys that each row's queries see: the slot's positions before them and the new ones up to
    /// themselves.
    pub(crate) fn causal_rows(spans: &[CacheSpan]) -> CausalRows {
        let slots = Some(spans.iter().map(|span| span.slot).collect());
        CausalRows { starts: spans.iter().map(|span| span.start).collect(), slots, lengths: None }
    }

    /// Makes the new tokens count, once all layers have written them.
    pub(crate) fn commit(&mut self, spans: &[CacheSpan]) {
        for span in spans {
            self.cache.lengths[span.slot] = span.start + span.n;
        }
    }
}
