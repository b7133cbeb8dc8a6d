//! Parts that the model families share: padded fixture batches in the project's own layout,
//! parameters and gradients by their Hugging Face names.
use super::{
    Case, FixtureError, Tolerance,
    fixtures::{Array, Tensors},
};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{DType, Int, Tensor, TensorData},
};
use dgpo_core::rollout::TokenIndex;
use dgpo_kernels::to_host;
use dgpo_models::{Backend, decoder::Decoder, weights::parameter_names};
use std::collections::BTreeMap;

/// A batch of a fixture: padded on either side there, right-padded (real tokens first) here.
pub(super) struct PaddedRows {
    /// The fixture's columns.
    pub n_cols: usize,
    /// [B] the fixture's columns that hold real tokens.
    pub columns: Vec<Vec<usize>>,
    /// [B, T] in the fixture's layout.
    ids: Vec<i64>,
    positions: Vec<i64>,
}

impl PaddedRows {
    /// Reads `PREFIX.input_ids` and, where there are, `PREFIX.attention_mask` and
    /// `PREFIX.position_ids`.
    pub(super) fn read(tensors: &Tensors, prefix: &str) -> Result<Self, FixtureError> {
        let key = |name: &str| format!("{prefix}{name}");
        let ids = tensors.integers(&key("input_ids"))?;
        let [n_rows, n_cols] = ids.dims::<2>(&key("input_ids"))?;
        let shape = [n_rows, n_cols];
        let mask = match tensors.has(&key("attention_mask")) {
            true => tensors.integers_of(&key("attention_mask"), &shape)?,
            false => vec![1; n_rows * n_cols],
        };
        let columns: Vec<Vec<usize>> = mask
            .chunks(n_cols.max(1))
            .map(|row| (0..row.len()).filter(|&col| row[col] != 0).collect())
            .collect();
        let positions = match tensors.has(&key("position_ids")) {
            true => tensors.integers_of(&key("position_ids"), &shape)?,
            false => {
                let slot = |(row, col): (usize, usize)| {
                    columns[row].iter().position(|&c| c == col).unwrap_or(0) as i64
                };
                (0..n_rows)
                    .flat_map(|row| (0..n_cols).map(move |col| (row, col)))
                    .map(slot)
                    .collect()
            }
        };
        if ids.data.iter().chain(&positions).any(|&x| x < 0) {
            return Err(FixtureError::Value {
                key: key("input_ids"),
                found: "a negative number".into(),
                expected: "ids and positions",
            });
        }
        Ok(Self { n_cols, columns, ids: ids.data, positions })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.columns.len()
    }

    /// Real tokens of the longest row.
    pub(super) fn width(&self) -> usize {
        self.columns.iter().map(Vec::len).max().unwrap_or(0).max(1)
    }

    /// Real ids of a row.
    pub(super) fn row_ids(&self, row: usize) -> Vec<i64> {
        self.columns[row].iter().map(|&col| self.ids[row * self.n_cols + col]).collect()
    }

    pub(super) fn ids<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2, Int> {
        self.compact(&self.ids, device)
    }

    pub(super) fn positions<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2, Int> {
        self.compact(&self.positions, device)
    }

    /// [B, T] of the fixture -> [B, T'] with the real tokens first.
    fn compact<B: Backend>(&self, values: &[i64], device: &B::Device) -> Tensor<B, 2, Int> {
        let width = self.width();
        let mut data = vec![0i64; self.n_rows() * width];
        for (row, columns) in self.columns.iter().enumerate() {
            for (at, &col) in columns.iter().enumerate() {
                data[row * width + at] = values[row * self.n_cols + col];
            }
        }
        Tensor::from_data(TensorData::new(data, [self.n_rows(), width]), device)
    }

    /// All real tokens: where they are here, and at which of the fixture's [B, T] entries.
    pub(super) fn real(&self) -> TokenIndex {
        self.index(|row, at| {
            Some((at, self.ids[row * self.n_cols + self.columns[row][at]], self.columns[row][at]))
        })
    }

    /// Each real token but a row's first, read at the one before it, and stored (as the fixtures
    /// do) at the column before it of [B, T-1].
    pub(super) fn next_tokens(&self) -> TokenIndex {
        let n_cols = self.n_cols - 1;
        let mut index = self.index(|row, at| {
            let before = at.checked_sub(1)?;
            Some((
                before,
                self.ids[row * self.n_cols + self.columns[row][at]],
                self.columns[row][before],
            ))
        });
        index.at.iter_mut().for_each(|at| *at = *at / self.n_cols * n_cols + *at % self.n_cols);
        index
    }

    /// Real tokens whose label in [B, T] is not -100, but a row's first, read at the one before.
    pub(super) fn labelled(&self, labels: &[i64]) -> TokenIndex {
        self.index(|row, at| {
            let col = self.columns[row][at];
            let label = labels[row * self.n_cols + col];
            Some((at.checked_sub(1)?, label, col)).filter(|_| label >= 0)
        })
    }

    /// For (row, number of the real token): (read at which real token, label, fixture's column).
    fn index(&self, wanted: impl Fn(usize, usize) -> Option<(usize, i64, usize)>) -> TokenIndex {
        let mut index = TokenIndex::default();
        for (row, columns) in self.columns.iter().enumerate() {
            for (read_at, label, col) in (0..columns.len()).filter_map(|at| wanted(row, at)) {
                index.hidden.push(row * self.width() + read_at);
                index.labels.push(label as u32);
                index.at.push(row * self.n_cols + col);
            }
        }
        index
    }

    /// One forward pass over the batch. -> [B, T', D]
    pub(super) fn hidden<B: Backend>(
        &self,
        model: &Decoder<B>,
        device: &B::Device,
    ) -> Tensor<B, 3> {
        model.hidden(self.ids(device), Some(self.positions(device)), None)
    }
}

/// Rows of `width` numbers put where they belong in an array of `n_entries` such rows, 0 elsewhere.
pub(super) fn spread(
    index: &TokenIndex,
    values: &[f32],
    width: usize,
    n_entries: usize,
) -> Vec<f32> {
    let mut array = vec![0.0; n_entries * width];
    for (&at, row) in index.at.iter().zip(values.chunks(width.max(1))) {
        array[at * width..(at + 1) * width].copy_from_slice(row);
    }
    array
}

/// Every float parameter of a module by its Hugging Face name, as that layout has it.
pub(super) fn parameters<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, Array<f32>> {
    collect::<B, M>(module, None)
}

/// The gradients of a module's parameters by name.
pub(super) fn gradients<B: Backend, M: Module<B>>(
    module: &M,
    grads: &GradientsParams,
) -> BTreeMap<String, Array<f32>> {
    collect::<B, M>(module, Some(grads))
}

fn collect<B: Backend, M: Module<B>>(
    module: &M,
    grads: Option<&GradientsParams>,
) -> BTreeMap<String, Array<f32>> {
    let mut visitor = Collect {
        names: parameter_names::<B, M>(module).into_iter().collect(),
        grads,
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

struct Collect<'a> {
    names: BTreeMap<ParamId, String>,
    grads: Option<&'a GradientsParams>,
    found: BTreeMap<String, Array<f32>>,
}

impl<B: Backend> ModuleVisitor<B> for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(name) = self.names.get(&param.id) else { return };
        let value = match self.grads {
            Some(grads) => grads.get::<B, D>(param.id),
            None => Some(param.val()),
        };
        let Some(value) = value else { return };
        // burn's Linear holds [in, out]; Hugging Face [out, in]. Embeddings are the same in both.
        let is_linear = D == 2 && !name.ends_with("embed_tokens.weight");
        let value = if is_linear { value.swap_dims(0, 1) } else { value };
        let array = Array { shape: value.dims().to_vec(), data: to_host(value.cast(DType::F32)) };
        self.found.insert(name.clone(), array);
    }
}

/// Compares a parameter behind optimizer steps.
///
/// Steps that change losses and log-probs cannot leave a weight where it was, bit for bit: a
/// recorded tensor that equals the weight before the first step was recorded too early (the public
/// fixtures do so), and holding the optimizer to it would demand one that does nothing. That is
/// said in a note; losses, norms, log-probs and values recorded beside it pin every step.
pub(super) fn compare_trained(
    key: &str,
    before: &Array<f32>,
    after: &Array<f32>,
    expected: &[f32],
    tolerance: Tolerance,
    case: &mut Case,
) {
    if expected == before.data && after.data != before.data {
        case.note(
            key,
            "not compared: the fixture holds this weight as it was before the first step, bit for \
             bit",
        );
    } else {
        case.close(key, &after.data, expected, tolerance);
    }
}

/// L2 norm in f64.
pub(super) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
