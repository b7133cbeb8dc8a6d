//! Every operation over its whole range of shapes, types and inputs, on every backend.
use super::{hidden_definitions::AttentionShape, vocabulary_definitions::DIVERGENCES, *};
use crate::testing::{assert_case, dtypes, is_of_cheap_products, on_every_backend};

on_every_backend!(
    the_standard_cases_hold,
    any_number_of_rows,
    any_size_of_vocabulary,
    vocabularies_of_real_models,
    every_divergence_far_from_zero,
    impossible_entries_add_nothing,
    nan_stays_in_its_row,
    without_a_gradient_from_above_there_is_none_below,
    any_shape_of_hidden_states,
    any_shape_of_attention,
    any_shape_of_a_cache,
    no_unit_walks_further_than_a_software_driver_lets_it,
);

const N_ROWS: [usize; 12] = [1, 2, 3, 63, 64, 65, 255, 256, 257, 1000, 4096, 4097];
const SKEW: Divergence = Divergence::SkewForward { alpha: 0.1 };

fn check<B: KernelOps>(op: Op, dtype: DType, fill: Fill, upstream: Upstream) {
    assert_case::<B>(&Case { op, dtype, fill, upstream });
}

/// The operations over the vocabulary that see logits.
fn logit_ops(rows: Rows, d: Divergence) -> [Op; 2] {
    [Op::LogProbs(rows), Op::LogSoftmaxKl(rows, d)]
}

/// And those that see hidden states. Their kernels are the same; what they add are matrix products,
/// of which a GPU runtime compiles another kernel for nearly every shape and type: two seconds each
/// on a software driver. There they all have one shape, that of the standard cases, and f32, but
/// where the shape is what is asked.
fn linear_ops<B: KernelOps>(rows: Rows, dtype: DType, d: Divergence) -> Vec<Op> {
    let rows = if is_of_cheap_products::<B>() { rows } else { standard_rows() };
    if !is_of_cheap_products::<B>() && dtype != DType::F32 {
        return Vec::new();
    }
    let layout = HeadLayout::VocabColumns;
    vec![Op::LinearLogProbs(rows, HeadLayout::VocabRows), Op::LinearKl(rows, layout, d)]
}

fn the_standard_cases_hold<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        standard(dtype).iter().for_each(assert_case::<B>);
    }
}

fn any_number_of_rows<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for n_rows in N_ROWS {
            let rows = Rows { n_teacher_vocab: 5, temperature: 0.7, ..Rows::new(n_rows, 7) };
            for op in logit_ops(rows, SKEW) {
                check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
            }
            // A product of one row is another kernel than that of many.
            let is_edge = [1, 65, 4097].contains(&n_rows);
            if is_edge && (is_of_cheap_products::<B>() || n_rows == 1 && dtype == DType::F32) {
                let op = Op::LinearKl(rows, HeadLayout::VocabColumns, SKEW);
                check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
            }
            let matrix = Matrix { n_rows, width: 6 };
            let turns = Turns { n_rows, n_positions: n_rows, n_heads: 1, half: 3 };
            for op in
                [Op::RmsNorm(matrix), Op::Swiglu(matrix), Op::ErfGelu(matrix), Op::Rotary(turns)]
            {
                check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
            }
        }
    }
}

fn any_size_of_vocabulary<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for n_vocab in [1, 2, 127, 128, 1000usize] {
            for n_teacher_vocab in [n_vocab, n_vocab + 3, n_vocab.div_ceil(2)] {
                let rows = Rows { n_teacher_vocab, temperature: 1.5, ..Rows::new(5, n_vocab) };
                let d = Divergence::SymmetricKl { lambda: 0.4 };
                for op in logit_ops(rows, d) {
                    check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
                }
                let is_one = n_vocab == 1 && dtype == DType::F32;
                if n_teacher_vocab > n_vocab && (is_of_cheap_products::<B>() || is_one) {
                    let log_probs = Op::LinearLogProbs(rows, HeadLayout::VocabRows);
                    for op in [log_probs, Op::LinearKl(rows, HeadLayout::VocabColumns, d)] {
                        check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
                    }
                }
            }
        }
    }
}

fn vocabularies_of_real_models<B: KernelOps>() {
    let rows = Rows { n_teacher_vocab: 128_256, ..Rows::new(2, 151_936) };
    let mixture = Divergence::SkewReverse { alpha: 0.1 };
    for dtype in dtypes::<B>() {
        for d in [Divergence::ForwardKl, mixture, Divergence::Taid { t: 0.4 }] {
            check::<B>(Op::LogSoftmaxKl(rows, d), dtype, Fill::Ordinary, Upstream::Every);
        }
        for n_vocab in [128_256, 151_936] {
            let log_probs = Op::LogProbs(Rows::new(2, n_vocab));
            check::<B>(log_probs, dtype, Fill::Ordinary, Upstream::Every);
            if is_of_cheap_products::<B>() {
                let op = Op::LinearLogProbs(Rows::new(3, n_vocab), HeadLayout::VocabRows);
                check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
            }
        }
        if is_of_cheap_products::<B>() || dtype == DType::F32 {
            let op = Op::LinearKl(rows, HeadLayout::VocabRows, mixture);
            check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
        }
    }
}

fn every_divergence_far_from_zero<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for by in [0.0, 1e4, -1e4] {
            check::<B>(Op::LogProbs(Rows::new(3, 127)), dtype, Fill::Far(by), Upstream::Every);
            let rows = Rows { n_teacher_vocab: 123, temperature: 0.7, ..Rows::new(3, 127) };
            for d in DIVERGENCES {
                check::<B>(Op::LogSoftmaxKl(rows, d), dtype, Fill::Far(by), Upstream::Every);
            }
            // In 16 bits a hidden state of 10,000 leaves no digits for the others' products.
            if dtype == DType::F32 {
                for d in [
                    Divergence::SymmetricKl { lambda: 0.9 },
                    Divergence::Taid { t: 0.4 },
                    Divergence::TotalVariation,
                ] {
                    for op in linear_ops::<B>(rows, dtype, d) {
                        check::<B>(op, dtype, Fill::Far(by), Upstream::Every);
                    }
                }
            }
        }
    }
}

fn impossible_entries_add_nothing<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for d in DIVERGENCES {
            check::<B>(
                Op::LogSoftmaxKl(Rows::new(4, 300), d),
                dtype,
                Fill::Impossible,
                Upstream::Every,
            );
        }
        check::<B>(Op::LogProbs(Rows::new(4, 300)), dtype, Fill::Impossible, Upstream::Every);
    }
}

fn nan_stays_in_its_row<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for n_vocab in [2, 300] {
            for d in [
                Divergence::ForwardKl,
                SKEW,
                Divergence::TotalVariation,
                Divergence::Taid { t: 0.4 },
            ] {
                let rows = Rows::new(3, n_vocab);
                for op in logit_ops(rows, d).into_iter().chain(linear_ops::<B>(rows, dtype, d)) {
                    check::<B>(op, dtype, Fill::Broken, Upstream::Every);
                }
            }
        }
        let matrix = Matrix { n_rows: 3, width: 37 };
        let turns = Turns { n_rows: 3, n_positions: 3, n_heads: 2, half: 2 };
        let decode =
            AttentionShape { starts: vec![5, 9, 3], n_queries: 1, n_keys: 12, ..causal(3, 1) };
        let attention = [Op::Attention(causal(3, 20)), Op::Decode(decode)];
        for op in [Op::RmsNorm(matrix), Op::Swiglu(matrix), Op::ErfGelu(matrix), Op::Rotary(turns)]
            .into_iter()
            .chain(attention)
        {
            check::<B>(op, dtype, Fill::Broken, Upstream::Every);
        }
    }
}

fn without_a_gradient_from_above_there_is_none_below<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        let matrix = Matrix { n_rows: 3, width: 37 };
        let hidden = [
            Op::RmsNorm(matrix),
            Op::Swiglu(matrix),
            Op::ErfGelu(matrix),
            Op::Attention(causal(2, 9)),
        ];
        let rows = Rows::new(65, 130);
        let vocabulary =
            logit_ops(rows, SKEW).into_iter().chain(linear_ops::<B>(rows, dtype, SKEW));
        for op in vocabulary.chain(hidden) {
            for check in (Case { op, dtype, fill: Fill::Ordinary, upstream: Upstream::None })
                .check::<B>(&Default::default())
            {
                let most = if check.quantity.starts_with('d')
                    && !check.quantity.starts_with("divergence")
                {
                    0.0
                } else {
                    check.tolerance
                };
                assert!(check.worst <= most, "{check:?}");
            }
        }
    }
}

fn any_shape_of_hidden_states<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for (n_rows, width) in [(1, 1), (3, 5), (130, 48), (2, 700), (5, 896), (2, 4864)] {
            let matrix = Matrix { n_rows, width };
            for op in [Op::RmsNorm(matrix), Op::Swiglu(matrix), Op::ErfGelu(matrix)] {
                check::<B>(op, dtype, Fill::Ordinary, Upstream::Every);
            }
        }
        check::<B>(
            Op::Swiglu(Matrix { n_rows: 2, width: 300 }),
            dtype,
            Fill::Far(0.0),
            Upstream::Every,
        );
        for (n_rows, n_positions, n_heads, half) in
            [(1, 1, 1, 1), (6, 3, 2, 2), (10, 5, 3, 16), (130, 65, 14, 32)]
        {
            check::<B>(
                Op::Rotary(Turns { n_rows, n_positions, n_heads, half }),
                dtype,
                Fill::Ordinary,
                Upstream::Every,
            );
        }
    }
}

fn causal(n_rows: usize, n: usize) -> AttentionShape {
    AttentionShape {
        starts: vec![0; n_rows],
        lengths: None,
        n_heads: 4,
        n_kv_heads: 2,
        n_queries: n,
        n_keys: n,
        head_dim: 16,
    }
}

fn any_shape_of_attention<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        let ragged = AttentionShape {
            starts: vec![6, 1],
            n_queries: 3,
            n_keys: 9,
            n_heads: 5,
            n_kv_heads: 1,
            head_dim: 24,
            ..causal(2, 3)
        };
        // Encoder rows; and keys that nobody sees, rows that start in the middle, rows shorter than
        // their queries.
        let whole = AttentionShape {
            starts: vec![1, 70, 17],
            lengths: Some(vec![1, 70, 17]),
            ..causal(3, 70)
        };
        let short = AttentionShape {
            starts: vec![0, 30, 7],
            lengths: Some(vec![3, 40, 25]),
            n_keys: 60,
            ..causal(3, 19)
        };
        // Seven heads a group, and heads that fill no vector, or several.
        let head = |n_kv_heads, n_heads, n, head_dim| AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim,
            ..causal(1, n)
        };
        for shape in [
            causal(1, 1),
            causal(2, 7),
            causal(1, 64),
            causal(1, 65),
            causal(1, 257),
            ragged,
            whole,
            short,
            head(1, 1, 1, 6),
            head(2, 14, 33, 64),
            head(1, 2, 129, 128),
        ] {
            // Groups of 4, 2 and 1 heads for one shape.
            let is_of_all_groups = shape.n_queries == 65;
            if !is_of_cheap_products::<B>() && dtype != DType::F32 && !is_of_all_groups {
                continue;
            }
            let groups = if is_of_all_groups { vec![1, 2, 4] } else { vec![shape.n_kv_heads] };
            for n_kv_heads in groups {
                check::<B>(
                    Op::Attention(AttentionShape { n_kv_heads, ..shape.clone() }),
                    dtype,
                    Fill::Ordinary,
                    Upstream::Every,
                );
            }
        }
    }
}

fn any_shape_of_a_cache<B: KernelOps>() {
    for dtype in dtypes::<B>() {
        for (starts, n_queries, n_keys, head_dim) in [
            (vec![0], 1, 1, 16),
            (vec![32, 0, 15, 16], 1, 33, 16),
            (vec![7, 7], 1, 300, 12),
            (vec![3, 8], 4, 40, 64),
            (vec![255; 9], 1, 256, 64),
        ] {
            let shape = AttentionShape { starts, n_queries, n_keys, head_dim, ..causal(1, 1) };
            check::<B>(Op::Decode(shape.clone()), dtype, Fill::Ordinary, Upstream::Every);
            check::<B>(Op::CacheWrite(shape), dtype, Fill::Ordinary, Upstream::Every);
        }
    }
}

/// A software Vulkan driver ends all loops of a unit behind 65,535 rounds, without a word: more
/// rows, positions, tokens and columns than that, for every kernel and every form of it.
fn no_unit_walks_further_than_a_software_driver_lets_it<B: KernelOps>() {
    const MANY: usize = 70_000;
    const VOCAB: usize = 151_936;
    let rows = Rows::new(MANY, 7);
    let forms = [Divergence::ForwardKl, Divergence::TotalVariation, Divergence::Taid { t: 0.4 }];
    let linear = Op::LinearKl(rows, HeadLayout::VocabRows, SKEW);
    let logits = forms
        .map(|d| Op::LogSoftmaxKl(rows, d))
        .into_iter()
        .chain(logit_ops(rows, SKEW))
        .chain([linear]);
    let columns = Rows::new(2, VOCAB);
    let variation = [
        Op::LogProbs(columns),
        Op::LogSoftmaxKl(columns, Divergence::TotalVariation),
        Op::LinearKl(columns, HeadLayout::VocabColumns, Divergence::TotalVariation),
    ];
    let matrices = [Matrix { n_rows: MANY, width: 6 }, Matrix { n_rows: 2, width: VOCAB }];
    let hidden = matrices
        .into_iter()
        .flat_map(|matrix| [Op::RmsNorm(matrix), Op::Swiglu(matrix), Op::ErfGelu(matrix)]);
    let turns = Op::Rotary(Turns { n_rows: MANY, n_positions: MANY, n_heads: 1, half: 3 });
    let many_rows = AttentionShape { n_heads: 2, n_kv_heads: 1, head_dim: 8, ..causal(MANY, 1) };
    let far = AttentionShape {
        starts: vec![MANY - 20],
        n_queries: 20,
        n_keys: MANY,
        ..many_rows.clone()
    };
    let many_queries =
        AttentionShape { starts: vec![3], n_queries: MANY, n_keys: 4, ..many_rows.clone() };
    let one = AttentionShape { starts: vec![MANY - 1], n_queries: 1, ..far.clone() };
    let positions = AttentionShape { starts: vec![0], n_queries: MANY, ..far.clone() };
    let attention = [many_rows, far, many_queries].map(Op::Attention);
    let cache = [Op::Decode(one), Op::CacheWrite(positions)];
    let samples = [Op::Sample(rows), Op::Sample(Rows::new(4, VOCAB))];
    let all = logits
        .chain(variation)
        .chain(hidden)
        .chain([turns])
        .chain(attention)
        .chain(cache)
        .chain(samples);
    all.for_each(|op| check::<B>(op, DType::F32, Fill::Ordinary, Upstream::Every));
}
