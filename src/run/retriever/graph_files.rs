//! The two files of a graph, checked before `hnsw_rs` sees a byte of them.
//!
//! `hnsw_rs` trusts its files: it allocates what a count says, indexes with what a link says, and
//! ends the process where a number is another one than it expects. So everything it relies on is
//! checked here first, in one pass that reads each file once: sizes, the magic numbers, names and
//! parameters of its format (version 4), every count against what is there, every link against the
//! points there are, every row number, and the SHA-256 of what was written. What passes this is a
//! graph over exactly `n` vectors. Memory: four bytes and a bit a point; time: that of reading the
//! files and hashing them (0.7 s a gigabyte with SHA instructions).
//!
//! # Source
//! hnsw_rs 0.3.5 `src/hnswio.rs`: `Description::dump`, `PointIndexation::dump`, `dump_point`.
//! Numbers are in the byte order of the machine.
use super::RetrieverError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

/// The files of a dump; kept in the index, so that damage is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFiles {
    /// Stem of the two files.
    pub basename: String,
    pub graph_bytes: u64,
    pub graph_sha256: String,
    pub data_bytes: u64,
    pub data_sha256: String,
}

impl GraphFiles {
    /// The two files, with the size of each.
    pub fn sizes(&self, dir: &Path) -> [(PathBuf, u64); 2] {
        let [graph, data] = file_paths(dir, &self.basename);
        [(graph, self.graph_bytes), (data, self.data_bytes)]
    }
}

/// The graph that files must hold.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedGraph<'a> {
    pub n_points: usize,
    /// Links of a point in the upper layers.
    pub m: usize,
    pub ef_construction: usize,
    /// Name of the distance's type.
    pub distance: &'a str,
}

/// `hnsw_rs` supports sixteen layers, and its dump insists on all of them.
pub const MAX_LAYER: usize = 16;
const MAGIC_DESCRIPTION: u32 = 0x002a_6779;
const MAGIC_LAYER: u32 = 0x000a_676f;
const MAGIC_POINT: u32 = 0x000a_678f;
const MAGIC_DATA: u32 = 0xa67f_0000;
/// Every link of a point is written with its layer and rank.
const FULL_DUMP: u8 = 1;
/// The numbers of a point: its row number alone.
const POINT_DIM: u64 = 1;
/// Name of their type.
const POINT_TYPE: &str = "u32";
/// Bytes read and hashed at once.
const CHUNK_BYTES: usize = 1 << 20;

impl GraphFiles {
    /// Looks at what was just written.
    /// # Errors
    /// If a file cannot be read.
    pub fn of(dir: &Path, basename: &str) -> Result<Self, RetrieverError> {
        let [graph, data] = file_paths(dir, basename).map(|path| HashedFile::open(&path)?.finish());
        let ((graph_bytes, graph_sha256), (data_bytes, data_sha256)) = (graph?, data?);
        Ok(Self {
            basename: basename.to_owned(),
            graph_bytes,
            graph_sha256,
            data_bytes,
            data_sha256,
        })
    }

    /// # Errors
    /// If a file is missing, is not the one that was written, or is no graph of what is `expected`.
    pub fn check(&self, dir: &Path, expected: ExpectedGraph) -> Result<(), RetrieverError> {
        let is_plain =
            |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if self.basename.is_empty() || !self.basename.chars().all(is_plain) {
            let why = format!("the graph's files cannot be called {:?}", self.basename);
            return Err(RetrieverError::damaged(&dir.join(super::index::META_FILE), why));
        }
        let [graph, data] = file_paths(dir, &self.basename);
        let order = check_file(&graph, self.graph_bytes, &self.graph_sha256, |file| {
            check_graph(file, expected)
        })?;
        check_file(&data, self.data_bytes, &self.data_sha256, |file| check_data(file, &order))
    }

    /// Bytes on disk.
    pub fn total_bytes(&self) -> u64 {
        self.graph_bytes.saturating_add(self.data_bytes)
    }
}

/// The links and the row numbers.
pub fn file_paths(dir: &Path, basename: &str) -> [PathBuf; 2] {
    ["graph", "data"].map(|part| dir.join(format!("{basename}.hnsw.{part}")))
}

/// Reads a file once: its size, what it holds, and its checksum, which explains better than
/// anything else why it holds what it should not.
fn check_file<T>(
    path: &Path,
    size_bytes: u64,
    sha256: &str,
    check: impl FnOnce(&mut HashedFile) -> Result<T, String>,
) -> Result<T, RetrieverError> {
    let mut file = HashedFile::open(path)?;
    let found = file.size_bytes;
    if found != size_bytes {
        let why = format!("{found} bytes instead of {size_bytes}");
        return Err(RetrieverError::damaged(path, why));
    }
    let content = check(&mut file);
    let (_, found) = file.finish()?;
    if found != sha256 {
        return Err(RetrieverError::damaged(path, "its checksum is not the one in index.json"));
    }
    content.map_err(|why| RetrieverError::damaged(path, why))
}

/// Checks the links. -> the row numbers in the order in which the points lie.
fn check_graph(file: &mut HashedFile, expected: ExpectedGraph) -> Result<Vec<u32>, String> {
    file.magic(MAGIC_DESCRIPTION, "the head")?;
    file.is("the kind of dump", u8::from_ne_bytes, FULL_DUMP)?;
    let n_links = u8::try_from(expected.m).unwrap_or_default();
    file.is("the links of a point", u8::from_ne_bytes, n_links)?;
    // The spread of the layers matters only where points are inserted.
    file.number("the spread of the layers", f64::from_ne_bytes)?;
    file.is("the layers", u8::from_ne_bytes, MAX_LAYER as u8)?;
    file.is("ef_construction", u64::from_ne_bytes, expected.ef_construction as u64)?;
    file.is("the points", u64::from_ne_bytes, expected.n_points as u64)?;
    file.is("the numbers of a point", u64::from_ne_bytes, POINT_DIM)?;
    file.name("the distance", expected.distance)?;
    file.name("the type of a number", POINT_TYPE)?;

    let n_layers = usize::from(file.number("the layers in use", u8::from_ne_bytes)?);
    if n_layers > MAX_LAYER {
        return Err(format!("{n_layers} layers, where {MAX_LAYER} are possible"));
    }
    let mut points = Points {
        order: Vec::new(),
        is_seen: vec![false; expected.n_points],
        n_in_layer: Vec::new(),
        highest: [None; MAX_LAYER],
    };
    for layer in 0..n_layers {
        file.magic(MAGIC_LAYER, "a layer")?;
        let n_points = file.number("the points of a layer", u64::from_ne_bytes)?;
        let n_left = (expected.n_points - points.order.len()) as u64;
        if n_points > n_left {
            return Err(format!("layer {layer} has {n_points} points, where {n_left} are left"));
        }
        for rank in 0..n_points {
            points.check_one(file, layer, rank)?;
        }
        points.n_in_layer.push(n_points);
    }
    if points.order.len() != expected.n_points {
        return Err(format!(
            "a graph of {} points over {} vectors",
            points.order.len(),
            expected.n_points
        ));
    }
    points.row(file)?;
    let (layer, rank) = points.place(file)?;
    points.note(layer, rank)?;
    points.check_places()?;
    file.ends()?;
    Ok(points.order)
}

/// The points of a graph so far.
struct Points {
    /// Row numbers in the order of the file.
    order: Vec<u32>,
    is_seen: Vec<bool>,
    n_in_layer: Vec<u64>,
    /// The highest rank in each layer that something links to.
    highest: [Option<u64>; MAX_LAYER],
}

impl Points {
    fn check_one(&mut self, file: &mut HashedFile, layer: usize, rank: u64) -> Result<(), String> {
        file.magic(MAGIC_POINT, "a point")?;
        let row = self.row(file)?;
        if std::mem::replace(&mut self.is_seen[row as usize], true) {
            return Err(format!("vector {row} is there twice"));
        }
        self.order.push(row);
        if self.place(file)? != (layer, rank) {
            return Err(format!("vector {row} does not lie where it says"));
        }
        for _ in 0..MAX_LAYER {
            let n_links = file.number("the links of a point", u64::from_ne_bytes)?;
            // Nothing is allocated by this number here, and by hnsw_rs only if as many links are
            // really there.
            for _ in 0..n_links {
                self.row(file)?;
                let (layer, rank) = self.place(file)?;
                self.note(layer, rank)?;
                let distance = file.number("a distance", f32::from_ne_bytes)?;
                if !distance.is_finite() || distance < 0.0 {
                    return Err(format!("vector {row} has a link of length {distance}"));
                }
            }
        }
        Ok(())
    }

    fn row(&self, file: &mut HashedFile) -> Result<u32, String> {
        let row = file.number("a row number", u64::from_ne_bytes)?;
        match u32::try_from(row) {
            Ok(id) if (id as usize) < self.is_seen.len() => Ok(id),
            _ => Err(format!("row number {row}, where there are {} vectors", self.is_seen.len())),
        }
    }

    /// (layer, rank in it)
    fn place(&self, file: &mut HashedFile) -> Result<(usize, u64), String> {
        let layer = usize::from(file.number("a layer", u8::from_ne_bytes)?);
        let rank = file.number("a rank", i32::from_ne_bytes)?;
        let rank = u64::try_from(rank).map_err(|_| format!("a rank of {rank}"))?;
        Ok((layer, rank))
    }

    /// Remembers a place that must exist when all layers are read.
    fn note(&mut self, layer: usize, rank: u64) -> Result<(), String> {
        let highest = self
            .highest
            .get_mut(layer)
            .ok_or_else(|| format!("a link into layer {layer} of {MAX_LAYER}"))?;
        *highest = (*highest).max(Some(rank));
        Ok(())
    }

    fn check_places(&self) -> Result<(), String> {
        for (layer, highest) in self.highest.iter().enumerate() {
            let n_points = self.n_in_layer.get(layer).copied().unwrap_or_default();
            if let Some(rank) = highest.filter(|&rank| rank >= n_points) {
                return Err(format!(
                    "a link to point {rank} of layer {layer}, which has {n_points}"
                ));
            }
        }
        Ok(())
    }
}

/// Checks the row numbers, which lie in the order of the points.
fn check_data(file: &mut HashedFile, order: &[u32]) -> Result<(), String> {
    file.magic(MAGIC_DATA, "the head")?;
    file.is("the numbers of a point", u64::from_ne_bytes, POINT_DIM)?;
    for &row in order {
        file.magic(MAGIC_DATA, "a point")?;
        file.is("a point", u64::from_ne_bytes, u64::from(row))?;
        file.is("the bytes of a point", u64::from_ne_bytes, size_of::<u32>() as u64)?;
        file.is("the row number of a point", u32::from_ne_bytes, row)?;
    }
    file.ends()
}

/// A file that is read from front to back, and hashed on the way.
struct HashedFile {
    path: PathBuf,
    size_bytes: u64,
    reader: BufReader<Hashing>,
}

/// Passes on the bytes of a file and hashes them.
struct Hashing {
    file: File,
    hasher: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

impl HashedFile {
    fn open(path: &Path) -> Result<Self, RetrieverError> {
        let io = |source| RetrieverError::io(path, "read", source);
        let file = File::open(path).map_err(io)?;
        let size_bytes = file.metadata().map_err(io)?.len();
        let reader = BufReader::with_capacity(CHUNK_BYTES, Hashing { file, hasher: Sha256::new() });
        Ok(Self { path: path.to_owned(), size_bytes, reader })
    }

    fn number<T, const N: usize>(
        &mut self,
        what: &str,
        read: impl FnOnce([u8; N]) -> T,
    ) -> Result<T, String> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => format!("it ends where {what} should be"),
            _ => error.to_string(),
        })?;
        Ok(read(bytes))
    }

    fn is<T: PartialEq + std::fmt::Display, const N: usize>(
        &mut self,
        what: &str,
        read: impl FnOnce([u8; N]) -> T,
        expected: T,
    ) -> Result<(), String> {
        match self.number(what, read)? {
            found if found == expected => Ok(()),
            found => Err(format!("{what}: {found} instead of {expected}")),
        }
    }

    fn magic(&mut self, expected: u32, what: &str) -> Result<(), String> {
        match self.number(what, u32::from_ne_bytes)? == expected {
            true => Ok(()),
            false => Err(format!("something else where {what} should begin")),
        }
    }

    /// A length and as many bytes of text.
    fn name(&mut self, what: &str, expected: &str) -> Result<(), String> {
        self.is(what, u64::from_ne_bytes, expected.len() as u64)?;
        for &byte in expected.as_bytes() {
            if self.number(what, u8::from_ne_bytes)? != byte {
                return Err(format!("{what} is not {expected}"));
            }
        }
        Ok(())
    }

    fn ends(&mut self) -> Result<(), String> {
        match self.reader.fill_buf().map_err(|error| error.to_string())?.is_empty() {
            true => Ok(()),
            false => Err("it goes on where it should end".to_owned()),
        }
    }

    /// Size and SHA-256 of the whole file.
    fn finish(mut self) -> Result<(u64, String), RetrieverError> {
        std::io::copy(&mut self.reader, &mut std::io::sink())
            .map_err(|source| RetrieverError::io(&self.path, "read", source))?;
        let sha256 = self.reader.into_inner().hasher.finalize();
        Ok((self.size_bytes, format!("{sha256:x}")))
    }
}

#[cfg(test)]
#[path = "graph_files_tests.rs"]
mod tests;
