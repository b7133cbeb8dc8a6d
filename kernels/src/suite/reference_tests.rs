//! The reference bodies, which run where there is no other body: a test on a backend with kernels
//! would not meet them.
use super::{
    Case, Fill, Matrix, Op, Rows, Upstream, standard, vocabulary_definitions::DIVERGENCES,
};
use crate::{
    KernelOps,
    linear_log_probs::HeadLayout,
    select::reference_here::with_reference,
    testing::{assert_case, dtypes},
};
use burn::tensor::DType;

#[test]
fn the_reference_is_the_definition() {
    the_reference_holds::<burn::backend::Flex>();
}

/// Without fusion, which would run the operation on a thread of its own.
#[cfg(feature = "wgpu")]
mod on_wgpu {
    use burn::backend::wgpu::{CubeBackend, WgpuRuntime};

    #[test]
    fn the_reference_is_the_definition() {
        if crate::testing::has_adapter() {
            super::the_reference_holds::<CubeBackend<WgpuRuntime, f32, i32, u32>>();
        }
    }
}

fn the_reference_holds<B: KernelOps>() {
    let case = |op, fill| Case { op, dtype: DType::F32, fill, upstream: Upstream::Every };
    let rows = Rows { n_teacher_vocab: 31, temperature: 0.7, ..Rows::new(3, 37) };
    with_reference(|| {
        for dtype in dtypes::<B>() {
            for case in standard(dtype) {
                // One size is enough.
                if !matches!(&case.op, Op::LogProbs(r) | Op::LogSoftmaxKl(r, _) if r.n_vocab > 1003)
                {
                    assert_case::<B>(&case);
                }
            }
        }
        for d in DIVERGENCES {
            let op = Op::LinearKl(rows, HeadLayout::VocabRows, d);
            for fill in [Fill::Ordinary, Fill::Broken] {
                assert_case::<B>(&case(op.clone(), fill));
            }
            assert_case::<B>(&case(Op::LogSoftmaxKl(Rows::new(4, 300), d), Fill::Impossible));
        }
        let matrix = Matrix { n_rows: 3, width: 37 };
        for op in [Op::RmsNorm(matrix), Op::Swiglu(matrix), Op::ErfGelu(matrix)] {
            assert_case::<B>(&case(op, Fill::Broken));
        }
        assert_case::<B>(&case(Op::Swiglu(matrix), Fill::Far(0.0)));
    });
}
