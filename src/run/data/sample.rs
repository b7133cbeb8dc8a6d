//! Passages from all over a corpus, without reading all of it: for figures about its texts that
//! need no exactness.
use super::{
    DataError,
    jsonl::{GZIP_MAGIC, beginning, without_mark},
    passage::parse,
};
use dgpo_core::env::search::Passage;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// A longer file is looked at in this many places, at equal distances.
const N_PLACES: u64 = 64;
/// At each place about a thousand passages of Wikipedia.
const PLACE_BYTES: u64 = 512 << 10;

/// The passages of a file that has at most 32 MB of text, or some of all parts of a longer one; of
/// a packed one those at its beginning. `first`: only the file's first passages (0 = no such
/// limit). Lines that are no passages are left out: whoever reads the whole file says what is wrong
/// with them.
/// # Errors
/// If the file cannot be read.
pub fn sample_passages(path: &Path, first: usize) -> Result<Vec<Passage>, DataError> {
    let mut passages = Vec::new();
    let places = places(path, first > 0).map_err(DataError::io(path))?;
    for place in places {
        let lines = without_mark(&place).split(|&byte| byte == b'\n');
        passages.extend(lines.filter_map(|line| parse(line).ok().map(Passage::from)));
    }
    passages.truncate(if first == 0 { usize::MAX } else { first });
    Ok(passages)
}

/// Whole lines from each place.
fn places(path: &Path, only_begin: bool) -> io::Result<Vec<Vec<u8>>> {
    let mut file = File::open(path)?;
    let (len, max) = (file.metadata()?.len(), N_PLACES * PLACE_BYTES);
    let mut magic = [0; 2];
    let is_gzip = file.read_exact(&mut magic).is_ok() && magic == GZIP_MAGIC;
    file.rewind()?;
    if is_gzip || len <= max || only_begin {
        return Ok(vec![up_to_last_line_end(beginning(&file, max)?, max)]);
    }
    (0..N_PLACES)
        .map(|place| {
            let start = (len - PLACE_BYTES) / (N_PLACES - 1) * place;
            file.seek(SeekFrom::Start(start))?;
            let mut text = Vec::new();
            file.by_ref().take(PLACE_BYTES).read_to_end(&mut text)?;
            let begin = match start {
                0 => 0,
                _ => text.iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| at + 1),
            };
            _ = text.drain(..begin);
            Ok(up_to_last_line_end(text, PLACE_BYTES - begin as u64))
        })
        .collect()
}

/// A text of `max` bytes was cut off: its last line is left out.
fn up_to_last_line_end(mut text: Vec<u8>, max: u64) -> Vec<u8> {
    if text.len() as u64 >= max {
        text.truncate(text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(i: usize, n_words: usize) -> String {
        format!(
            "{{\"id\": \"{i}\", \"contents\": \"\\\"T{i}\\\"\\n{}\"}}\n",
            "word ".repeat(n_words)
        )
    }

    #[test]
    fn a_short_file_is_taken_whole_plain_or_packed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text: String =
            (0..50).map(|i| line(i, 10)).chain(["no passage\n".to_owned()]).collect();
        let plain = folder.path().join("corpus.jsonl");
        std::fs::write(&plain, &text).expect("written");
        let packed = folder.path().join("corpus.jsonl.gz");
        let mut encoder = flate2::write::GzEncoder::new(
            File::create(&packed).expect("created"),
            flate2::Compression::fast(),
        );
        encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).expect("written");
        for path in [plain, packed] {
            let ids = |first: usize| {
                sample_passages(&path, first)
                    .expect("read")
                    .into_iter()
                    .map(|passage| passage.id)
                    .collect::<Vec<_>>()
            };
            assert_eq!(ids(0), (0..50).map(|i| i.to_string()).collect::<Vec<_>>());
            assert_eq!(ids(3), ["0", "1", "2"]);
        }
        assert!(sample_passages(&folder.path().join("none"), 0).is_err());
    }

    #[test]
    fn of_a_long_file_whole_passages_of_all_parts_are_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("corpus.jsonl");
        // 48 MB
        let n = 24_000;
        let mut file = io::BufWriter::new(File::create(&path).expect("created"));
        (0..n).for_each(|i| file.write_all(line(i, 400).as_bytes()).expect("written"));
        file.flush().expect("written");
        let passages = sample_passages(&path, 0).expect("read");
        let ids: Vec<usize> =
            passages.iter().map(|passage| passage.id.parse().expect("a number")).collect();
        assert!(ids.is_sorted() && ids[0] == 0 && ids[ids.len() - 1] >= n - 3, "{:?}", ids.last());
        assert!((10_000..n).contains(&ids.len()), "{}", ids.len());
        for (tenth, count) in
            (0..10).map(|tenth| (tenth, ids.iter().filter(|&&id| id * 10 / n == tenth).count()))
        {
            assert!(count > 1_000, "{count} passages of part {tenth}");
        }
        assert!(passages.iter().all(|passage| passage.contents.len() > 2_000));
    }
}
