//! Launching the kernels of the vocabulary on tensors of a CubeCL runtime.
use super::{
    kernel, kernel_grad,
    packed::{COLUMNS, ONE_COLUMNS, Span},
    tiles::Tiles,
};
use crate::{
    cube::{addresses, empty, row_cubes, unit_count, with_row_stride},
    types::{DivergencePlan, Form},
};
use burn::tensor::{DType, Shape, TensorMetadata, backend::Backend, ops::FloatTensorOps};
use burn_cubecl::{
    CubeBackend, CubeRuntime, FloatElement, IntElement,
    element::BoolElement,
    kernel::{
        into_contiguous,
        matmul::{MatmulStrategy, matmul},
    },
    tensor::CubeTensor,
};
use cubecl::CubeDim;

fn form(plan: &DivergencePlan) -> u32 {
    match plan.form {
        Form::Sums { .. } => kernel::SUMS,
        Form::Mixture { .. } => kernel::MIXTURE,
        Form::Variation => kernel::VARIATION,
    }
}

/// The packed rows to write into, and whether they hold nothing yet.
fn packed_or_new<R: CubeRuntime>(
    packed: Option<CubeTensor<R>>,
    like: &CubeTensor<R>,
    columns: usize,
) -> (CubeTensor<R>, u32) {
    let is_first = packed.is_none();
    let packed =
        packed.unwrap_or_else(|| empty(like, Shape::new([like.shape()[0], columns]), DType::F32));
    (packed, u32::from(is_first))
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Tiles
    for CubeBackend<R, F, I, BT>
where
    Self: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
{
    fn product(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
        matmul(lhs, rhs, None, MatmulStrategy::default(), DType::F32)
            .expect("a matrix product of two matrices that fit can be launched")
    }

    fn fold_one(
        tile: CubeTensor<R>,
        labels: CubeTensor<R>,
        packed: Option<CubeTensor<R>>,
        span: Span,
        scale: f32,
    ) -> CubeTensor<R> {
        let (tile, labels) = (with_row_stride(tile), into_contiguous(labels));
        let (packed, is_first) = packed_or_new(packed, &tile, ONE_COLUMNS);
        let n_rows = tile.shape()[0];
        let units = unit_count(&tile, span.end - span.start);
        let types = [tile.dtype.into(), labels.dtype.into()];
        kernel::fold_one::launch::<R>(
            &packed.client,
            row_cubes(n_rows),
            CubeDim::new_1d(units as u32),
            addresses(&[&tile, &packed]),
            tile.into_tensor_arg(),
            labels.into_tensor_arg(),
            packed.clone().into_tensor_arg(),
            n_rows,
            span.start,
            span.end,
            span.offset,
            is_first,
            scale,
            units,
            types,
        );
        packed
    }

    fn fold_two(
        student: CubeTensor<R>,
        teacher: CubeTensor<R>,
        labels: CubeTensor<R>,
        packed: Option<CubeTensor<R>>,
        span: Span,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CubeTensor<R> {
        let (student, teacher, labels) =
            (with_row_stride(student), with_row_stride(teacher), into_contiguous(labels));
        let (packed, is_first) = packed_or_new(packed, &student, COLUMNS);
        let n_rows = student.shape()[0];
        let units = unit_count(&student, span.end - span.start);
        let types = [student.dtype.into(), teacher.dtype.into(), labels.dtype.into()];
        let [f0, f1, f2, _] = plan.factors();
        kernel::fold_two::launch::<R>(
            &packed.client,
            row_cubes(n_rows),
            CubeDim::new_1d(units as u32),
            addresses(&[&student, &teacher, &packed]),
            student.into_tensor_arg(),
            teacher.into_tensor_arg(),
            labels.into_tensor_arg(),
            packed.clone().into_tensor_arg(),
            n_rows,
            span.start,
            span.end,
            span.offset,
            is_first,
            scale,
            plan.blend,
            f0,
            f1,
            f2,
            units,
            types,
        );
        packed
    }

    fn fold_second(
        student: CubeTensor<R>,
        teacher: CubeTensor<R>,
        packed: CubeTensor<R>,
        span: Span,
        is_first: bool,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CubeTensor<R> {
        let (student, teacher) = (with_row_stride(student), with_row_stride(teacher));
        let n_rows = student.shape()[0];
        let units = unit_count(&student, span.end - span.start);
        let types = [student.dtype.into(), teacher.dtype.into()];
        let [weight, f1, f2, f3] = plan.factors();
        kernel::fold_second::launch::<R>(
            &packed.client,
            row_cubes(n_rows),
            CubeDim::new_1d(units as u32),
            addresses(&[&student, &teacher, &packed]),
            student.into_tensor_arg(),
            teacher.into_tensor_arg(),
            packed.clone().into_tensor_arg(),
            n_rows,
            span.start,
            span.end,
            u32::from(is_first),
            scale,
            weight,
            f1,
            f2,
            f3,
            form(plan),
            units,
            types,
        );
        packed
    }

    fn grad_one(
        tile: CubeTensor<R>,
        labels: CubeTensor<R>,
        packed: CubeTensor<R>,
        grad: CubeTensor<R>,
        dtype: DType,
        span: Span,
        scale: f32,
    ) -> CubeTensor<R> {
        let out = empty(&tile, tile.shape(), dtype);
        grad_one_into(tile, labels, packed, grad, out, span, scale)
    }

    fn grad_two(
        student: CubeTensor<R>,
        teacher: CubeTensor<R>,
        labels: CubeTensor<R>,
        packed: CubeTensor<R>,
        grad: CubeTensor<R>,
        dtype: DType,
        span: Span,
        plan: &DivergencePlan,
        scale: f32,
    ) -> CubeTensor<R> {
        let (student, teacher, labels) =
            (with_row_stride(student), with_row_stride(teacher), into_contiguous(labels));
        let (packed, grad) = (into_contiguous(packed), into_contiguous(grad));
        let [n_rows, n_columns] = student.shape().dims();
        let out = empty(&student, student.shape(), dtype);
        let units = unit_count(&student, span.end - span.start);
        let types = [student.dtype.into(), teacher.dtype.into(), labels.dtype.into(), dtype.into()];
        let [f0, f1, f2, _] = plan.factors();
        kernel_grad::grad_two::launch::<R>(
            &out.client,
            row_cubes(n_rows),
            CubeDim::new_1d(units as u32),
            addresses(&[&student, &teacher, &out]),
            student.clone().into_tensor_arg(),
            teacher.into_tensor_arg(),
            labels.clone().into_tensor_arg(),
            packed.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n_rows,
            span.start,
            span.end,
            span.offset,
            scale,
            plan.blend,
            f0,
            f1,
            f2,
            form(plan),
            units,
            types,
        );
        match span.end < n_columns {
            true => grad_one_into(
                student,
                labels,
                packed,
                grad,
                out,
                Span { start: span.end, end: n_columns, offset: span.offset },
                scale,
            ),
            false => out,
        }
    }

    fn assign(
        whole: CubeTensor<R>,
        start: usize,
        dim: usize,
        part: CubeTensor<R>,
    ) -> CubeTensor<R> {
        let part = Self::float_cast(part, whole.dtype.into());
        let slices: Vec<burn::tensor::Slice> = (0..2)
            .map(|d| {
                if d == dim {
                    (start..start + part.shape()[d]).into()
                } else {
                    (0..part.shape()[d]).into()
                }
            })
            .collect();
        Self::float_slice_assign(whole, &slices, part)
    }
}

fn grad_one_into<R: CubeRuntime>(
    tile: CubeTensor<R>,
    labels: CubeTensor<R>,
    packed: CubeTensor<R>,
    grad: CubeTensor<R>,
    out: CubeTensor<R>,
    span: Span,
    scale: f32,
) -> CubeTensor<R> {
    let (tile, labels, packed, grad) = (
        with_row_stride(tile),
        into_contiguous(labels),
        into_contiguous(packed),
        into_contiguous(grad),
    );
    let n_rows = tile.shape()[0];
    let units = unit_count(&tile, span.end - span.start);
    let types = [tile.dtype.into(), labels.dtype.into(), out.dtype.into()];
    kernel_grad::grad_one::launch::<R>(
        &out.client,
        row_cubes(n_rows),
        CubeDim::new_1d(units as u32),
        addresses(&[&tile, &out]),
        tile.into_tensor_arg(),
        labels.into_tensor_arg(),
        packed.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        n_rows,
        span.start,
        span.end,
        span.offset,
        scale,
        units,
        types,
    );
    out
}
