//! Every cut of the decode kernel into vectors, tiles and parts.
use super::*;
use crate::{
    attention::tests::{Case, tolerance},
    cache_write::{CacheSpan, cache_write},
    suite::hidden_definitions::AttentionShape,
    testing::{assert_close, dtypes, has_adapter, tensor, values},
};
use burn::{
    backend::wgpu::{CubeBackend, WgpuRuntime},
    tensor::{Tensor, TensorPrimitive},
};

type Plain = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// Queries of all rows over keys at one row's own positions.
fn shape(
    [n_kv_heads, group, n_queries, n_keys, head_dim]: [usize; 5],
    starts: Vec<usize>,
) -> AttentionShape {
    AttentionShape {
        starts,
        lengths: None,
        n_heads: n_kv_heads * group,
        n_kv_heads,
        n_queries,
        n_keys,
        head_dim,
    }
}

#[test]
fn a_cut_into_one_part_is_one_of_several_where_a_unit_would_walk_too_far() {
    let sizes = Sizes { n_kv_heads: 1, group: 1, n_queries: 1, head_dim: 32, units: UNITS };
    for vector_size in [1, 2, 4] {
        let plan = DecodePlan::cut(sizes, vector_size, 1_000_000, 1);
        let rounds = plan.part_len / (UNITS * vector_size) * sizes.rounds_of_tile(vector_size)
            + ROUNDS_AROUND;
        assert!(
            rounds <= MAX_ROUNDS && plan.n_parts * plan.part_len >= 1_000_000,
            "{} x {}",
            plan.n_parts,
            plan.part_len
        );
    }
    assert_eq!(DecodePlan::cut(sizes, 1, 700, 1).n_parts, 1);
}

#[test]
fn more_positions_than_a_unit_may_walk_are_the_definition() {
    if !has_adapter() {
        return;
    }
    // Tiles of 64 positions in 72 rounds each: 78,000 rounds if one unit took them all.
    let n_keys = 70_016;
    let case = Case::new(shape([1, 1, 1, n_keys, 32], vec![n_keys - 1]), DType::F32);
    let span = [CacheSpan { slot: 0, start: 0, n: n_keys }];
    let cache = |x: &[f64], shape: [usize; 4], position_dim| {
        let empty = Tensor::<Plain, 4>::zeros(shape, &Default::default());
        cache_write(empty, tensor(x, case.k_shape(), DType::F32), &span, position_dim)
    };
    let keys = cache(&case.k, [1, 1, 32, n_keys], 3).swap_dims(2, 3);
    let vals = cache(&case.v, [1, 1, n_keys, 32], 2);
    let q = tensor::<Plain, 4>(&case.q, case.q_shape(), DType::F32);
    let [q, keys, vals] = [q, keys, vals].map(|x| x.into_primitive().tensor());
    let plan = DecodePlan::cut(
        Sizes { n_kv_heads: 1, group: 1, n_queries: 1, head_dim: 32, units: UNITS },
        1,
        n_keys,
        1,
    );
    assert!(plan.n_parts > 1);
    let rows = CausalRows { starts: vec![n_keys - 1], slots: Some(vec![0]), lengths: None };
    let out = Tensor::<Plain, 4>::from_primitive(TensorPrimitive::Float(forward(
        &plan, q, keys, vals, &rows,
    )));
    assert_close(&values(out), &case.forward(), tolerance(DType::F32), "one part");
}

#[test]
fn every_cut_into_vectors_tiles_and_parts_is_the_definition() {
    if !has_adapter() {
        return;
    }
    // Row 0 fills eleven tiles of single positions, row 1 a part of one: its other parts have
    // nothing to say.
    let (n_keys, capacity, starts) = (700, 704, vec![698, 3]);
    for dtype in dtypes::<Plain>() {
        let case = Case::new(shape([1, 3, 2, n_keys, 32], starts.clone()), dtype);
        let want = case.forward();
        let slots = vec![2, 0];
        let cache = |x: &[f64], shape: [usize; 4], position_dim| {
            let spans: Vec<CacheSpan> =
                slots.iter().map(|&slot| CacheSpan { slot, start: 0, n: n_keys }).collect();
            let empty = Tensor::<Plain, 4>::zeros(shape, (&Default::default(), dtype));
            cache_write(empty, tensor(x, case.k_shape(), dtype), &spans, position_dim)
        };
        let keys = cache(&case.k, [3, 1, 32, capacity], 3).swap_dims(2, 3);
        let vals = cache(&case.v, [3, 1, capacity, 32], 2);
        let q = tensor::<Plain, 4>(&case.q, case.q_shape(), dtype);
        let [q, keys, vals] = [q, keys, vals].map(|x| x.into_primitive().tensor());
        let rows = CausalRows { starts: starts.clone(), slots: Some(slots.clone()), lengths: None };
        for vector_size in q.client.io_optimized_vector_sizes(dtype.size()) {
            for n_parts in [1, 2, 11] {
                let sizes =
                    Sizes { n_kv_heads: 1, group: 3, n_queries: 2, head_dim: 32, units: UNITS };
                let plan = DecodePlan::cut(sizes, vector_size, 700, n_parts);
                let out = forward(&plan, q.clone(), keys.clone(), vals.clone(), &rows);
                let out = Tensor::<Plain, 4>::from_primitive(TensorPrimitive::Float(out));
                let what = format!(
                    "vectors of {vector_size}, {} parts of {}, {dtype:?}",
                    plan.n_parts, plan.part_len
                );
                assert_close(&values(out), &want, tolerance(dtype), &what);
            }
        }
    }
}
