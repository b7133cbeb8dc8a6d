//! The KV cache: owned by the caller, preallocated, one length a row (slot).
use crate::{Backend, config::DecoderConfig};

/// Slot j of a row holds the key and value of position j.
pub struct KvCache<B: Backend> {
    _b: std::marker::PhantomData<B>,
}

impl<B: Backend> KvCache<B> {
    /// `n_slots` rows of `capacity` positions each.
    pub fn new(_config: &DecoderConfig, _n_slots: usize, _capacity: usize, _device: &B::Device) -> Self {
        todo!()
    }
    pub fn n_slots(&self) -> usize {
        todo!()
    }
    pub fn capacity(&self) -> usize {
        todo!()
    }
    /// Filled positions of a slot.
    pub fn len(&self, _slot: usize) -> usize {
        todo!()
    }
    /// Forget positions from `len` on (0 = drop the row; the slot may be used again at once).
    pub fn truncate(&mut self, _slot: usize, _len: usize) {
        todo!()
    }
    /// Bytes held on the device.
    pub fn size_bytes(&self) -> usize {
        todo!()
    }
}

/// Which slots the rows of a forward pass belong to, and how many of the (right-padded) columns of each row are real.
pub struct CacheRows<'a, B: Backend> {
    pub cache: &'a mut KvCache<B>,
    /// [B] slot of each row; distinct.
    pub slots: &'a [usize],
    /// [B] number of real new tokens of each row, 1..=T. After the pass the slot's length has grown by this.
    pub n_new: &'a [usize],
}
