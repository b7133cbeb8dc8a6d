//! Which tokens of a micro-batch a loss looks at, and the tensors cut out of the host arrays for them.
use crate::rollout::RolloutBatch;
use burn::tensor::{Int, Tensor, TensorData};
use dgpo_models::Backend;
use std::ops::Range;

/// Some rows of a batch, padded to their own longest row, and the tokens in them that count.
///
/// Worked example: rows of 5 and 3 tokens, prompts of 2, every response token chosen. The micro-batch is `[2, 5]`; the tokens are (0,2) (0,3) (0,4)
/// (1,2); their logits are read one position earlier, at 1, 2, 3 and 5 + 1 = 6 of the flattened hidden states.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    rows: Vec<usize>,
    n_cols: usize,
    /// [N] places in the batch's [B, T] arrays.
    flat: Vec<usize>,
    /// [N] places in the micro-batch's flattened [R · T'] positions: one before the token.
    read_at: Vec<i32>,
}

impl MicroBatch {
    /// The tokens for which `counts(row, column)` holds; the first column has no position before it and never counts.
    pub fn new(batch: &RolloutBatch, rows: &[usize], counts: impl Fn(usize, usize) -> bool) -> Self {
        let n_cols = rows.iter().map(|&row| batch.lengths[row]).max().unwrap_or(0);
        let (mut flat, mut read_at) = (Vec::new(), Vec::new());
        for (i, &row) in rows.iter().enumerate() {
            for col in (1..batch.lengths[row]).filter(|&col| counts(row, col)) {
                flat.push(batch.at(row, col));
                read_at.push((i * n_cols + col - 1) as i32);
            }
        }
        Self { rows: rows.to_vec(), n_cols, flat, read_at }
    }

    /// The agent's tokens (m_t = 1).
    pub fn of_agent(batch: &RolloutBatch, rows: &[usize]) -> Self {
        Self::new(batch, rows, |row, col| batch.loss_mask[batch.at(row, col)])
    }

    /// N
    pub fn n_tokens(&self) -> usize {
        self.flat.len()
    }

    /// `[R, T']`
    pub fn ids<B: Backend>(&self, batch: &RolloutBatch, device: &B::Device) -> Tensor<B, 2, Int> {
        let mut ids = Vec::with_capacity(self.rows.len() * self.n_cols);
        for &row in &self.rows {
            let start = batch.at(row, 0);
            ids.extend(batch.ids[start..start + self.n_cols].iter().map(|&id| id as i32));
        }
        Tensor::from_data(TensorData::new(ids, [self.rows.len(), self.n_cols]), device)
    }

    /// `[N]` positions for `trainer::update::gather`.
    pub fn positions<B: Backend>(&self, device: &B::Device) -> Tensor<B, 1, Int> {
        Tensor::from_data(TensorData::new(self.read_at.clone(), [self.read_at.len()]), device)
    }

    /// The ids of tokens `range`, `[n]`.
    pub fn labels<B: Backend>(&self, batch: &RolloutBatch, range: Range<usize>, device: &B::Device) -> Tensor<B, 1, Int> {
        let labels: Vec<i32> = self.flat[range].iter().map(|&at| batch.ids[at] as i32).collect();
        let n = labels.len();
        Tensor::from_data(TensorData::new(labels, [n]), device)
    }

    /// Entries of a `[B, T]` array at tokens `range`, `[n]`.
    pub fn cut<B: Backend>(&self, array: &[f32], range: Range<usize>, device: &B::Device) -> Tensor<B, 1> {
        let values: Vec<f32> = self.flat[range].iter().map(|&at| array[at]).collect();
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), device)
    }

    /// Writes one value a token back into a `[B, T]` array.
    pub fn put(&self, values: Tensor<impl Backend, 1>, array: &mut [f32]) {
        let values: Vec<f32> = values.into_data().convert::<f32>().into_vec().expect("converted to f32");
        for (&at, value) in self.flat.iter().zip(values) {
            array[at] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::devices::Cpu;

    #[test]
    fn tokens_are_read_one_position_earlier_in_the_rows_own_padding() {
        let batch = RolloutBatch {
            n_rows: 2,
            n_cols: 6,
            ids: (0..12).collect(),
            lengths: vec![5, 3],
            prompt_lens: vec![2, 2],
            ..RolloutBatch::default()
        };
        let micro = MicroBatch::new(&batch, &[0, 1], |row, col| batch.is_response(row, col));
        assert_eq!(micro.read_at, [1, 2, 3, 6]);
        let labels: Vec<i32> = micro.labels::<Cpu>(&batch, 0..4, &Default::default()).into_data().convert::<i32>().into_vec().unwrap();
        assert_eq!(labels, [2, 3, 4, 8]);
        let mut array = vec![0.0; 12];
        micro.put(Tensor::<Cpu, 1>::from_data([1.0, 2.0, 3.0, 4.0], &Default::default()), &mut array);
        assert_eq!(array, [0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0]);
    }
}
