//! From the entries of a checkpoint to the parameters of a module: first every difference is found,
//! then tensors are copied.

use super::{
    EMBEDDING, LM_HEAD, NamedTensor, cast,
    files::{Checkpoint, Entry},
    names::{Parameter, ParameterPath, parameters},
};
use crate::{Backend, ModelError, TensorProblem};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Tensor},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Deviations that a kind of model tolerates in a file.
pub(super) struct Rules {
    /// Some exports have this before every name, others leave it out.
    pub(super) prefix: &'static str,
    /// Tensors of the file that the model computes itself or does not use; checked after the prefix
    /// is settled.
    pub(super) ignored_prefixes: &'static [&'static str],
    pub(super) ignored_suffixes: &'static [&'static str],
    /// Parameters of the module that are neither written nor read.
    pub(super) skipped: &'static [&'static str],
}

impl Rules {
    fn is_ignored(&self, name: &str) -> bool {
        let name = name.strip_prefix(self.prefix).unwrap_or(name);
        self.ignored_prefixes.iter().any(|prefix| name.starts_with(prefix))
            || self.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix))
    }
}

/// `module` with every parameter replaced by the tensor of its name, as `dtype`. ParamIds and
/// `require_grad` stay.
pub(super) fn load_into<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    rules: &Rules,
    dtype: DType,
) -> Result<M, ModelError> {
    let Some(stored) = cast::stored_dtype(dtype) else {
        return Err(ModelError::StorageDtype {
            name: "every parameter".to_owned(),
            dtype: format!("{dtype:?}"),
        });
    };
    let sources = find_sources::<B, M>(&module, checkpoint, rules)?;
    let n_overflowing = |entry: &Entry| match stored == entry.dtype {
        true => 0,
        false => cast::n_overflowing(
            cast::decode_f32(checkpoint.bytes(entry), entry.dtype).into_iter(),
            dtype,
        ),
    };
    // Only f16 and bf16 are narrower than anything; the others need no look at the values.
    let narrowed = sources.iter().filter(|_| matches!(dtype, DType::F16 | DType::BF16));
    let overflowing = narrowed
        .map(|(name, entry)| (name.clone(), n_overflowing(entry)))
        .filter(|(_, n)| *n > 0)
        .collect();
    cast::overflow(&checkpoint.path, dtype, overflowing)?;
    Ok(module.map(&mut Loader { path: ParameterPath::default(), checkpoint, sources, dtype }))
}

/// The entry of each parameter of a module, or every reason why there is none. No parameter is
/// drawn and no weight is read.
pub(super) fn find_sources<'a, B: Backend, M: Module<B>>(
    module: &M,
    checkpoint: &'a Checkpoint,
    rules: &Rules,
) -> Result<BTreeMap<String, &'a Entry>, ModelError> {
    let expected: Vec<Parameter> = parameters::<B, M>(module)
        .into_iter()
        .filter(|p| !rules.skipped.contains(&p.name.as_str()))
        .collect();
    match_tensors(&expected, checkpoint, rules)
}

/// Refuses a config with more layers than the file has tensors. To be called before a module is
/// built: even without weights, a module of a billion layers does not fit into memory.
pub(super) fn check_n_layers(expected: usize, checkpoint: &Checkpoint) -> Result<(), ModelError> {
    if expected <= checkpoint.entries.len() {
        return Ok(());
    }
    let layer_of = |name: &String| name.split('.').find_map(|part| part.parse::<usize>().ok());
    let found = checkpoint
        .entries
        .keys()
        .filter_map(layer_of)
        .max()
        .map_or(0, |last| last.saturating_add(1));
    Err(ModelError::Tensors {
        path: checkpoint.path.clone(),
        problems: vec![TensorProblem::Layers { found, expected }],
    })
}

/// Every tensor of a file as f32, ordered by name.
pub(super) fn read_named(path: &Path) -> Result<Vec<NamedTensor>, ModelError> {
    let file = Checkpoint::open_file(path)?;
    let problems: Vec<TensorProblem> =
        file.entries.iter().filter_map(|(name, entry)| dtype_problem(name, entry)).collect();
    if !problems.is_empty() {
        return Err(ModelError::Tensors { path: path.to_owned(), problems });
    }
    let read = |(name, entry): (&String, &Entry)| NamedTensor {
        name: name.clone(),
        shape: entry.shape.clone(),
        values: cast::decode_f32(file.bytes(entry), entry.dtype),
    };
    Ok(file.entries.iter().map(read).collect())
}

/// The entry of each parameter, or every reason why there is none.
fn match_tensors<'a>(
    expected: &[Parameter],
    checkpoint: &'a Checkpoint,
    rules: &Rules,
) -> Result<BTreeMap<String, &'a Entry>, ModelError> {
    let wanted: BTreeSet<&str> = expected.iter().map(|parameter| parameter.name.as_str()).collect();
    if let Some(problem) = common_prefix(&wanted, checkpoint, rules) {
        return Err(ModelError::Tensors { path: checkpoint.path.clone(), problems: vec![problem] });
    }
    let mut found: BTreeMap<String, &Entry> = BTreeMap::new();
    let mut rest: Vec<(&String, &Entry)> = Vec::new();
    for (name, entry) in &checkpoint.entries {
        let candidates = [
            Some(name.clone()),
            name.strip_prefix(rules.prefix).map(str::to_owned),
            Some(format!("{}{name}", rules.prefix)),
        ];
        match candidates
            .into_iter()
            .flatten()
            .find(|candidate| wanted.contains(candidate.as_str()) && !found.contains_key(candidate))
        {
            Some(parameter) => _ = found.insert(parameter, entry),
            None => rest.push((name, entry)),
        }
    }
    let mut problems = Vec::new();
    for parameter in expected {
        let name = parameter.name.clone();
        match found.get(&name) {
            None if name == LM_HEAD => {
                problems.push(TensorProblem::HeadMissing { name, shape: parameter.shape.clone() })
            }
            None => problems.push(TensorProblem::Missing { name, shape: parameter.shape.clone() }),
            Some(entry) if entry.shape != parameter.shape => {
                problems.push(TensorProblem::Shape {
                    name,
                    found: entry.shape.clone(),
                    expected: parameter.shape.clone(),
                });
            }
            Some(entry) => problems.extend(dtype_problem(&name, entry)),
        }
    }
    for (name, entry) in rest {
        if name == LM_HEAD && !rules.skipped.contains(&LM_HEAD) {
            problems.extend(tied_head_problem(checkpoint, entry, found.get(EMBEDDING).copied()));
        } else if !rules.is_ignored(name) {
            problems.push(TensorProblem::Extra { name: name.clone(), shape: entry.shape.clone() });
        }
    }
    if problems.is_empty() {
        Ok(found)
    } else {
        Err(ModelError::Tensors { path: checkpoint.path.clone(), problems })
    }
}

/// Prefix of every name of a file none of whose names are known, if most are known
/// without it.
fn common_prefix(
    wanted: &BTreeSet<&str>,
    checkpoint: &Checkpoint,
    rules: &Rules,
) -> Option<TensorProblem> {
    let is_known = |name: &str| {
        wanted.contains(name)
            || name.strip_prefix(rules.prefix).is_some_and(|rest| wanted.contains(rest))
            || wanted.contains(format!("{}{name}", rules.prefix).as_str())
    };
    let names = || checkpoint.entries.keys();
    if names().any(|name| is_known(name)) {
        return None;
    }
    let first = names().next()?;
    let candidates = first.match_indices('.').map(|(dot, _)| &first[..=dot]);
    let prefix = candidates
        .take_while(|prefix| names().all(|name| name.starts_with(prefix)))
        .find(|prefix| {
            let n_known = names().filter(|name| is_known(&name[prefix.len()..])).count();
            2 * n_known > checkpoint.entries.len()
        })?;
    Some(TensorProblem::Prefix { prefix: prefix.to_owned(), n_tensors: checkpoint.entries.len() })
}

fn dtype_problem(name: &str, entry: &Entry) -> Option<TensorProblem> {
    (!cast::is_readable(entry.dtype)).then(|| TensorProblem::Dtype {
        name: name.to_owned(),
        dtype: format!("{:?}", entry.dtype),
    })
}

/// A tied model may come with its head written out, as some exports do, if the head is the
/// embedding.
fn tied_head_problem(
    checkpoint: &Checkpoint,
    head: &Entry,
    embedding: Option<&Entry>,
) -> Option<TensorProblem> {
    let is_same = embedding.is_some_and(|embedding| {
        head.shape == embedding.shape
            && head.dtype == embedding.dtype
            && checkpoint.bytes(head) == checkpoint.bytes(embedding)
    });
    (!is_same).then(|| TensorProblem::HeadNotTied {
        name: LM_HEAD.to_owned(),
        embedding: EMBEDDING.to_owned(),
    })
}

struct Loader<'a> {
    path: ParameterPath,
    checkpoint: &'a Checkpoint,
    sources: BTreeMap<String, &'a Entry>,
    dtype: DType,
}

impl<B: Backend> ModuleMapper<B> for Loader<'_> {
    fn enter_module(&mut self, field: &str, container: &str) {
        self.path.enter(field, container);
    }

    fn exit_module(&mut self, _field: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        // Only skipped parameters have no source: `match_tensors` found one for every other.
        let Some(entry) = self.sources.get(&self.path.name()) else { return param };
        let bytes = self.checkpoint.bytes(entry);
        let data =
            cast::decode(bytes, entry.dtype, &entry.shape, self.dtype, self.path.is_transposed());
        let (id, device) = (param.id, param.lazy_device());
        // `transform_for_load` keeps the mapper and `require_grad`, and does not draw a lazy
        // parameter first.
        param.transform_for_load(Tensor::from_data(data, (&device, self.dtype)), id)
    }
}
