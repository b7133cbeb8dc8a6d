//! The encoder against recorded hidden states, poolings and embeddings.
use super::{
    Case, FixtureError, Tensors, Tolerance,
    fixtures::{Array, count, object, read_json},
    models::{HIDDEN, NO_RESULTS},
};
use burn::{
    module::Module,
    tensor::{DType, Tensor, TensorData},
};
use dgpo_kernels::to_host;
use dgpo_models::{Backend, weights::load_bert};
use std::path::Path;

const EMBEDDING: Tolerance = Tolerance::abs(2e-6);

pub(super) fn compare<B: Backend>(
    dir: &Path,
    device: &B::Device,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let model = load_bert::<B>(dir, DType::F32, device)?;
    let (tensors, json) = (
        Tensors::open(&dir.join("reference.safetensors"))?,
        read_json(&dir.join("reference.json"))?,
    );
    for key in object(&json, "reference.json")?.keys() {
        match key.as_str() {
            "params" => {
                // The reference counts its pooler, a linear layer that embeddings do not use and
                // that is not loaded.
                let (n_params, width) = (model.num_params(), model.config().hidden_size);
                let expected = count(&json, key)?;
                case.equal(
                    key,
                    &[n_params, n_params + width * (width + 1)].contains(&expected),
                    &true,
                );
            }
            // The reference's own noise, and its activation in words.
            "activation" => {}
            key if key.contains("max_abs_dev") => {}
            _ => case.fail_unknown([key.clone()]),
        }
    }
    let ids = tensors.integers("input_ids")?;
    let [n_rows, n_cols] = ids.dims::<2>("input_ids")?;
    let mask = tensors.integers_of("attention_mask", &[n_rows, n_cols])?;
    let tensor =
        |values: Vec<i64>| Tensor::from_data(TensorData::new(values, [n_rows, n_cols]), device);
    let (ids, mask_tensor) = (tensor(ids.data), tensor(mask.clone()));
    let states: Vec<Array<f32>> = model
        .all_hidden(ids.clone(), mask_tensor.clone())
        .into_iter()
        .map(|state| Array { shape: state.dims().to_vec(), data: to_host(state) })
        .collect();
    let embedding = model.embed(ids, mask_tensor);
    let width = embedding.dims()[1];
    let cosine = to_host(embedding.clone().matmul(embedding.clone().transpose()));
    let embedding = to_host(embedding);
    let Some(last) = states.last() else {
        return Err(FixtureError::Missing("hidden states of the encoder".into()));
    };
    let is_real = |i: usize| mask[i / width % (n_rows * n_cols)] != 0;
    let n_checks = case.checks.len();
    for key in tensors.keys().map(str::to_owned).collect::<Vec<_>>() {
        match key.as_str() {
            "hidden_states" => {
                let got: Vec<f32> =
                    states.iter().flat_map(|state| state.data.iter().copied()).collect();
                case.close_where(
                    &key,
                    &got,
                    &tensors.floats_of(&key, &[states.len(), n_rows, n_cols, width])?,
                    is_real,
                    HIDDEN,
                );
            }
            "last_hidden_state" => {
                case.close_where(
                    &key,
                    &last.data,
                    &tensors.floats_of(&key, &[n_rows, n_cols, width])?,
                    is_real,
                    HIDDEN,
                );
            }
            "mean_pooled" => case.close(
                &key,
                &mean_pooled(&last.data, &mask, [n_rows, n_cols, width]),
                &tensors.floats_of(&key, &[n_rows, width])?,
                HIDDEN,
            ),
            "cls_pooled" => {
                let first: Vec<f32> =
                    last.data.chunks(n_cols * width).flat_map(|row| unit(&row[..width])).collect();
                case.close(&key, &first, &tensors.floats_of(&key, &[n_rows, width])?, HIDDEN);
            }
            "embedding" => {
                case.close(&key, &embedding, &tensors.floats_of(&key, &[n_rows, width])?, EMBEDDING)
            }
            "cosine" => {
                case.close(&key, &cosine, &tensors.floats_of(&key, &[n_rows, n_rows])?, EMBEDDING)
            }
            _ => {}
        }
    }
    if case.checks.len() == n_checks {
        case.fail("reference", NO_RESULTS);
    }
    case.fail_unknown(tensors.unused());
    Ok(())
}

/// Mean over real tokens, the step before the embedding.
fn mean_pooled(hidden: &[f32], mask: &[i64], [n_rows, n_cols, width]: [usize; 3]) -> Vec<f32> {
    let mut pooled = Vec::with_capacity(n_rows * width);
    for row in 0..n_rows {
        let real: Vec<usize> = (0..n_cols).filter(|&col| mask[row * n_cols + col] != 0).collect();
        let mean = |at: usize| {
            real.iter().map(|col| f64::from(hidden[(row * n_cols + col) * width + at])).sum::<f64>()
                / real.len() as f64
        };
        pooled.extend((0..width).map(|at| mean(at) as f32));
    }
    pooled
}

/// A vector of length 1.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = super::network::norm(vector);
    vector.iter().map(|&x| (f64::from(x) / length) as f32).collect()
}
