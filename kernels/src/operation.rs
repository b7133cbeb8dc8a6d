//! One row an operation: its trait, and what is the same in every implementation.
//!
//! An operation's folder has its bodies (`reference.rs`, and `cpu.rs` and `kernel.rs` or
//! `tiles.rs`), each a function `forward` and, where there is a gradient, `backward`. The row names
//! the trait's methods and their arguments, and [`operation`] writes
//!
//! | | runs |
//! |---|---|
//! | the trait, with default bodies | `reference::forward` |
//! | `impl .. for Flex`, the CPU backend | `cpu::forward` |
//! | `impl .. for CubeBackend`, CUDA and wgpu | `kernel::forward` |
//! | `impl .. for Fusion<B>` | `B`'s method, as a node of the stream |
//!
//! The two with bodies of their own run the reference when `DGPO_KERNELS=reference` asks for it.
//! What an operation does on `Autodiff<B>`, its backward pass, is written by hand beside the row
//! (`autodiff.rs`), and needs the forward method alone: nobody differentiates a gradient.
pub(crate) use crate::select::is_reference_only;
pub(crate) use burn::{
    backend::Flex,
    tensor::{
        backend::Backend,
        ops::{FloatTensor, IntTensor},
    },
};
#[cfg(feature = "cube")]
pub(crate) use {
    crate::cube::fusion::{like, node, packed_rows},
    burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement, element::BoolElement},
    burn_fusion::{Fusion, FusionBackend},
};

/// The row. After the trait's name and supertrait comes where the bodies are: `own` (`cpu.rs` and
/// `kernel.rs`) or `tiles` (`tiles.rs`, for any backend that folds tiles of a vocabulary). Each
/// method is given as
///
/// ```text
/// forward rms_norm([x, weight], [], eps: f64) -> (like(&x));
/// |       |        |            |   |            |
/// |       |        |            |   |            shape and dtype: (of one result) or [of each]
/// |       |        |            |   plain arguments; those behind `&` are lent
/// |       |        |            integer tensors
/// |       |        float tensors
/// |       method of the trait
/// function of the bodies
/// ```
///
/// The place of expansion imports everything of this module.
macro_rules! operation {
    (
        $(#[$trait_doc:meta])*
        $name:ident: $super:path, $bodies:tt;
        $(
            $(#[$doc:meta])*
            $function:ident $method:ident(
                [$($x:ident),+], [$($i:ident),*] $(, $(&$lent:ident: $target:tt)? $($v:ident: $type:ty)?)*
            ) -> $results:tt;
        )+
    ) => {
        $(#[$trait_doc])*
        #[allow(
            clippy::too_many_arguments,
            reason = "tensors one by one, as in burn's own traits of operations"
        )]
        pub trait $name: $super {
            $(
                $(#[$doc])*
                fn $method(
                    $($x: FloatTensor<Self>,)+ $($i: IntTensor<Self>,)* $($($lent: &$target)? $($v: $type)?),*
                ) -> operation!(@type $results) {
                    reference::$function::<Self>($($x,)+ $($i,)* $($($lent)? $($v)?),*)
                }
            )+
        }

        impl $name for Flex {
            $(
                fn $method(
                    $($x: FloatTensor<Self>,)+ $($i: IntTensor<Self>,)* $($($lent: &$target)? $($v: $type)?),*
                ) -> operation!(@type $results) {
                    if is_reference_only() {
                        reference::$function::<Self>($($x,)+ $($i,)* $($($lent)? $($v)?),*)
                    } else {
                        operation!(@body $bodies cpu $function)($($x,)+ $($i,)* $($($lent)? $($v)?),*)
                    }
                }
            )+
        }

        #[cfg(feature = "cube")]
        impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> $name
            for CubeBackend<R, F, I, BT>
        {
            $(
                fn $method(
                    $($x: FloatTensor<Self>,)+ $($i: IntTensor<Self>,)* $($($lent: &$target)? $($v: $type)?),*
                ) -> operation!(@type $results) {
                    if is_reference_only() {
                        reference::$function::<Self>($($x,)+ $($i,)* $($($lent)? $($v)?),*)
                    } else {
                        operation!(@body $bodies kernel $function)($($x,)+ $($i,)* $($($lent)? $($v)?),*)
                    }
                }
            )+
        }

        #[cfg(feature = "cube")]
        impl<B: FusionBackend + $name> $name for Fusion<B> {
            $(
                fn $method(
                    $($x: FloatTensor<Self>,)+ $($i: IntTensor<Self>,)* $($($lent: &$target)? $($v: $type)?),*
                ) -> operation!(@type $results) {
                    let results = operation!(@shapes $results);
                    $($(let $lent = $lent.to_owned();)?)*
                    node::<B, _, _, _>(
                        stringify!($method),
                        [$($x),+],
                        [$($i),*],
                        results,
                        move |[$($x),+], [$($i),*]| {
                            B::$method($($x,)+ $($i,)* $($(&$lent)? $($v)?),*)
                        },
                    )
                }
            )+
        }
    };
    (@type ($one:expr)) => { FloatTensor<Self> };
    (@type [$($one:expr),+]) => { [FloatTensor<Self>; [$(stringify!($one)),+].len()] };
    (@shapes ($one:expr)) => { $one };
    (@shapes [$($one:expr),+]) => { [$($one),+] };
    (@body own $module:ident $function:ident) => { $module::$function };
    (@body tiles $module:ident $function:ident) => { tiles::$function::<Self> };
}
pub(crate) use operation;
