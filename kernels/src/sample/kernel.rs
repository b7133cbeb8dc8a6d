//! The sampling kernel: one cube (workgroup) a row. What is summed and compared are the integers of
//! `weight.rs`, so the number of units does not matter. Where top-k or top-p leave tokens out, the
//! logits are read back and sampled on the host instead: to the same tokens.
#![allow(clippy::too_many_arguments, reason = "a launch has one argument a buffer and scalar")]
use super::{
    kernel_numbers::{fraction, key, largest, logit},
    kernel_search::{Row, locate, sum_of_sections, sum_row},
    plan::{COLUMNS, SamplePlan},
    reference,
    weight::{HIGHEST_KEY, LOWEST_KEY},
};
use crate::{
    cube::{addresses, empty, row_cubes, with_row_stride},
    types::RowSampling,
};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::{CubeBackend, CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube at most: a row is alone in its cube, and rows are few.
const MAX_UNITS: usize = 1024;
/// Units that read neighbouring columns of one section at most.
const MAX_GROUP: usize = 32;

/// Columns of a row's plan, all u32 (two of them the bits of an f32).
const SCALE: usize = 0;
const INVERSE_TEMPERATURE: usize = 1;
const BITS_LOW: usize = 2;
const BITS_HIGH: usize = 3;
const IS_GREEDY: usize = 4;
const PLAN_COLUMNS: usize = 5;

#[cube(launch, address_type = "dynamic")]
fn sample<F: Float>(
    logits: &Tensor<F>,
    plans: &Tensor<u32>,
    out: &mut Tensor<f32>,
    n_rows: usize,
    vocab_size: usize,
    #[comptime] units: usize,
    #[comptime] group: usize,
    #[define(F)] _type: StorageType,
) {
    let row_idx = CUBE_POS;
    let mut shared = SharedMemory::<u32>::new(2 * units);
    let mut values = SharedMemory::<f32>::new(units);
    if row_idx < n_rows {
        let base = row_idx * logits.stride(0);
        let plan = row_idx * PLAN_COLUMNS;
        let (top, greedy_id) = largest::<F>(logits, base, vocab_size, &mut shared, units);
        let mut id = greedy_id as usize;
        let mut total = f32::new(1.0);
        let is_distribution = top > LOWEST_KEY && top < HIGHEST_KEY;
        if is_distribution {
            let row = Row {
                base,
                vocab_size,
                max: logit(top),
                scale: f32::reinterpret(plans[plan + SCALE]),
            };
            total = sum_row::<F>(logits, row, &mut shared, &mut values, units, group);
            if plans[plan + IS_GREEDY] == 0u32 {
                let (low, high) = sum_of_sections(&shared, units, group);
                let (low, high) =
                    fraction(plans[plan + BITS_LOW], plans[plan + BITS_HIGH], low, high);
                id = locate::<F>(logits, row, low, high, &mut shared, units, group);
            }
        }
        if UNIT_POS_X == 0 {
            let below = logit(top) - logit(key::<F>(logits[base + id]));
            let scaled = below * f32::reinterpret(plans[plan + INVERSE_TEMPERATURE]);
            let log_prob = min(f32::new(0.0) - scaled - total.ln(), f32::new(0.0));
            out[row_idx * COLUMNS] = select(is_distribution, f32::cast_from(id), f32::new(-1.0));
            out[row_idx * COLUMNS + 1] = select(is_distribution, log_prob, f32::new(0.0));
        }
    }
}

pub(crate) fn forward<R: CubeRuntime>(
    logits: CubeTensor<R>,
    rows: &[RowSampling],
) -> CubeTensor<R> {
    let [n_rows, vocab_size] = logits.shape().dims();
    let plans: Vec<SamplePlan> = rows.iter().map(SamplePlan::new).collect();
    if plans.iter().any(|plan| plan.is_cut(vocab_size)) {
        return reference::forward::<CubeBackend<R, f32, i32, u8>>(logits, rows);
    }
    let logits = with_row_stride(logits);
    let out = empty(&logits, Shape::new([n_rows, COLUMNS]), DType::F32);
    let units = unit_count(&logits, vocab_size);
    let (plans, dtype) = (plan_table(&logits, &plans), logits.dtype.into());
    sample::launch::<R>(
        &out.client,
        row_cubes(n_rows),
        CubeDim::new_1d(units as u32),
        addresses(&[&logits]),
        logits.into_tensor_arg(),
        plans.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        n_rows,
        vocab_size,
        units,
        MAX_GROUP.min(units / 2),
        dtype,
    );
    out
}

/// A power of two, not far above the columns there are.
fn unit_count<R: CubeRuntime>(logits: &CubeTensor<R>, vocab_size: usize) -> usize {
    let hardware = &logits.client.properties().hardware;
    let most = hardware.max_units_per_cube.min(hardware.max_cube_dim.0) as usize;
    vocab_size.next_power_of_two().clamp(2, 1 << most.min(MAX_UNITS).ilog2())
}

/// [R, PLAN_COLUMNS] u32
fn plan_table<R: CubeRuntime>(like: &CubeTensor<R>, plans: &[SamplePlan]) -> CubeTensor<R> {
    let mut numbers = vec![0u32; plans.len() * PLAN_COLUMNS];
    for (plan, columns) in plans.iter().zip(numbers.chunks_exact_mut(PLAN_COLUMNS)) {
        columns[SCALE] = plan.scale.to_bits();
        columns[INVERSE_TEMPERATURE] = ((1.0 / plan.temperature) as f32).to_bits();
        columns[BITS_LOW] = plan.bits as u32;
        columns[BITS_HIGH] = (plan.bits >> 32) as u32;
        columns[IS_GREEDY] = u32::from(plan.is_greedy);
    }
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    let buffer = like.client.create_from_slice(&bytes);
    let shape = Shape::new([plans.len(), PLAN_COLUMNS]);
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, buffer, DType::U32)
}
