//! Keys and values as the loops read them: in place where they lie so already, else packed.
use crate::cpu::{CpuTensor, Elements, LANES, Widen, strides};

/// Keys or values [B or n_slots, K, Tk, hd] in the type they are stored in.
pub(super) struct Heads<'a> {
    elements: Elements<'a>,
    pub shape: [usize; 4],
    strides: [usize; 4],
}

/// The keys of one head as [hd, at least the keys rounded up to whole vectors]; what lies behind
/// the last key is never used.
pub(super) struct Transposed<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Vectors of one head, `stride` elements apart.
pub(super) struct Values<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Heads<'a> {
    pub(super) fn new(tensor: &'a CpuTensor) -> Self {
        Self {
            elements: Elements::new(tensor),
            shape: tensor.layout().shape().dims(),
            strides: strides(tensor),
        }
    }

    /// The first `n` vectors of head j of row b as [hd, n]: in place where they are f32 and stored
    /// so, else packed.
    #[inline(always)]
    pub(super) fn transposed<'s>(
        &'s self,
        b: usize,
        j: usize,
        n: usize,
        packed: &'s mut Vec<f32>,
    ) -> Transposed<'s> {
        let [row, head, position, dim] = self.strides;
        let (head_dim, width, base) =
            (self.shape[3], n.next_multiple_of(LANES), b * row + j * head);
        if let (Elements::F32(data), true) = (self.elements, position == 1 && dim >= width) {
            return Transposed { data: &data[base..], stride: dim };
        }
        packed.resize(head_dim * width, 0.0);
        self.pack(base, [dim, position], [head_dim, n], width, packed);
        Transposed { data: packed, stride: width }
    }

    /// The same vectors one after the other: in place where they are f32 and their elements lie
    /// side by side, else packed.
    #[inline(always)]
    pub(super) fn vectors<'s>(
        &'s self,
        b: usize,
        j: usize,
        n: usize,
        packed: &'s mut Vec<f32>,
    ) -> Values<'s> {
        let [row, head, position, dim] = self.strides;
        let (head_dim, base) = (self.shape[3], b * row + j * head);
        if let (Elements::F32(data), 1) = (self.elements, dim) {
            return Values { data: &data[base..], stride: position };
        }
        packed.resize(n * head_dim, 0.0);
        self.pack(base, [position, dim], [n, head_dim], head_dim, packed);
        Values { data: packed, stride: head_dim }
    }

    #[inline(always)]
    fn pack(
        &self,
        base: usize,
        strides: [usize; 2],
        shape: [usize; 2],
        width: usize,
        out: &mut [f32],
    ) {
        match self.elements {
            Elements::F32(data) => pack(&data[base..], strides, shape, width, out),
            Elements::F16(data) => pack(&data[base..], strides, shape, width, out),
            Elements::Bf16(data) => pack(&data[base..], strides, shape, width, out),
        }
    }
}

/// out\[i\]\[s\] = data\[i strides_0 + s strides_1\] over the shape, in the order in which memory
/// runs; rows of `out` are `width` apart.
#[inline(always)]
fn pack<T: Widen>(
    data: &[T],
    strides: [usize; 2],
    [n_rows, n]: [usize; 2],
    width: usize,
    out: &mut [f32],
) {
    if strides[1] == 1 {
        for i in 0..n_rows {
            for (out, x) in out[i * width..][..n].iter_mut().zip(&data[i * strides[0]..][..n]) {
                *out = x.widen();
            }
        }
    } else {
        for s in 0..n {
            for i in 0..n_rows {
                out[i * width + s] = data[i * strides[0] + s * strides[1]].widen();
            }
        }
    }
}
