//! Times of the tiny model on the CPU: `cargo run --release -p dgpo-models --example speed`.
use burn::{
    backend::{Autodiff, Flex},
    tensor::{Int, Tensor, TensorData},
};
use dgpo_models::{
    cache::{CacheRows, KvCache},
    config::{DecoderConfig, Family, RopeScaling},
    decoder::Decoder,
    heads::token_log_probs,
};
use std::time::Instant;

fn main() {
    let config = DecoderConfig {
        family: Family::Qwen2,
        vocab_size: 1024,
        hidden_size: 64,
        intermediate_size: 192,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        is_tied: true,
        has_qkv_bias: true,
        initializer_range: 0.02,
        bos_token_id: None,
        eos_token_ids: vec![],
    };
    let device = Default::default();
    let ids = |b: usize, t: usize| {
        let ids: Vec<i64> = (0..b * t).map(|i| (i * 7919 % 1024) as i64).collect();
        TensorData::new(ids, [b, t])
    };
    let best = |name: &str, n: usize, mut run: Box<dyn FnMut() + '_>| {
        let times: Vec<f64> = (0..n)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        let min = times.iter().copied().fold(f64::MAX, f64::min);
        println!("{name}: best {min:.2} ms, mean {:.2} ms", times.iter().sum::<f64>() / n as f64);
    };
    let model = Decoder::<Flex>::init(&config, 1, &device);
    for rows in [1usize, 64, 96] {
        let slots: Vec<usize> = (0..rows).collect();
        let mut cache = KvCache::new(&config, rows, 512, &device);
        let n_new = vec![250; rows];
        let ids250 = Tensor::<Flex, 2, Int>::from_data(ids(rows, 250), &device);
        let start = Instant::now();
        model.hidden(ids250, None, Some(CacheRows { cache: &mut cache, slots: &slots, n_new: &n_new }));
        println!("prefill {rows} x 250: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
        let ones = vec![1; rows];
        let one = Tensor::<Flex, 2, Int>::from_data(ids(rows, 1), &device);
        let mut hidden_ms = 0.0;
        best(
            &format!("decode step, {rows} rows at 250+, with logits"),
            100,
            Box::new(|| {
                let start = Instant::now();
                let hidden = model.hidden(one.clone(), None, Some(CacheRows { cache: &mut cache, slots: &slots, n_new: &ones }));
                hidden_ms += start.elapsed().as_secs_f64() * 10.0;
                let _ = model.logits(hidden.reshape([rows, 64])).into_data();
            }),
        );
        println!("    of which hidden (mean) {hidden_ms:.2} ms");
    }
    let model = Decoder::<Autodiff<Flex>>::init(&config, 1, &device);
    let batch = Tensor::<Autodiff<Flex>, 2, Int>::from_data(ids(32, 300), &device);
    let labels = batch.clone().reshape([9600]);
    best(
        "forward, 32 x 300, no head",
        5,
        Box::new(|| {
            let _ = model.hidden(batch.clone(), None, None).inner().into_data();
        }),
    );
    best(
        "forward + backward, 32 x 300, no head",
        5,
        Box::new(|| {
            model.hidden(batch.clone(), None, None).sum_dim(2).sum().backward();
        }),
    );
    best(
        "forward + backward, 32 x 300, log-probs of all tokens",
        3,
        Box::new(|| {
            let hidden = model.hidden(batch.clone(), None, None).reshape([9600, 64]);
            let out = token_log_probs(&model, hidden, labels.clone(), 1.0, 1024);
            (out.log_probs.sum() + out.entropy.sum()).backward();
        }),
    );
}
