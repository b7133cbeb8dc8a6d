//! From the parameters of a module to safetensors files: one, or shards with an index.
//!
//! Tensors are fetched from the device one at a time while the file is written, so saving needs the
//! memory of the largest tensor. Bytes are deterministic: tensors are ordered by dtype and name,
//! and nothing depends on the clock or on addresses.

use super::{
    NamedTensor, cast,
    files::{INDEX_FILE, SINGLE_FILE},
    load::Rules,
    names::ParameterPath,
};
use crate::{Backend, ModelError, files};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Tensor},
};
use safetensors::{Dtype, SafeTensorError, View};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

/// Above this, a model is written as several files of at most this size (a larger single tensor
/// gets a file of its own). transformers 4's default.
pub const SHARD_SIZE_BYTES: usize = 5_000_000_000;

/// Writes the parameters of `module` into `dir` and returns the dtype of the first. Files of an
/// earlier, differently sharded save are removed.
pub(super) fn save_module<B: Backend, M: Module<B>>(
    module: &M,
    dir: &Path,
    dtype: Option<DType>,
    rules: &Rules,
    shard_size_bytes: usize,
) -> Result<DType, ModelError> {
    fs::create_dir_all(dir).map_err(|source| ModelError::write(dir, source))?;
    let mut collector = Collector {
        path: ParameterPath::default(),
        dtype,
        rules,
        pending: Vec::new(),
        first_dtype: None,
        overflowing: Vec::new(),
        error: None,
    };
    module.visit(&mut collector);
    let Collector { mut pending, first_dtype, overflowing, error, .. } = collector;
    if let Some(error) = error {
        return Err(error);
    }
    cast::overflow(dir, dtype.unwrap_or(DType::F32), overflowing)?;
    pending.sort_by(|a, b| a.name.cmp(&b.name));
    let shards = split_into_shards(&pending, shard_size_bytes);
    let names: Vec<String> = match shards.len() {
        0 | 1 => vec![SINGLE_FILE.to_owned()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    let mut written: Vec<&str> = names.iter().map(String::as_str).collect();
    for (name, shard) in names.iter().zip(&shards) {
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(
            &dir.join(name),
            shard.iter().map(|pending| (&pending.name, pending)),
            Some(format),
        )?;
    }
    if shards.len() > 1 {
        write_text(&dir.join(INDEX_FILE), &index_json(&names, &shards))?;
        written.push(INDEX_FILE);
    }
    remove_stale(dir, &written)?;
    Ok(first_dtype.unwrap_or(DType::F32))
}

pub(super) fn write_named(path: &Path, tensors: &[NamedTensor]) -> Result<(), ModelError> {
    write_safetensors(path, tensors.iter().map(|tensor| (&tensor.name, tensor)), None)
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<(), ModelError> {
    files::write_file(path, text).map_err(|source| ModelError::write(path, source))
}

pub(super) fn copy_file(from: &Path, to: &Path) -> Result<PathBuf, ModelError> {
    let hint = "check its permissions";
    let bytes = fs::read(from).map_err(|source| ModelError::Read {
        path: from.to_owned(),
        source,
        hint,
    })?;
    files::write_file(to, bytes).map_err(|source| ModelError::write(to, source))?;
    Ok(to.to_owned())
}

/// A parameter that is to be written; its bytes are made when the file reaches it.
struct Pending {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Box<dyn Fn() -> Vec<u8>>,
}

impl Pending {
    fn size_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

impl View for &Pending {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.bytes)())
    }
    fn data_len(&self) -> usize {
        self.size_bytes()
    }
}

impl View for &NamedTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        assert_eq!(
            self.values.len(),
            self.shape.iter().product::<usize>(),
            "shape of {}",
            self.name
        );
        Cow::Owned(
            self.values
                .iter()
                .map(|value| value.to_le_bytes())
                .collect::<Vec<_>>()
                .into_flattened(),
        )
    }
    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

struct Collector<'a> {
    path: ParameterPath,
    dtype: Option<DType>,
    rules: &'a Rules,
    pending: Vec<Pending>,
    first_dtype: Option<DType>,
    /// Tensors with finite values that the file's dtype cannot hold, and how many.
    overflowing: Vec<(String, usize)>,
    error: Option<ModelError>,
}

impl<B: Backend> ModuleVisitor<B> for Collector<'_> {
    fn enter_module(&mut self, field: &str, container: &str) {
        self.path.enter(field, container);
    }

    fn exit_module(&mut self, _field: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        if self.rules.skipped.contains(&name.as_str()) {
            return;
        }
        let (tensor, is_transposed) = (param.val(), self.path.is_transposed());
        let dtype = self.dtype.unwrap_or(tensor.dtype());
        // A tensor of another dtype than these (quantised) is refused even when the target is
        // storable: its values are not plain floats.
        let (Some(stored), Some(_)) =
            (cast::stored_dtype(dtype), cast::stored_dtype(tensor.dtype()))
        else {
            self.error = Some(ModelError::StorageDtype {
                name,
                dtype: format!("{:?}", if self.dtype.is_some() { dtype } else { tensor.dtype() }),
            });
            return;
        };
        self.first_dtype.get_or_insert(dtype);
        if dtype != tensor.dtype() && matches!(dtype, DType::F16 | DType::BF16) {
            let n_overflowing = cast::n_overflowing(tensor.to_data().iter::<f32>(), dtype);
            self.overflowing.extend((n_overflowing > 0).then(|| (name.clone(), n_overflowing)));
        }
        let mut shape = tensor.dims().to_vec();
        if is_transposed {
            shape.reverse();
        }
        let bytes = Box::new(move || cast::encode(&tensor.to_data(), stored, is_transposed));
        self.pending.push(Pending { name, shape, dtype: stored, bytes });
    }
}

/// Consecutive runs of at most `limit` bytes.
fn split_into_shards(pending: &[Pending], limit: usize) -> Vec<&[Pending]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, tensor) in pending.iter().enumerate() {
        if i > start && size + tensor.size_bytes() > limit {
            shards.push(&pending[start..i]);
            (start, size) = (i, 0);
        }
        size += tensor.size_bytes();
    }
    shards.push(&pending[start..]);
    shards
}

fn index_json(names: &[String], shards: &[&[Pending]]) -> String {
    let total_size: usize =
        shards.iter().flat_map(|shard| shard.iter()).map(Pending::size_bytes).sum();
    let places = names.iter().zip(shards).flat_map(|(file, shard)| {
        shard.iter().map(move |tensor| (tensor.name.clone(), json!(file)))
    });
    let weight_map: BTreeMap<String, Value> = places.collect();
    format!("{:#}\n", json!({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
}

/// Weight files of an earlier save would be read instead of, or mixed with, the new ones.
fn remove_stale(dir: &Path, written: &[&str]) -> Result<(), ModelError> {
    for entry in fs::read_dir(dir).map_err(|source| ModelError::write(dir, source))? {
        let path = entry.map_err(|source| ModelError::write(dir, source))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_weights = name == INDEX_FILE
            || name == SINGLE_FILE
            || (name.starts_with("model-") && name.ends_with(".safetensors"));
        if is_weights && !written.contains(&name) {
            fs::remove_file(&path).map_err(|source| ModelError::write(&path, source))?;
        }
    }
    Ok(())
}

fn write_safetensors<'a, V: View>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a String, V)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), ModelError> {
    let tensors: Vec<(&String, V)> = tensors.collect();
    let written = files::replace_file(path, |unfinished| {
        safetensors::serialize_to_file(tensors, metadata, unfinished.path()).map_err(|error| {
            match error {
                SafeTensorError::IoError(error) => error,
                other => io::Error::other(other.to_string()),
            }
        })
    });
    written.map_err(|source| ModelError::write(path, source))
}
