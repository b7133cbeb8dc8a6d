//! AdamW with f32 master weights, and the global gradient norm.
//!
//! burn's own optimizer clips every parameter by itself and keeps moments in the gradient's dtype;
//! large-scale training (and the reference runs) clips by the global norm and keeps moments and a
//! master copy of the weights in f32. The parameters themselves live on the inner backend:
//! gradients exist only between a backward pass and this step.
//!
//! One step of Loshchilov & Hutter's AdamW, in PyTorch's order of operations (method §4.8):
//!
//! ```text
//! p ← p · (1 − lr · weight_decay)
//! m ← β1 m + (1 − β1) g        v ← β2 v + (1 − β2) g²
//! p ← p − lr / (1 − β1^t) · m / (sqrt(v) / sqrt(1 − β2^t) + eps)
//! ```
use crate::settings::AdamWRecipe;
use burn::{
    module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{DType, Tensor, TensorData},
};
use dgpo_kernels::rows::{WHOLE_ROWS, block_sums};
use dgpo_models::{
    Backend, TrainBackend,
    weights::{NamedTensor, parameter_names},
};
use std::collections::BTreeMap;

/// Added to the norm before dividing, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// Moments and, for half-precision parameters, the master copy of one parameter; flat `[n]`, f32.
#[derive(Clone, Debug)]
struct ParameterState<B: Backend> {
    first_moment: Tensor<B, 1>,
    second_moment: Tensor<B, 1>,
    /// Only where the parameter itself is not f32.
    master: Option<Tensor<B, 1>>,
}

/// The optimizer of one network.
#[derive(Clone, Debug)]
pub struct AdamW<B: Backend> {
    recipe: AdamWRecipe,
    /// Updates done (t of the bias correction).
    n_updates: u64,
    states: BTreeMap<ParamId, ParameterState<B>>,
}

/// Result of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f64,
    /// False if the loss or the norm was NaN or infinite: nothing was changed.
    pub is_applied: bool,
}

/// Errors of restoring optimizer state.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum OptimizerError {
    #[error("the optimizer state lacks {name}; hint: the checkpoint belongs to another model")]
    Missing { name: String },
    #[error(
        "the optimizer state holds {name}, which is no parameter of the model; hint: the \
         checkpoint belongs to another model"
    )]
    Unknown { name: String },
    #[error(
        "the optimizer state {name} has {found} values, the parameter {expected}; hint: the \
         checkpoint belongs to another model"
    )]
    Shape { name: String, found: usize, expected: usize },
}

impl<B: Backend> AdamW<B> {
    /// The optimizer before its first step.
    pub fn new(recipe: AdamWRecipe) -> Self {
        Self { recipe, n_updates: 0, states: BTreeMap::new() }
    }

    /// Updates done so far.
    pub fn n_updates(&self) -> u64 {
        self.n_updates
    }

    /// Clips the gradients of `loss` to the recipe's global norm and updates every parameter that
    /// has one, at learning rate `lr`.
    ///
    /// A loss or a norm that is not finite leaves the module and the moments untouched; the caller
    /// counts it. The loss is checked besides its gradient, because a NaN that is added to it, such
    /// as the log-prob of a broken reference, has no gradient.
    pub fn step<M: Module<B>>(
        &mut self,
        module: M,
        mut grads: GradientsParams,
        lr: f64,
        loss: f64,
    ) -> (M, StepStats) {
        let grad_norm = grad_norm::<B, M>(&module, &grads);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return (module, StepStats { grad_norm, is_applied: false });
        }
        let max_norm = self.recipe.max_grad_norm;
        let scale = if max_norm > 0.0 { (max_norm / (grad_norm + CLIP_EPS)).min(1.0) } else { 1.0 };
        self.n_updates += 1;
        let mut update = ParameterUpdate { optimizer: self, grads: &mut grads, lr, scale };
        (module.map(&mut update), StepStats { grad_norm, is_applied: true })
    }

    /// The state of every parameter of `module` that was ever updated, in visiting order:
    /// `PARAMETER.exp_avg`, `PARAMETER.exp_avg_sq` and, for half-precision parameters,
    /// `PARAMETER.master`.
    pub fn state<M: Module<B>>(&self, module: &M) -> Vec<NamedTensor> {
        let mut tensors = Vec::new();
        for (id, name) in parameter_names::<B, M>(module) {
            let Some(state) = self.states.get(&id) else { continue };
            let mut push = |part: &str, values: &Tensor<B, 1>| {
                let values: Vec<f32> = values.to_data().to_vec().expect("optimizer state is f32");
                tensors.push(NamedTensor {
                    name: format!("{name}.{part}"),
                    shape: vec![values.len()],
                    values,
                });
            };
            push("exp_avg", &state.first_moment);
            push("exp_avg_sq", &state.second_moment);
            if let Some(master) = &state.master {
                push("master", master);
            }
        }
        tensors
    }

    /// Rebuilds an optimizer from [`AdamW::state`].
    /// # Errors
    /// If an array is missing or does not fit the module.
    pub fn restore<M: Module<B>>(
        recipe: AdamWRecipe,
        n_updates: u64,
        tensors: Vec<NamedTensor>,
        module: &M,
        device: &B::Device,
    ) -> Result<Self, OptimizerError> {
        let mut sizes = ParameterSizes(BTreeMap::new());
        module.visit(&mut sizes);
        let mut arrays: BTreeMap<String, Vec<f32>> =
            tensors.into_iter().map(|t| (t.name, t.values)).collect();
        let mut states = BTreeMap::new();
        if n_updates > 0 {
            for (id, name) in parameter_names::<B, M>(module) {
                let expected = sizes.0.get(&id).copied().unwrap_or_default();
                // A parameter without gradients, such as the vocabulary head below a critic, never
                // had a state.
                if ["exp_avg", "exp_avg_sq", "master"]
                    .iter()
                    .all(|part| !arrays.contains_key(&format!("{name}.{part}")))
                {
                    continue;
                }
                let mut take = |part: &str| -> Result<Tensor<B, 1>, OptimizerError> {
                    let name = format!("{name}.{part}");
                    let values = arrays
                        .remove(&name)
                        .ok_or_else(|| OptimizerError::Missing { name: name.clone() })?;
                    if values.len() != expected {
                        return Err(OptimizerError::Shape { name, found: values.len(), expected });
                    }
                    Ok(Tensor::from_data(TensorData::new(values, [expected]), (device, DType::F32)))
                };
                let (first_moment, second_moment) = (take("exp_avg")?, take("exp_avg_sq")?);
                let master = match take("master") {
                    Ok(master) => Some(master),
                    Err(OptimizerError::Missing { .. }) => None,
                    Err(error) => return Err(error),
                };
                states.insert(id, ParameterState { first_moment, second_moment, master });
            }
            if let Some(name) = arrays.into_keys().next() {
                return Err(OptimizerError::Unknown { name });
            }
        }
        Ok(Self { recipe, n_updates, states })
    }
}

struct ParameterUpdate<'a, B: Backend> {
    optimizer: &'a mut AdamW<B>,
    grads: &'a mut GradientsParams,
    lr: f64,
    /// The clipping factor.
    scale: f64,
}

impl<B: Backend> ModuleMapper<B> for ParameterUpdate<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(grad) = self.grads.remove::<B, D>(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let AdamWRecipe { beta1, beta2, eps, weight_decay, .. } = self.optimizer.recipe;
        let t = self.optimizer.n_updates as i32;
        let shape = tensor.shape();
        let n = shape.num_elements();
        let dtype = tensor.dtype();
        let g = grad.reshape([n]).cast(DType::F32).mul_scalar(self.scale);
        let (m, v, p) = match self.optimizer.states.remove(&id) {
            Some(state) => {
                let p = state.master.unwrap_or_else(|| tensor.reshape([n]));
                (state.first_moment.mul_scalar(beta1), state.second_moment.mul_scalar(beta2), p)
            }
            None => (g.zeros_like(), g.zeros_like(), tensor.reshape([n]).cast(DType::F32)),
        };
        let m = m + g.clone().mul_scalar(1.0 - beta1);
        let v = v + (g.clone() * g).mul_scalar(1.0 - beta2);
        let denominator = v.clone().sqrt().div_scalar((1.0 - beta2.powi(t)).sqrt()).add_scalar(eps);
        let step_size = self.lr / (1.0 - beta1.powi(t));
        let p = p.mul_scalar(1.0 - self.lr * weight_decay)
            - (m.clone() / denominator).mul_scalar(step_size);
        let master = (dtype != DType::F32).then(|| p.clone());
        self.optimizer
            .states
            .insert(id, ParameterState { first_moment: m, second_moment: v, master });
        Param::from_mapped_value(id, p.cast(dtype).reshape(shape), mapper)
    }
}

struct ParameterSizes(BTreeMap<ParamId, usize>);
impl<B: Backend> ModuleVisitor<B> for ParameterSizes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.insert(param.id, param.val().shape().num_elements());
    }
}

/// Global L2 norm over all gradients of a module's parameters; NaN or infinite if any entry is.
///
/// Rows are summed first and added up in f64 on the host: one `sum()` over a large tensor is not
/// reproducible.
pub fn grad_norm<B: Backend, M: Module<B>>(module: &M, grads: &GradientsParams) -> f64 {
    let mut visitor = SquaredNorms { grads, squares: Vec::new() };
    module.visit(&mut visitor);
    visitor.squares.iter().sum::<f64>().sqrt()
}

struct SquaredNorms<'a> {
    grads: &'a GradientsParams,
    /// One sum a parameter, in visiting order.
    squares: Vec<f64>,
}

impl<B: Backend> ModuleVisitor<B> for SquaredNorms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(grad) = self.grads.get::<B, D>(param.id) else { return };
        let grad = grad.cast(DType::F32);
        let squares = grad.clone() * grad;
        let rows = match squares.dims()[D - 1] <= WHOLE_ROWS {
            true => squares.sum_dim(D - 1).into_data(),
            // Such a row is as long as a vocabulary and is summed a few thousand entries at a time.
            false => block_sums(squares.flatten(0, D - 1)).into_data(),
        };
        let rows: Vec<f32> = rows.to_vec().expect("cast to f32 above");
        self.squares.push(rows.iter().map(|&x| f64::from(x)).sum());
    }
}

/// The same module on the recording backend, every float parameter asking for a gradient. Storage
/// is shared, not copied.
pub fn with_gradients<B: TrainBackend, M: AutodiffModule<B>>(module: M::InnerModule) -> M {
    M::from_inner(module).map(&mut RequireGrad)
}

struct RequireGrad;
impl<B: TrainBackend> ModuleMapper<B> for RequireGrad {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(Tensor::require_grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cpu, CpuTrain};
    use burn::nn::{Linear, LinearConfig};

    fn recipe(max_grad_norm: f64) -> AdamWRecipe {
        AdamWRecipe {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm,
            ..AdamWRecipe::default()
        }
    }

    fn gradients(module: &Linear<Cpu>, scale: f32) -> GradientsParams {
        let model: Linear<CpuTrain> = with_gradients(module.clone());
        let x = Tensor::<CpuTrain, 2>::from_data([[1.0, -2.0]], &Default::default());
        let loss = model.forward(x).mul_scalar(scale).sum();
        GradientsParams::from_grads(loss.backward(), &model)
    }

    fn linear() -> Linear<Cpu> {
        let mut linear = LinearConfig::new(2, 1).with_bias(false).init(&Default::default());
        linear.weight = Param::from_data([[0.5], [0.25]], &Default::default());
        linear
    }

    /// The literal update for a constant gradient, in f64.
    fn literal(p0: f64, g: f64, steps: i32, lr: f64) -> f64 {
        let (mut p, mut m, mut v) = (p0, 0.0, 0.0);
        for t in 1..=steps {
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            p *= 1.0 - lr * 0.01;
            p -= lr / (1.0 - 0.9f64.powi(t)) * m / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        p
    }

    #[test]
    fn three_steps_follow_the_equation() {
        let (mut module, mut optimizer) = (linear(), AdamW::new(recipe(0.0)));
        for _ in 0..3 {
            let grads = gradients(&module, 1.0);
            module = optimizer.step(module, grads, 0.1, 0.0).0;
        }
        let weight: Vec<f32> = module.weight.val().into_data().to_vec().unwrap();
        assert!((f64::from(weight[0]) - literal(0.5, 1.0, 3, 0.1)).abs() < 1e-6);
        assert!((f64::from(weight[1]) - literal(0.25, -2.0, 3, 0.1)).abs() < 1e-6);
    }

    #[test]
    fn the_norm_is_global_and_clipping_scales_all_gradients_alike() {
        let module = linear();
        let (_, stats) =
            AdamW::new(recipe(1.0)).step(module.clone(), gradients(&module, 3.0), 0.1, 0.0);
        assert!((stats.grad_norm - (9.0f64 + 36.0).sqrt()).abs() < 1e-5);
        assert!(stats.is_applied);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let (module, mut optimizer) = (linear(), AdamW::new(recipe(1.0)));
        let before = module.weight.val().into_data();
        let grads = gradients(&module, f32::NAN);
        let (module, stats) = optimizer.step(module, grads, 0.1, 0.0);
        assert!(!stats.is_applied);
        assert_eq!(module.weight.val().into_data(), before);
        assert_eq!(optimizer.n_updates(), 0);
    }

    #[test]
    fn a_loss_that_is_not_finite_changes_nothing_though_its_gradient_is() {
        for loss in [f64::NAN, f64::INFINITY] {
            let (module, mut optimizer) = (linear(), AdamW::new(recipe(1.0)));
            let before = module.weight.val().into_data();
            let grads = gradients(&module, 1.0);
            let (module, stats) = optimizer.step(module, grads, 0.1, loss);
            assert!(!stats.is_applied && stats.grad_norm.is_finite());
            assert_eq!(module.weight.val().into_data(), before);
        }
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        let (mut module, mut optimizer) = (linear(), AdamW::new(recipe(1.0)));
        let grads = gradients(&module, 1.0);
        module = optimizer.step(module, grads, 0.1, 0.0).0;
        let state = optimizer.state(&module);
        let mut restored =
            AdamW::restore(recipe(1.0), optimizer.n_updates(), state, &module, &Default::default())
                .unwrap();
        let (a, _) = optimizer.step(module.clone(), gradients(&module, 0.3), 0.05, 0.0);
        let (b, _) = restored.step(module.clone(), gradients(&module, 0.3), 0.05, 0.0);
        assert_eq!(a.weight.val().into_data(), b.weight.val().into_data());
    }

    #[test]
    fn a_parameter_that_never_had_a_gradient_needs_no_state() {
        let module: Linear<Cpu> = LinearConfig::new(2, 1).init(&Default::default());
        let mut optimizer = AdamW::new(recipe(1.0));
        let module = optimizer.step(module.clone(), gradients(&module, 1.0), 0.1, 0.0).0;
        let mut state = optimizer.state(&module);
        let restore = |state: &[NamedTensor]| {
            AdamW::<Cpu>::restore(recipe(1.0), 1, state.to_vec(), &module, &Default::default())
        };
        state.retain(|tensor| !tensor.name.starts_with("bias"));
        assert_eq!(restore(&state).unwrap().state(&module).len(), state.len());
        state[0].name = "another.exp_avg".to_owned();
        assert!(
            restore(&state).is_err(),
            "half of a parameter's state, and an array that belongs to none"
        );
    }

    #[test]
    fn half_precision_parameters_keep_an_f32_master() {
        // A step of 1e-4 vanishes in bf16 at 0.5 (spacing 2^-9 = 0.002); forty of them must not.
        let mut module = linear();
        module.weight = module.weight.map(|w| w.cast(DType::BF16));
        let mut optimizer = AdamW::new(AdamWRecipe { weight_decay: 0.0, ..recipe(0.0) });
        for _ in 0..40 {
            let mut grads = GradientsParams::new();
            grads.register::<Cpu, 2>(
                module.weight.id,
                Tensor::from_data([[1.0], [1.0]], &Default::default()),
            );
            module = optimizer.step(module, grads, 1e-4, 0.0).0;
        }
        let weight: Vec<f32> = module.weight.val().cast(DType::F32).into_data().to_vec().unwrap();
        assert!((weight[0] - (0.5 - 40.0 * 1e-4)).abs() < 2e-3, "{weight:?}");
        assert!(weight[0] < 0.4985, "the updates were lost: {weight:?}");
    }
}
