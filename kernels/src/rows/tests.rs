use super::*;
use crate::{
    KernelOps,
    testing::{on_every_backend, tensor, values},
};
use burn::{
    backend::Autodiff,
    tensor::{DType, TensorData},
};

on_every_backend!(
    a_sum_over_many_rows_is_the_sum_in_f64,
    the_gradient_of_one_row_for_all_is_the_sum_of_theirs,
    the_gradient_of_rows_picked_often_is_the_sum_of_theirs,
    the_sums_of_blocks_add_up,
);

/// Three levels of blocks, each rounding up to 63 times: 1e-6 is ten times what is seen, and a
/// tenth of what one line of 65,536 loses.
const TOLERANCE: f64 = 1e-6;
/// With a rest behind the last block.
const MANY: [usize; 2] = [65_536, 70_003];

/// All of one sign, so that a relative error means something.
fn positive(n: usize) -> Vec<f64> {
    (0..n)
        .map(|i| f64::from(((i * 7919) % 1000) as f32 * 1e-3 + 0.1))
        .map(|x| f64::from(x as f32))
        .collect()
}

fn column_sums(x: &[f64], d: usize) -> Vec<f64> {
    (0..d).map(|column| x.iter().skip(column).step_by(d).sum()).collect()
}

fn assert_relative(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= TOLERANCE * want.abs(), "{what}: {got} instead of {want}");
    }
}

fn a_sum_over_many_rows_is_the_sum_in_f64<B: KernelOps>() {
    for n in MANY {
        for d in [1, 5] {
            let x = positive(n * d);
            let got = sum_rows(tensor::<B, 2>(&x, [n, d], DType::F32));
            assert_eq!(got.dims(), [1, d]);
            assert_relative(&values(got), &column_sums(&x, d), &format!("{n} x {d}"));
        }
    }
}

fn the_gradient_of_one_row_for_all_is_the_sum_of_theirs<B: KernelOps>() {
    for n in [3, 70_003] {
        let weights = positive(n * 5);
        let row =
            tensor::<Autodiff<B>, 1>(&[0.5, -1.0, 2.0, 0.0, 4.0], [5], DType::F32).require_grad();
        let y = expand_rows(row.clone(), n);
        assert_eq!(values(y.clone().detach())[5 * n - 5..], [0.5, -1.0, 2.0, 0.0, 4.0]);
        let grads = (y * tensor(&weights, [n, 5], DType::F32)).sum().backward();
        assert_relative(
            &values(row.grad(&grads).unwrap()),
            &column_sums(&weights, 5),
            &format!("{n} rows"),
        );
    }
}

fn the_gradient_of_rows_picked_often_is_the_sum_of_theirs<B: KernelOps>() {
    // Nearly all of them are row 1, as a padding token would be.
    let n = 70_003;
    let index: Vec<i32> = (0..n as i32).map(|i| if i == 40_000 { 0 } else { 1 }).collect();
    let index =
        Tensor::<Autodiff<B>, 1, Int>::from_data(TensorData::new(index, [n]), &Default::default());
    let weights = positive(n * 2);
    let x = tensor::<Autodiff<B>, 2>(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2], DType::F32)
        .require_grad();
    let y = select_rows(x.clone(), index);
    let picked = values(y.clone().detach());
    assert_eq!(
        (&picked[80_000..80_004], &picked[2 * n - 2..]),
        (&[1.0, 2.0, 3.0, 4.0][..], &[3.0, 4.0][..])
    );
    let grads = (y * tensor(&weights, [n, 2], DType::F32)).sum().backward();
    let alone = &weights[80_000..80_002];
    let all = column_sums(&weights, 2);
    let want = [alone[0], alone[1], all[0] - alone[0], all[1] - alone[1], 0.0, 0.0];
    // A block of 4,096 is one line: its error is that of a sum of 4,096.
    for (got, want) in values(x.grad(&grads).unwrap()).iter().zip(want) {
        assert!((got - want).abs() <= 5.0 * TOLERANCE * want.abs(), "{got} instead of {want}");
    }
}

fn the_sums_of_blocks_add_up<B: KernelOps>() {
    for n in [1, BLOCK, 151_936] {
        let x = positive(n);
        let got = values(block_sums(tensor::<B, 1>(&x, [n], DType::F32)));
        assert_eq!(got.len(), n.div_ceil(BLOCK));
        assert_relative(&[got.iter().sum()], &[x.iter().sum()], &format!("{n} numbers"));
    }
}

#[test]
fn four_million_rows_of_a_tenth_are_their_number_of_tenths() {
    let (n, x) = (1usize << 22, 0.1f32);
    let rows = Tensor::<burn::backend::Flex, 2>::full([n, 1], x, &Default::default());
    let (got, want) = (values(sum_rows(rows))[0], f64::from(x) * n as f64);
    assert!((got - want).abs() <= TOLERANCE * want, "{got} instead of {want}");
}

#[test]
fn a_sum_of_ones_does_not_stop_at_two_to_the_24() {
    let n = (1 << 24) + (1 << 20);
    let rows = Tensor::<burn::backend::Flex, 2>::ones([n, 1], &Default::default());
    assert_eq!(values(sum_rows(rows)), [n as f64]);
}

#[test]
fn few_rows_are_summed_as_burn_does_bit_for_bit() {
    let x =
        tensor::<burn::backend::Flex, 2>(&positive(WHOLE_ROWS * 3), [WHOLE_ROWS, 3], DType::F32);
    assert_eq!(values(sum_rows(x.clone())), values(x.sum_dim(0)));
}
