//! The KV cache: ragged prefill and decode equal the full pass, rows do not disturb each other,
//! slots are reused without clearing.
use crate::common::{Oracle, assert_close, f32s};
use burn::{
    backend::Flex,
    tensor::{Int, Tensor, TensorData},
};
use dgpo_models::{
    cache::{CacheRows, KvCache},
    decoder::Decoder,
};

/// Some token ids below 150 (every fixture has more).
fn tokens(n: usize, salt: i64) -> Vec<i64> {
    (0..n as i64).map(|i| 3 + (i * i * 31 + i * 17 + salt * 53) % 147).collect()
}

fn padded(rows: &[&[i64]]) -> Tensor<Flex, 2, Int> {
    let width = rows.iter().map(|row| row.len()).max().unwrap();
    let ids: Vec<i64> = rows
        .iter()
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, width - row.len())))
        .collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), width]), &Default::default())
}

/// Hidden states of the real tokens of each row, [tokens, D] each.
fn real(hidden: Tensor<Flex, 3>, lengths: &[usize]) -> Vec<Vec<f32>> {
    let [_, width, d] = hidden.dims();
    let values = f32s(hidden);
    lengths.iter().enumerate().map(|(b, n)| values[b * width * d..][..n * d].to_vec()).collect()
}

fn full(model: &Decoder<Flex>, ids: &[i64]) -> Vec<f32> {
    f32s(model.hidden(padded(&[ids]), None, None))
}

/// One pass over the given rows (slot, new tokens); what comes out for each.
fn step(
    model: &Decoder<Flex>,
    cache: &mut KvCache<Flex>,
    rows: &[(usize, &[i64])],
) -> Vec<Vec<f32>> {
    let slots: Vec<usize> = rows.iter().map(|row| row.0).collect();
    let ids: Vec<&[i64]> = rows.iter().map(|row| row.1).collect();
    let n_new: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
    real(
        model.hidden(padded(&ids), None, Some(CacheRows { cache, slots: &slots, n_new: &n_new })),
        &n_new,
    )
}

#[test]
fn pieces_of_any_length_in_ragged_batches_equal_the_full_pass() {
    let model = Oracle::open("llama3_tied").decoder::<Flex>();
    let rows = [tokens(40, 1), tokens(9, 2), tokens(23, 3)];
    let cuts = [[17usize, 18, 40], [1, 8, 9], [20, 22, 23]];
    let mut cache = KvCache::new(&model.config(), 4, 40, &Default::default());
    let mut got = vec![Vec::new(); 3];
    for piece in 0..3 {
        // Rows come in another order each time.
        let order = [[0, 1, 2], [2, 0, 1], [1, 2, 0]][piece];
        let part =
            |b: usize| &rows[b][if piece == 0 { 0 } else { cuts[b][piece - 1] }..cuts[b][piece]];
        let out = step(&model, &mut cache, &order.map(|b| (3 - b, part(b))));
        order.into_iter().zip(out).for_each(|(b, out)| got[b].extend(out));
    }
    for (b, got) in got.iter().enumerate() {
        assert_close(got, &full(&model, &rows[b]), 5e-5, &format!("row {b}"));
    }
}

#[test]
fn neighbours_do_not_change_a_row_by_a_single_bit() {
    let model = Oracle::open("qwen2_tied").decoder::<Flex>();
    let (row, long, short) = (tokens(12, 1), tokens(30, 2), tokens(3, 3));
    let alone = {
        let mut cache = KvCache::new(&model.config(), 1, 64, &Default::default());
        let prefill = step(&model, &mut cache, &[(0, &row[..11])]);
        [prefill, step(&model, &mut cache, &[(0, &row[11..])])].concat()
    };
    let mut cache = KvCache::new(&model.config(), 3, 64, &Default::default());
    let together = {
        let prefill =
            step(&model, &mut cache, &[(1, &long[..29]), (2, &row[..11]), (0, &short[..2])]);
        let decode =
            step(&model, &mut cache, &[(2, &row[11..]), (0, &short[2..]), (1, &long[29..])]);
        [prefill[1].clone(), decode[0].clone()]
    };
    for (alone, together) in alone.iter().zip(&together) {
        assert_close(together, alone, 0.0, "row");
    }
}

#[test]
fn a_dropped_slot_is_reused_at_once() {
    let model = Oracle::open("qwen2_tied").decoder::<Flex>();
    let (old, new) = (tokens(30, 1), tokens(12, 2));
    let mut cache = KvCache::new(&model.config(), 2, 32, &Default::default());
    step(&model, &mut cache, &[(0, &old), (1, &old[..5])]);
    cache.truncate(0, 0);
    assert_eq!(cache.len(0), 0);
    let mut got = step(&model, &mut cache, &[(0, &new[..7])]).remove(0);
    got.extend(step(&model, &mut cache, &[(1, &old[5..6]), (0, &new[7..])]).remove(1));
    assert_close(&got, &full(&model, &new), 5e-5, "new row");
    assert_eq!((cache.len(0), cache.len(1)), (12, 6));
}

#[test]
fn truncation_forgets_the_tail_only() {
    let model = Oracle::open("qwen2_tied").decoder::<Flex>();
    let (row, other) = (tokens(12, 1), tokens(12, 2));
    let mut cache = KvCache::new(&model.config(), 1, 32, &Default::default());
    step(&model, &mut cache, &[(0, &[&row[..8], &other[8..]].concat())]);
    cache.truncate(0, 20);
    assert_eq!(cache.len(0), 12, "a longer length changes nothing");
    cache.truncate(0, 8);
    let tail = step(&model, &mut cache, &[(0, &row[8..])]).remove(0);
    let want = full(&model, &row);
    assert_close(&tail, &want[want.len() - tail.len()..], 5e-5, "tail");
}

#[test]
fn a_slot_can_be_filled_to_its_capacity() {
    let model = Oracle::open("qwen2_tied").decoder::<Flex>();
    let row = tokens(19, 4);
    let mut cache = KvCache::new(&model.config(), 1, 19, &Default::default());
    assert_eq!((cache.size_bytes(), cache.is_empty()), (0, true));
    let mut got = step(&model, &mut cache, &[(0, &row[..18])]).remove(0);
    got.extend(step(&model, &mut cache, &[(0, &row[18..])]).remove(0));
    assert_close(&got, &full(&model, &row), 5e-5, "row");
    // 2 (k and v) x 3 layers x 2 kv heads x 32 physical positions x 16 x 4 bytes
    assert_eq!(cache.size_bytes(), 2 * 3 * 2 * 32 * 16 * 4);
}
