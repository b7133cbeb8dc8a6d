//! Which tensor name belongs to which parameter of a module.
//!
//! A parameter's path of field names is its Hugging Face name, except where Rust or burn call a
//! field otherwise: `RENAMED` lists those. A `burn::nn::Linear` keeps its weight as [in, out] where
//! the file has [out, in]; the visitor sees it by the container's name.

use crate::Backend;
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::Tensor,
};

/// (struct, field, name in the checkpoint). An empty name leaves the level out.
const RENAMED: &[(&str, &str, &str)] = &[
    ("Struct:Critic", "trunk", ""),
    ("Struct:BertEmbeddings", "layer_norm", "LayerNorm"),
    ("Struct:BertAttention", "self_attention", "self"),
    ("Struct:BertOutput", "layer_norm", "LayerNorm"),
    ("Struct:LayerNorm", "gamma", "weight"),
    ("Struct:LayerNorm", "beta", "bias"),
];

/// A float parameter as a checkpoint sees it.
pub(super) struct Parameter {
    pub(super) id: ParamId,
    pub(super) name: String,
    /// In the file's layout: [out, in] for the weight of a Linear.
    pub(super) shape: Vec<usize>,
}

/// Position of a walk over a module. Fed by `enter_module` and `exit_module` of visitors and
/// mappers.
#[derive(Default)]
pub(super) struct ParameterPath {
    /// Per level: its name in the checkpoint, and whether it is the weight of a Linear.
    levels: Vec<(String, bool)>,
}

impl ParameterPath {
    pub(super) fn enter(&mut self, field: &str, container: &str) {
        let renamed = RENAMED.iter().find(|(of, from, _)| *of == container && *from == field);
        let name = renamed.map_or(field, |(_, _, to)| to).to_owned();
        self.levels.push((name, container == "Struct:Linear" && field == "weight"));
    }

    pub(super) fn exit(&mut self) {
        self.levels.pop();
    }

    /// The checkpoint's name of the parameter at this place.
    pub(super) fn name(&self) -> String {
        let named: Vec<&str> = self
            .levels
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        named.join(".")
    }

    /// True if the file has this parameter transposed.
    pub(super) fn is_transposed(&self) -> bool {
        self.levels.last().is_some_and(|(_, is_linear_weight)| *is_linear_weight)
    }
}

/// Every float parameter in visiting order. Lazy parameters stay lazy.
pub(super) fn parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<Parameter> {
    #[derive(Default)]
    struct Collector {
        path: ParameterPath,
        found: Vec<Parameter>,
    }
    impl<B: Backend> ModuleVisitor<B> for Collector {
        fn enter_module(&mut self, field: &str, container: &str) {
            self.path.enter(field, container);
        }
        fn exit_module(&mut self, _field: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let mut shape = param.lazy_shape().to_vec();
            if self.path.is_transposed() {
                shape.reverse();
            }
            self.found.push(Parameter { id: param.id, name: self.path.name(), shape });
        }
    }
    let mut collector = Collector::default();
    module.visit(&mut collector);
    collector.found
}
