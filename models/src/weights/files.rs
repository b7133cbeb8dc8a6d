//! Opens the safetensors files of a model folder, memory-mapped, and checks them before anything is
//! believed.
//!
//! Contract: after [`Checkpoint::open`] every entry's bytes lie inside its file and have the length
//! its shape and dtype ask for. Knows no model: names and shapes are judged by `load`.

use crate::{ModelError, config::fields::BYTE_ORDER_MARK};
use memmap2::Mmap;
use safetensors::{Dtype, tensor::Metadata};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as MapEntry},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// A safetensors file starts with the length of its header, a little-endian u64.
const LENGTH_BYTES: usize = 8;
/// The format's own bound on headers; a larger length means the file is something else.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Beginning of a git-lfs pointer, which is what a clone without git-lfs leaves in place of a large
/// file, begins.
const LFS_MAGIC: &[u8] = b"version https://git-lfs";
const DOWNLOAD_AGAIN: &str = "download it again";

/// The tensors of a model folder, or of one file.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The folder, or the file: what errors name.
    pub(super) path: PathBuf,
    files: Vec<Mmap>,
    /// By tensor name.
    pub(super) entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    file_idx: usize,
    range: Range<usize>,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors` or all shards that `model.safetensors.index.json` names.
    pub(super) fn open(dir: &Path) -> Result<Self, ModelError> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.is_file() {
            let mut checkpoint =
                Self { path: dir.to_owned(), files: Vec::new(), entries: BTreeMap::new() };
            _ = checkpoint.add_file(&single)?;
            return Ok(checkpoint);
        }
        if index.is_file() {
            return Self::open_shards(dir, &index);
        }
        let hint = if dir.join("pytorch_model.bin").exists()
            || dir.join("pytorch_model.bin.index.json").exists()
        {
            "only safetensors are read; convert pytorch_model.bin with transformers' \
             save_pretrained"
        } else {
            "the folder must hold model.safetensors, or shards with model.safetensors.index.json"
        };
        Err(ModelError::Read { path: single, source: std::io::ErrorKind::NotFound.into(), hint })
    }

    /// Opens one file that belongs to no model folder.
    pub(super) fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut checkpoint =
            Self { path: path.to_owned(), files: Vec::new(), entries: BTreeMap::new() };
        _ = checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// The bytes of an entry, little-endian, row-major.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file_idx][entry.range.clone()]
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let weight_map = read_weight_map(index)?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let absent: Vec<&str> =
            shards.iter().copied().filter(|shard| !dir.join(shard).is_file()).collect();
        if !absent.is_empty() {
            let message = format!(
                "{} of its {} shards are not there: {}",
                absent.len(),
                shards.len(),
                absent.join(", ")
            );
            return Err(ModelError::Corrupt {
                path: index.to_owned(),
                message,
                hint: "download the missing files",
            });
        }
        let mut checkpoint =
            Self { path: dir.to_owned(), files: Vec::new(), entries: BTreeMap::new() };
        let shards: Vec<&str> = shards.into_iter().collect();
        let mut problems = Vec::new();
        for shard in &shards {
            let twice = checkpoint.add_file(&dir.join(shard))?;
            problems.extend(
                twice
                    .into_iter()
                    .map(|name| format!("\n  {name} lies in {shard} and in an earlier shard")),
            );
        }
        problems.extend(index_problems(&weight_map, &checkpoint, &shards));
        if problems.is_empty() {
            return Ok(checkpoint);
        }
        let message = format!(
            "it disagrees with its shards ({} problems):{}\n",
            problems.len(),
            problems.concat()
        );
        Err(ModelError::Corrupt {
            path: index.to_owned(),
            message,
            hint: "index and shards must be of the same download",
        })
    }

    /// Returns the tensors that an earlier file has already brought; those stay.
    fn add_file(&mut self, path: &Path) -> Result<Vec<String>, ModelError> {
        let map = map_file(path)?;
        let (data_start, metadata) = parse_header(path, &map)?;
        let mut twice = Vec::new();
        for (name, info) in metadata.tensors() {
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let entry = Entry {
                file_idx: self.files.len(),
                range,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            match self.entries.entry(name.clone()) {
                MapEntry::Vacant(place) => _ = place.insert(entry),
                MapEntry::Occupied(_) => twice.push(name),
            }
        }
        self.files.push(map);
        Ok(twice)
    }
}

/// Both directions: what the index places elsewhere than it lies, and what lies in a shard without
/// being placed.
fn index_problems(
    weight_map: &BTreeMap<String, String>,
    checkpoint: &Checkpoint,
    shards: &[&str],
) -> Vec<String> {
    let placed = weight_map.iter().filter_map(|(name, shard)| match checkpoint.entries.get(name) {
        None => Some(format!("\n  {name} is placed in {shard}, which has no such tensor")),
        Some(entry) if shards[entry.file_idx] != shard => {
            Some(format!("\n  {name} is placed in {shard}, but lies in {}", shards[entry.file_idx]))
        }
        Some(_) => None,
    });
    let left_out = checkpoint.entries.iter().filter(|(name, _)| !weight_map.contains_key(*name));
    placed
        .chain(left_out.map(|(name, entry)| {
            format!("\n  {name} lies in {}, but is not in the index", shards[entry.file_idx])
        }))
        .collect()
}

fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let read_error = |source| ModelError::Read {
        path: path.to_owned(),
        source,
        hint: "check the path and its permissions",
    };
    let file = File::open(path).map_err(read_error)?;
    let n_bytes = file.metadata().map_err(read_error)?.len();
    if n_bytes < LENGTH_BYTES as u64 {
        let message = format!("the file has only {n_bytes} bytes");
        return Err(ModelError::Corrupt { path: path.to_owned(), message, hint: DOWNLOAD_AGAIN });
    }
    // SAFETY: the map is read-only and private to this process's view of the file. Bytes are read
    // as plain integers, so any content is valid. A process that truncates the file while it is
    // mapped makes reads fault; checkpoints are replaced by rename and never cut in place.
    unsafe { Mmap::map(&file) }.map_err(read_error)
}

/// Start of the data, and the header, after checking both against the length of the
/// file.
fn parse_header(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata), ModelError> {
    let corrupt =
        |message: String, hint| ModelError::Corrupt { path: path.to_owned(), message, hint };
    if bytes.starts_with(LFS_MAGIC) {
        return Err(corrupt(
            "this is a git-lfs pointer, not the file itself".to_owned(),
            "run `git lfs pull` in its repository",
        ));
    }
    let (length, rest) =
        bytes.split_first_chunk::<LENGTH_BYTES>().expect("map_file checked the length");
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(corrupt(
            format!("the header's length reads {header_bytes}: not a safetensors file"),
            DOWNLOAD_AGAIN,
        ));
    }
    let Some(header) = rest.get(..header_bytes as usize) else {
        let message = format!(
            "the header should take {header_bytes} bytes, the file has {} in all",
            bytes.len()
        );
        return Err(corrupt(message, DOWNLOAD_AGAIN));
    };
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| corrupt(format!("the header is malformed: {error}"), DOWNLOAD_AGAIN))?;
    let data_start = LENGTH_BYTES + header.len();
    let expected = data_start.saturating_add(metadata.data_len());
    if expected != bytes.len() {
        return Err(corrupt(
            format!("the header says {expected} bytes, the file has {}", bytes.len()),
            DOWNLOAD_AGAIN,
        ));
    }
    Ok((data_start, metadata))
}

/// Tensor name -> shard file name.
fn read_weight_map(index: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let hint = "check the path and its permissions";
    let text = std::fs::read_to_string(index).map_err(|source| ModelError::Read {
        path: index.to_owned(),
        source,
        hint,
    })?;
    let json: Value = serde_json::from_str(text.trim_start_matches(BYTE_ORDER_MARK))
        .map_err(|error| ModelError::json(index, &error))?;
    let weight_map: Option<BTreeMap<String, String>> =
        json.get("weight_map").and_then(|map| serde_json::from_value(map.clone()).ok());
    let is_plain_name =
        |name: &String| Path::new(name).file_name().is_some_and(|file| file == name.as_str());
    match weight_map {
        Some(map) if !map.is_empty() && map.values().all(is_plain_name) => Ok(map),
        _ => {
            let message =
                "\"weight_map\" must map tensor names to file names of this folder".to_owned();
            Err(ModelError::Corrupt { path: index.to_owned(), message, hint: DOWNLOAD_AGAIN })
        }
    }
}
