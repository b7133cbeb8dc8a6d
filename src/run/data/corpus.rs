//! Passages: JSON Lines, memory-mapped with an offset table.
//!
//! [`passage`](super::passage) says what a line may be. A plain file stays on disk: opening it
//! checks every line once, in parallel, and keeps 8 bytes a passage (Wikipedia 2018: 21 M passages,
//! 168 MB of offsets for 14 GB of text). A gzip file is unpacked into memory as a whole. Extra keys
//! are ignored; two passages with one id are an error.

use super::{
    DataError,
    jsonl::{GZIP_MAGIC, HalfPairs, check_encoding, read_bytes, without_mark},
    passage::parse,
};
use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    path::{Path, PathBuf},
};

pub use dgpo_core::env::search::Passage;

/// Text is checked in pieces of about this size, one a thread. Nothing that can be seen depends on
/// it.
const CHUNK_BYTES: usize = 4 << 20;
/// Pieces in flight: bounds the memory that the check takes beside the offset table.
const CHUNKS_AT_ONCE: usize = 64;

/// An opened corpus. Passages are numbered in line order.
pub struct Corpus {
    store: Store,
    fingerprint: String,
}

enum Store {
    Lines { path: PathBuf, text: CorpusText, offsets: Vec<u64> },
    Passages(Vec<Passage>),
}

enum CorpusText {
    Mapped(Mmap),
    Unpacked(Vec<u8>),
}

impl CorpusText {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Unpacked(bytes) => bytes,
        }
    }
}

impl Corpus {
    /// Checks every line and builds the offset table.
    ///
    /// # Errors
    /// A line that is no passage, or repeats an id (file and line numbers); an empty file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let io = DataError::io(path);
        let mut file = File::open(path).map_err(&io)?;
        let mut magic = [0; 2];
        let is_gzip = file.read_exact(&mut magic).is_ok() && magic == GZIP_MAGIC;
        let text = if is_gzip || file.metadata().map_err(&io)?.len() == 0 {
            // An empty file cannot be mapped.
            CorpusText::Unpacked(read_bytes(path)?)
        } else {
            // SAFETY: the map is read-only and private to this value. As with every map, another
            // program that truncates the file while it is open would end this process with a bus
            // error; corpora are written once and replaced by renaming.
            #[allow(unsafe_code)]
            let map = unsafe { Mmap::map(&file) }.map_err(io)?;
            CorpusText::Mapped(map)
        };
        check_encoding(path, text.bytes())?;
        let mut scan = CorpusScan::run(path, text.bytes())?;
        scan.half_pairs.tell(path);
        let hint = "one {\"id\", \"contents\"} or {\"id\", \"title\", \"text\"} a line";
        scan.offsets = DataError::if_empty(path, scan.offsets, "passages", hint)?;
        if let Some((first, second)) = duplicate(text.bytes(), &scan) {
            let id = parse(line_at(text.bytes(), scan.offsets[second]))
                .map(|parsed| parsed.id.into_owned())
                .unwrap_or_default();
            let line = |row: usize| line_number(text.bytes(), scan.offsets[row]);
            let why = format!(
                "field `id`: \"{id}\" is already the id of line {}; hint: ids must be unique",
                line(first)
            );
            return Err(DataError::line(path, line(second), why));
        }
        Ok(Self {
            fingerprint: scan.fingerprint,
            store: Store::Lines { path: path.to_owned(), text, offsets: scan.offsets },
        })
    }

    /// Its first `n` passages, in memory.
    /// # Errors
    /// If one of them cannot be read.
    pub fn first(&self, n: usize) -> Result<Self, DataError> {
        let passages: Result<Vec<_>, _> =
            (0..self.len().min(n)).map(|row| self.passage(row)).collect();
        Ok(Self::from_passages(passages?))
    }

    /// A corpus in memory; its fingerprint is that of a file with the same passages.
    pub fn from_passages(passages: Vec<Passage>) -> Self {
        let mut outer = Sha256::new();
        for passage in &passages {
            outer.update(passage_digest(&passage.id, &passage.contents));
        }
        Self { fingerprint: hex(&outer.finalize()), store: Store::Passages(passages) }
    }

    pub fn len(&self) -> usize {
        match &self.store {
            Store::Lines { offsets, .. } => offsets.len(),
            Store::Passages(passages) => passages.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file it was read from, if it is a whole file.
    pub fn path(&self) -> Option<&Path> {
        match &self.store {
            Store::Lines { path, .. } => Some(path),
            Store::Passages(_) => None,
        }
    }

    /// Passage number `idx` (line order).
    ///
    /// # Errors
    /// `idx` out of range; a line that changed since the corpus was opened.
    pub fn passage(&self, idx: usize) -> Result<Passage, DataError> {
        if idx >= self.len() {
            let why = format!(
                "passage {idx} was asked for, but there are {}; hint: was the index built from \
                 this corpus?",
                self.len()
            );
            let path = self.path().unwrap_or(Path::new("(passages in memory)"));
            return Err(DataError::format(path, why));
        }
        match &self.store {
            Store::Passages(passages) => Ok(passages[idx].clone()),
            Store::Lines { path, text, offsets } => {
                let changed = |why| {
                    let why = format!("{why} (the file changed while it was open)");
                    DataError::line(path, line_number(text.bytes(), offsets[idx]), why)
                };
                Ok(parse(line_at(text.bytes(), offsets[idx])).map_err(changed)?.into())
            }
        }
    }

    /// SHA-256 (hex) over ids and contents in order: an index remembers which corpus it was built
    /// from. The same for a plain file, its gzip and the passages in memory.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Result of one pass over the text.
#[derive(Default)]
struct CorpusScan {
    offsets: Vec<u64>,
    id_hashes: Vec<u64>,
    fingerprint: String,
    half_pairs: HalfPairs,
}

/// Result of a pass over a piece of the text.
#[derive(Default)]
struct ScannedPiece {
    offsets: Vec<u64>,
    id_hashes: Vec<u64>,
    digests: Vec<[u8; 32]>,
    n_lines: usize,
    /// (number, line within the piece)
    half_pairs: Vec<(usize, usize)>,
}

impl CorpusScan {
    fn run(path: &Path, text: &[u8]) -> Result<Self, DataError> {
        let mut scan = Self::default();
        let mut outer = Sha256::new();
        let mut n_lines = 0;
        for batch in chunk_ranges(text).chunks(CHUNKS_AT_ONCE) {
            let chunks: Vec<_> = batch
                .par_iter()
                .map(|&(start, end)| scan_chunk(&text[start..end], start as u64))
                .collect();
            // In order, so that the first bad line of the file is the one reported.
            for chunk in chunks {
                let chunk =
                    chunk.map_err(|(line, why)| DataError::line(path, n_lines + line, why))?;
                scan.offsets.extend(chunk.offsets);
                scan.id_hashes.extend(chunk.id_hashes);
                chunk.digests.iter().for_each(|digest| outer.update(digest));
                for (n, line) in chunk.half_pairs {
                    scan.half_pairs.add(n, n_lines + line);
                }
                n_lines += chunk.n_lines;
            }
        }
        scan.fingerprint = hex(&outer.finalize());
        Ok(scan)
    }
}

/// Byte ranges of about `CHUNK_BYTES` that end after a line feed or at the end, from the first
/// byte after a byte order mark on.
fn chunk_ranges(text: &[u8]) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut start = text.len() - without_mark(text).len();
    while start < text.len() {
        let at_least = text.len().min(start + CHUNK_BYTES);
        let end = text[at_least..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(text.len(), |n| at_least + n + 1);
        ranges.push((start, end));
        start = end;
    }
    ranges
}

/// Checks the lines of one piece; a bad one comes back with its number within the piece.
fn scan_chunk(text: &[u8], start: u64) -> Result<ScannedPiece, (usize, String)> {
    let mut chunk = ScannedPiece::default();
    let mut offset = start;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        chunk.n_lines += 1;
        if !line.trim_ascii().is_empty() {
            let parsed = parse(line).map_err(|why| (chunk.n_lines, why))?;
            chunk.offsets.push(offset);
            chunk.id_hashes.push(id_hash(&parsed.id));
            chunk.digests.push(passage_digest(&parsed.id, &parsed.contents));
            if parsed.n_half_pairs > 0 {
                chunk.half_pairs.push((parsed.n_half_pairs, chunk.n_lines));
            }
        }
        offset += line.len() as u64;
    }
    Ok(chunk)
}

fn line_at(text: &[u8], offset: u64) -> &[u8] {
    let rest = text.get(offset as usize..).unwrap_or_default();
    rest.split(|&byte| byte == b'\n').next().unwrap_or_default()
}

/// Counted only when an error is reported.
fn line_number(text: &[u8], offset: u64) -> usize {
    text[..text.len().min(offset as usize)].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The first pair of rows with one id, by the later one's position.
fn duplicate(text: &[u8], scan: &CorpusScan) -> Option<(usize, usize)> {
    let mut by_hash: Vec<(u64, usize)> = scan.id_hashes.iter().copied().zip(0..).collect();
    by_hash.par_sort_unstable();
    let id = |row: usize| parse(line_at(text, scan.offsets[row])).map(|parsed| parsed.id).ok();
    let mut found: Option<(usize, usize)> = None;
    for run in by_hash.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
        // Rows are ascending within a run. Equal hashes are nearly always equal ids: the first
        // repetition ends the search in it.
        let repeated = (1..run.len()).find_map(|j| {
            (0..j).find(|&i| id(run[i].1) == id(run[j].1)).map(|i| (run[i].1, run[j].1))
        });
        found = match (found, repeated) {
            (Some(a), Some(b)) => Some(if b.1 < a.1 { b } else { a }),
            (a, b) => a.or(b),
        };
    }
    found
}

fn id_hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// Digest of one passage; the length in front keeps id and contents apart.
fn passage_digest(id: &str, contents: &str) -> [u8; 32] {
    let mut inner = Sha256::new();
    inner.update((id.len() as u64).to_le_bytes());
    inner.update(id);
    inner.update(contents);
    inner.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn passages(n: usize) -> Vec<Passage> {
        (0..n)
            .map(|i| Passage {
                id: format!("p{i}"),
                contents: format!("\"Title {i}\"\nté\"xt\t{i}\nsecond"),
            })
            .collect()
    }

    fn lines(passages: &[Passage]) -> String {
        passages
            .iter()
            .map(|p| {
                format!(
                    "{{\"src\": [\"x\"], \"id\": {:?}, \"contents\": {}}}\n",
                    p.id,
                    serde_json::json!(p.contents)
                )
            })
            .collect()
    }

    fn open(bytes: &[u8]) -> Result<Corpus, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wiki.jsonl");
        std::fs::write(&path, bytes).unwrap();
        Corpus::open(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_packed_and_in_memory_are_the_same_corpus() {
        let passages = passages(50);
        let plain = open(format!("\n{}\n", lines(&passages)).as_bytes()).unwrap();
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(lines(&passages).as_bytes()).unwrap();
        let packed = open(&packer.finish().unwrap()).unwrap();
        let memory = Corpus::from_passages(passages.clone());
        for corpus in [&plain, &packed, &memory] {
            assert_eq!(corpus.len(), 50);
            assert_eq!((0..50).map(|i| corpus.passage(i).unwrap()).collect::<Vec<_>>(), passages);
            assert_eq!(corpus.fingerprint(), memory.fingerprint());
            assert!(corpus.passage(50).unwrap_err().to_string().contains("there are 50"));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_passage() {
        let (passages, marked) = (passages(3), b"\xef\xbb\xbf");
        let corpus = open(&[marked.as_slice(), lines(&passages).as_bytes()].concat()).unwrap();
        assert_eq!(corpus.passage(0).unwrap(), passages[0]);
        assert_eq!(corpus.fingerprint(), Corpus::from_passages(passages).fingerprint());
        assert!(open(marked).err().unwrap().contains("holds no passages"));
        assert!(
            open(&[marked.as_slice(), b"{\"id\": \"x\"}\n"].concat())
                .err()
                .unwrap()
                .contains("wiki.jsonl:1: ")
        );
    }

    #[test]
    fn a_gzip_file_that_is_cut_off_or_damaged_is_to_be_fetched_again() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(lines(&passages(50)).as_bytes()).unwrap();
        let packed = packer.finish().unwrap();
        let mut damaged = packed.clone();
        let checksum_at = packed.len() - 8;
        damaged[checksum_at] ^= 1;
        for (bytes, what) in [(&packed[..packed.len() / 2], "is cut off"), (&damaged, "is damaged")]
        {
            let error = open(bytes).err().unwrap();
            assert!(
                error.contains("wiki.jsonl")
                    && error.contains(what)
                    && error.contains("hint: download or copy it again"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_fingerprint_depends_on_ids_contents_and_order() {
        let base = passages(3);
        let mut fingerprints = vec![Corpus::from_passages(base.clone()).fingerprint()];
        let mut moved = base.clone();
        moved.swap(0, 1);
        let mut renamed = base.clone();
        renamed[2].id.push('x');
        let mut edited = base;
        edited[2].contents.push('x');
        fingerprints
            .extend([moved, renamed, edited].map(|p| Corpus::from_passages(p).fingerprint()));
        assert!(fingerprints.iter().all(|f| f.len() == 64));
        fingerprints.sort();
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 4);
    }

    #[test]
    fn a_bad_line_is_reported_with_its_number() {
        let error =
            open(format!("{}\n{{\"id\": \"x\"}}\n", lines(&passages(2))).as_bytes()).err().unwrap();
        assert!(error.contains("wiki.jsonl:4: field `contents` is missing; hint: "), "{error}");
        let invalid_utf8 = [br#"{"id": "3", "contents": ""#.as_slice(), b"\xff\"}"].concat();
        assert!(open(&invalid_utf8).err().unwrap().contains("wiki.jsonl:1: "));
    }

    #[test]
    fn halves_of_surrogate_pairs_are_counted_with_the_first_line() {
        let line = |i: usize| format!("{{\"id\": {i}, \"contents\": \"x\\ud83d \\ud83d\"}}\n");
        let text = format!("\n{}{}", line(0), line(1));
        let mut expected = HalfPairs::default();
        (0..2).for_each(|i| expected.add(2, i + 2));
        assert_eq!(CorpusScan::run(Path::new("x"), text.as_bytes()).unwrap().half_pairs, expected);
    }

    #[test]
    fn utf_16_is_named() {
        let error = open(b"\xff\xfe{\0").err().unwrap();
        assert!(error.contains("UTF-16") && error.contains("hint: iconv"), "{error}");
    }

    #[test]
    fn a_repeated_id_names_both_lines() {
        let mut passages = passages(9);
        passages[7].id = "p2".into();
        passages[8].id = "p1".into();
        let error = open(lines(&passages).as_bytes()).err().unwrap();
        assert!(
            error.contains("wiki.jsonl:8: ")
                && error.contains("\"p2\"")
                && error.contains("line 3"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_file_is_an_error() {
        for bytes in [b"".as_slice(), b"\n \n"] {
            assert!(open(bytes).err().unwrap().contains("holds no passages"));
        }
    }

    #[test]
    fn pieces_end_at_lines_whatever_their_length() {
        let text = [
            vec![b'x'; CHUNK_BYTES + 5],
            b"\nab\n".to_vec(),
            vec![b'y'; CHUNK_BYTES],
            b"\nz".to_vec(),
        ]
        .concat();
        let ranges = chunk_ranges(&text);
        assert_eq!(ranges.first().unwrap().0, 0);
        assert_eq!(ranges.last().unwrap().1, text.len());
        assert!(
            ranges.windows(2).all(|pair| pair[0].1 == pair[1].0 && text[pair[0].1 - 1] == b'\n')
        );
    }

    #[test]
    fn the_real_corpus_opens() {
        let Some(path) = dgpo_core::testing::test_data("corpus/wiki_passages.jsonl.gz") else {
            return;
        };
        let corpus = Corpus::open(&path).unwrap();
        assert_eq!(corpus.len(), 64_873);
        let passage = corpus.passage(1).unwrap();
        assert_eq!((passage.id.as_str(), passage.title()), ("1", "\"'99–'00 Demos\""));
    }
}
