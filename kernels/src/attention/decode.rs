//! Attention of a few new queries over a cache, on a CubeCL runtime: the decode step.
//!
//! A cube takes (row, kv head, part of the positions), reads each key and value of its part once,
//! where it lies, and uses it for all H / K heads of the group and all new queries. It leaves
//! softmax-weighted values and ln(sum of exponentials) of its part; a second, small kernel joins
//! the parts:
//!
//! ```text
//! o = sum over parts of w o_part,    w = exp(l_part - max l) / sum of the same
//! ```
//!
//! Inside a tile of positions, units first are positions (each computes the scores of `N`
//! neighbours: the keys lie with positions side by side, so loads are coalesced and no score needs
//! a sum across units), then elements of the output (the values lie with elements side by side).
#![allow(clippy::too_many_arguments, reason = "a launch has one argument a buffer and scalar")]
use super::{
    chunks::row_table,
    softmax::{ROW_NUMBERS, SLOT, n_visible},
};
use crate::{
    cube::{
        ElementCubes, MAX_ROUNDS, addresses, empty,
        numbers::{finite, is_bad, poison},
        row_cubes,
    },
    nan::LOG_ZERO,
    types::CausalRows,
};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Heads of a group times new queries at most; beyond it matrix products are the better tool.
const MAX_ROWS: usize = 16;
/// Units of a cube.
const UNITS: usize = 64;
/// Numbers that a unit keeps for the scores of its positions, and as many for its part of the
/// output.
const MAX_REGISTERS: usize = 64;
/// Bytes that a unit loads at once at least, where strides allow it: less wastes the width of the
/// loads.
const MIN_LOAD_BYTES: usize = 4;
/// Cubes that fill a large GPU: positions are split and tiles are made smaller until there are so
/// many.
const WANTED_CUBES: usize = 1024;
/// Rounds of a unit's loops before the first tile and behind the last one, at most.
const ROUNDS_AROUND: usize = 4096;

/// Parameters that a decode kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sizes {
    n_kv_heads: usize,
    /// Query heads that share a kv head.
    group: usize,
    n_queries: usize,
    head_dim: usize,
    units: usize,
}

impl Sizes {
    /// Rounds of a unit's loops at one tile: elements of a key, then its share of the positions,
    /// the meeting between them, and the tile's own.
    fn rounds_of_tile(&self, vector_size: usize) -> usize {
        let strips = self.units * vector_size / self.head_dim;
        self.head_dim
            + (self.units * vector_size).div_ceil(strips)
            + self.units.ilog2() as usize
            + 2
    }
}

/// Attention over positions part * part_len.. of each row's slot, one cube a (row, kv head, part).
/// q `[B, H, Tq, hd]`, k and v [n_slots, K, capacity, hd] -> out [B, K, parts, (H / K) Tq, hd],
/// log_sums [B, K, parts, (H / K) Tq].
#[cube(launch, address_type = "dynamic")]
fn attend_parts<F: Float, O: Float, N: Size>(
    q: &Tensor<F>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    rows: &Tensor<u32>,
    out: &mut Tensor<O>,
    log_sums: &mut Tensor<f32>,
    n_cubes: usize,
    n_parts: usize,
    part_len: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(F, O)] _types: [StorageType; 2],
) {
    let units = comptime![sizes.units];
    let head_dim = comptime![sizes.head_dim];
    let n_queries = comptime![sizes.n_queries];
    let group = comptime![sizes.group];
    let n_rows = comptime![sizes.group * sizes.n_queries];
    let width = N::value();
    let tile = comptime![units * width];
    let lanes = comptime![head_dim / width];
    let strips = comptime![units / lanes];

    let mut queries = SharedMemory::<f32>::new(n_rows * head_dim);
    let mut weights = SharedMemory::<f32>::new(n_rows * tile);
    let mut meeting = SharedMemory::<f32>::new(n_rows * units);
    let cube = CUBE_POS;
    if cube < n_cubes {
        let unit = UNIT_POS_X as usize;
        let pair = cube / n_parts;
        let b = pair / sizes.n_kv_heads;
        let j = pair % sizes.n_kv_heads;
        let slot = usize::cast_from(rows[b * ROW_NUMBERS + SLOT]);
        let from = cube % n_parts * part_len;
        let to = min(from + part_len, n_visible(rows, b, n_queries - 1));
        let k_base = slot * k.stride(0) + j * k.stride(1);
        let v_base = slot * v.stride(0) + j * v.stride(1);
        let (k_stride, v_stride) = (k.stride(3), v.stride(2));

        let mut i = unit;
        while i < n_rows * head_dim {
            let row = i / head_dim;
            let head = j * group + row / n_queries;
            let at = b * q.stride(0)
                + head * q.stride(1)
                + row % n_queries * q.stride(2)
                + i % head_dim * q.stride(3);
            queries[i] = f32::cast_from(q[at]) * scale;
            i += units;
        }
        let mut largest = Array::<f32>::new(n_rows);
        let mut sums = Array::<f32>::new(n_rows);
        let mut values = Array::<Vector<f32, N>>::new(n_rows);
        let mut scores = Array::<Vector<f32, N>>::new(n_rows);
        #[unroll]
        for m in 0..n_rows {
            largest[m] = f32::new(LOG_ZERO);
            sums[m] = f32::new(0.0);
            values[m] = Vector::new(0.0f32);
        }
        sync_cube();

        let lane = unit % lanes;
        let strip = unit / lanes;
        let mut tile_start = from;
        while tile_start < to {
            // Units are positions.
            let position = tile_start + unit * width;
            #[unroll]
            for m in 0..n_rows {
                scores[m] = Vector::new(0.0f32);
            }
            if position < to {
                for d in 0..head_dim {
                    let key =
                        Vector::<f32, N>::cast_from(k[(k_base + d * k_stride + position) / width]);
                    #[unroll]
                    for m in 0..n_rows {
                        scores[m] = scores[m] + key * Vector::new(queries[m * head_dim + d]);
                    }
                }
            }
            #[unroll]
            for m in 0..n_rows {
                let visible = min(n_visible(rows, b, m % n_queries), to);
                let mine = scores[m];
                let mut bad = 0u32;
                let mut best = f32::new(LOG_ZERO);
                #[unroll]
                for i in 0..width {
                    let x = mine[i];
                    let is_visible = position + i < visible;
                    let z = select(is_visible, finite(x), f32::new(LOG_ZERO));
                    bad = max(bad, select(is_visible, is_bad(x), 0u32));
                    best = max(best, z);
                    weights[m * tile + unit * width + i] = z;
                }
                meeting[m * units + unit] = best;
                sums[m] = sums[m] + poison(bad);
            }
            sync_cube();
            let half = RuntimeCell::<usize>::new(units / 2);
            while half.read() > 0 {
                let h = half.read();
                if unit < h {
                    #[unroll]
                    for m in 0..n_rows {
                        let at = m * units + unit;
                        meeting[at] = max(meeting[at], meeting[at + h]);
                    }
                }
                sync_cube();
                half.store(h / 2);
            }
            #[unroll]
            for m in 0..n_rows {
                let now = max(largest[m], meeting[m * units]);
                let r = (largest[m] - now).exp();
                let mut sum = sums[m] * r;
                #[unroll]
                for i in 0..width {
                    let at = m * tile + unit * width + i;
                    let z = weights[at];
                    let e = select(z > LOG_ZERO, (z - now).exp(), f32::new(0.0));
                    weights[at] = e;
                    sum += e;
                }
                sums[m] = sum;
                values[m] = values[m] * Vector::new(r);
                largest[m] = now;
            }
            sync_cube();
            // Units are elements of the output, strips of them take turns at the positions.
            if strip < strips {
                let end = min(tile_start + tile, to);
                let mut position = tile_start + strip;
                while position < end {
                    let value = Vector::<f32, N>::cast_from(
                        v[(v_base + position * v_stride) / width + lane],
                    );
                    #[unroll]
                    for m in 0..n_rows {
                        values[m] = values[m]
                            + value * Vector::new(weights[m * tile + position - tile_start]);
                    }
                    position += strips;
                }
            }
            sync_cube();
            tile_start += tile;
        }

        #[unroll]
        for m in 0..n_rows {
            meeting[m * units + unit] = sums[m];
            let mine = values[m];
            if strip < strips {
                #[unroll]
                for i in 0..width {
                    weights[(m * strips + strip) * head_dim + lane * width + i] = mine[i];
                }
            }
        }
        sync_cube();
        let half = RuntimeCell::<usize>::new(units / 2);
        while half.read() > 0 {
            let h = half.read();
            if unit < h {
                #[unroll]
                for m in 0..n_rows {
                    let at = m * units + unit;
                    meeting[at] = meeting[at] + meeting[at + h];
                }
            }
            sync_cube();
            half.store(h / 2);
        }
        let mut i = unit;
        while i < n_rows * head_dim {
            let row = i / head_dim;
            let mut total = f32::new(0.0);
            for s in 0..strips {
                total += weights[(row * strips + s) * head_dim + i % head_dim];
            }
            let sum = meeting[row * units];
            // A part without a visible position has no weight; a row without one, or with a bad
            // score, has no result.
            let is_empty = select(sum > 0.0, 0u32, 1u32);
            let nan = poison(max(is_bad(sum), select(n_parts == 1, is_empty, 0u32)));
            out[cube * n_rows * head_dim + i] =
                O::cast_from(select(sum > 0.0, total / sum, f32::new(0.0)) + nan);
            i += units;
        }
        #[unroll]
        for m in 0..n_rows {
            if unit == 0 {
                let sum = meeting[m * units];
                log_sums[cube * n_rows + m] =
                    select(sum > 0.0, largest[m] + sum.ln(), f32::new(LOG_ZERO))
                        + poison(is_bad(sum));
            }
        }
    }
}

/// The parts of each row joined, one unit an element of out [B, K, (H / K) Tq, hd].
#[cube(launch)]
fn join_parts<F: Float>(
    parts: &Tensor<f32>,
    log_sums: &Tensor<f32>,
    out: &mut Tensor<F>,
    n: usize,
    n_parts: usize,
    n_rows: usize,
    head_dim: usize,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let row = i / head_dim % n_rows;
        let first = i / head_dim / n_rows * n_parts * n_rows + row;
        let mut bad = 0u32;
        let mut largest = f32::new(LOG_ZERO);
        for part in 0..n_parts {
            let x = log_sums[first + part * n_rows];
            bad = max(bad, is_bad(x));
            largest = max(largest, x);
        }
        let mut weight = f32::new(0.0);
        let mut total = f32::new(0.0);
        for part in 0..n_parts {
            let x = log_sums[first + part * n_rows];
            let w = select(x > LOG_ZERO, (x - largest).exp(), f32::new(0.0));
            weight += w;
            total += w * parts[(first + part * n_rows) * head_dim + i % head_dim];
        }
        let nan = poison(max(bad, select(weight > 0.0, 0u32, 1u32)));
        out[i] = F::cast_from(total / weight + nan);
    }
}

/// Partition of a decode step into cubes.
pub(super) struct DecodePlan {
    sizes: Sizes,
    vector_size: usize,
    n_parts: usize,
    part_len: usize,
}

impl DecodePlan {
    /// `None` where the kernel does not fit: many queries, or keys whose positions do not lie side
    /// by side.
    pub(super) fn new<R: CubeRuntime>(
        q: &CubeTensor<R>,
        k: &CubeTensor<R>,
        v: &CubeTensor<R>,
        rows: &CausalRows,
    ) -> Option<Self> {
        let [n_rows, n_heads, n_queries, head_dim] = q.shape().dims();
        let [_, n_kv_heads, n_keys, _] = k.shape().dims();
        let (k_strides, v_strides) = (k.meta.strides(), v.meta.strides());
        let group = n_heads / n_kv_heads;
        let n_query_rows = group * n_queries;
        let is_small = (1..=MAX_ROWS).contains(&n_query_rows) && n_rows > 0;
        if !is_small
            || k_strides[2] != 1
            || v_strides[3] != 1
            || k.dtype != q.dtype
            || v.dtype != q.dtype
        {
            return None;
        }
        let n_live =
            (0..n_rows).map(|b| (rows.starts[b] + n_queries).min(rows.n_keys(b, n_keys))).max()?;
        let n_pairs = n_rows * n_kv_heads;
        let hardware = &k.client.properties().hardware;
        let units = |width: usize| (head_dim / width).next_power_of_two().max(UNITS);
        let fits = |&width: &usize| {
            let strides = [
                k_strides[0],
                k_strides[1],
                k_strides[3],
                v_strides[0],
                v_strides[1],
                v_strides[2],
            ];
            let shared = n_query_rows * (units(width) * (width + 1) + head_dim) * DType::F32.size();
            head_dim.is_multiple_of(width)
                && strides.iter().all(|stride| stride.is_multiple_of(width))
                && n_query_rows * width <= MAX_REGISTERS
                && units(width) <= hardware.max_cube_dim.0 as usize
                && shared <= hardware.max_shared_memory_size
        };
        let mut widths: Vec<usize> =
            k.client.io_optimized_vector_sizes(k.dtype.size()).filter(fits).collect();
        if widths.iter().any(|width| width * k.dtype.size() >= MIN_LOAD_BYTES) {
            widths.retain(|width| width * k.dtype.size() >= MIN_LOAD_BYTES);
        }
        let n_tiles = |width: usize| n_live.div_ceil(units(width) * width);
        let is_enough = |&&width: &&usize| n_pairs * n_tiles(width) >= WANTED_CUBES;
        let &vector_size = widths.iter().find(is_enough).or(widths.last())?;
        let n_parts = WANTED_CUBES.div_ceil(n_pairs).min(n_tiles(vector_size));
        let sizes = Sizes { n_kv_heads, group, n_queries, head_dim, units: units(vector_size) };
        Some(Self::cut(sizes, vector_size, n_live, n_parts))
    }

    /// About `n_parts` parts of whole tiles; more where a unit would walk further than
    /// [`MAX_ROUNDS`] in one.
    fn cut(sizes: Sizes, vector_size: usize, n_live: usize, n_parts: usize) -> Self {
        let tile = sizes.units * vector_size;
        let longest = (MAX_ROUNDS - ROUNDS_AROUND) / sizes.rounds_of_tile(vector_size) * tile;
        let part_len = n_live.div_ceil(n_parts).next_multiple_of(tile).min(longest);
        Self { sizes, vector_size, n_parts: n_live.div_ceil(part_len), part_len }
    }
}

/// `[B, H, Tq, hd]` as planned.
pub(super) fn forward<R: CubeRuntime>(
    plan: &DecodePlan,
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    rows: &CausalRows,
) -> CubeTensor<R> {
    let DecodePlan { sizes, vector_size, n_parts, part_len } = *plan;
    let Sizes { n_kv_heads, group, n_queries, head_dim, .. } = sizes;
    let (n_pairs, n_rows) = (q.shape()[0] * n_kv_heads, group * n_queries);
    let n_cubes = n_pairs * n_parts;
    let dtype = q.dtype;
    let out = empty(&q, q.shape(), dtype);
    let log_sums = empty(&q, Shape::new([n_cubes, n_rows]), DType::F32);
    let parts = match n_parts {
        1 => out.clone(),
        _ => empty(&q, Shape::new([n_cubes, n_rows, head_dim]), DType::F32),
    };
    let table = row_table(&q, rows, k.shape()[2]);
    let types = [dtype.into(), parts.dtype.into()];
    attend_parts::launch::<R>(
        &out.client,
        row_cubes(n_cubes),
        CubeDim::new_1d(sizes.units as u32),
        addresses(&[&k, &v]),
        vector_size,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        table.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        log_sums.clone().into_tensor_arg(),
        n_cubes,
        n_parts,
        part_len,
        1.0 / (head_dim as f32).sqrt(),
        sizes,
        types,
    );
    if n_parts > 1 {
        let n = out.shape().num_elements();
        let cubes = ElementCubes::new(&out, n);
        join_parts::launch::<R>(
            &out.client,
            cubes.count,
            cubes.dim,
            parts.into_tensor_arg(),
            log_sums.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n,
            n_parts,
            n_rows,
            head_dim,
            dtype.into(),
        );
    }
    out
}

#[cfg(all(test, feature = "wgpu"))]
#[path = "decode_tests.rs"]
mod on_wgpu;
