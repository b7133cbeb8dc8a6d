use super::*;
use crate::{
    KernelOps,
    testing::{numbers, on_every_backend, tensor, values},
};
use burn::tensor::DType;

on_every_backend!(the_input_stays_as_it_is_when_others_hold_it);

fn the_input_stays_as_it_is_when_others_hold_it<B: KernelOps>() {
    let x = numbers(48, 0.0);
    let input = tensor::<B, 2>(&x, [6, 8], DType::F32);
    let before = values(input.clone());
    let table = |salt: f64| tensor(&numbers(6, salt), [3, 2], DType::F32);
    let turned = values(rotary(input.clone(), table(0.1), table(0.2)));
    assert_ne!(turned, before);
    assert_eq!(values(input), before);
}
