//! A look at a data file before a run starts that will read all of it.
//!
//! The readers themselves decide: a file of bearable size is given to them as it is, of a longer
//! one they get the first lines, as a file of their own. What passes then can still hold a bad line
//! further down, which is found when the file is read.
use super::{
    DataError,
    jsonl::{GZIP_MAGIC, beginning, without_mark},
};
use dgpo_models::files::write_file;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Bytes that are read of a file that is too long to be read twice.
const HEAD_BYTES: u64 = 4 << 20;

/// Bytes of the longest file of questions or episodes that is read whole: HotpotQA's 90,000
/// training questions without their passages are 20 MB. It takes a second or two.
pub const QUESTION_BYTES: u64 = 256 << 20;

/// Bytes of the longest corpus that is read whole.
pub const CORPUS_BYTES: u64 = 64 << 20;

/// Reads a file of up to `whole_bytes`, or the beginning of a longer one, with one of the readers
/// of this layer. Their warnings are left to the run. Returns what a whole file holds.
/// # Errors
/// Those of `read`, with the file's own name.
pub fn check_file<T>(
    path: &Path,
    whole_bytes: u64,
    read: impl Fn(&Path) -> Result<T, DataError>,
) -> Result<Option<T>, DataError> {
    let io = DataError::io(path);
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        let Some((head, name)) = long_head(path, whole_bytes).map_err(&io)? else {
            return read(path).map(Some);
        };
        let folder = tempfile::tempdir().map_err(&io)?;
        let part = folder.path().join(name);
        write_file(&part, head).map_err(&io)?;
        read(&part).map(|_| None).map_err(|error| error.at(path))
    })
}

/// Estimated number of rows of a file of JSON Lines, from the length of its first ones; None for a
/// packed file, whose length says little.
pub fn estimated_rows(path: &Path) -> Option<usize> {
    let size_bytes = std::fs::metadata(path).ok()?.len();
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    let n_lines = without_mark(&head)
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .count();
    match head.starts_with(&GZIP_MAGIC) || n_lines == 0 {
        true => None,
        false => Some((n_lines as f64 * size_bytes as f64 / head.len() as f64).round() as usize),
    }
}

/// The whole first lines of a long file, unpacked, and the name the part may have; None of a short
/// one, and of what is no text.
fn long_head(path: &Path, whole_bytes: u64) -> io::Result<Option<(Vec<u8>, String)>> {
    let file = File::open(path)?;
    if file.metadata()?.len() <= whole_bytes {
        return Ok(None);
    }
    let mut text = beginning(&file, HEAD_BYTES)?;
    if text.starts_with(b"PAR1") {
        return Ok(None);
    }
    let Some(last) = text.iter().rposition(|&byte| byte == b'\n') else { return Ok(None) };
    text.truncate(last + 1);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some((text, name.strip_suffix(".gz").unwrap_or(&name).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{corpus::Corpus, questions::read_questions};
    use std::io::Write;

    fn question(n: usize) -> String {
        format!(
            "{{\"id\": \"{n}\", \"question\": \"who?\", \"golden_answers\": [\"a\"], \"filler\": \
             \"{}\"}}\n",
            "x".repeat(100)
        )
    }

    #[test]
    fn of_a_long_file_the_first_lines_are_read_and_a_bad_one_is_named_with_the_files_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.jsonl");
        let lines: String = (0..50_000).map(question).collect();
        assert!(lines.len() as u64 > HEAD_BYTES);
        std::fs::write(&path, format!("{lines}not json\n")).unwrap();
        assert!(check_file(&path, HEAD_BYTES, read_questions).unwrap().is_none());
        let whole = check_file(&path, QUESTION_BYTES, read_questions).unwrap_err().to_string();
        assert!(whole.starts_with(&format!("{}:50001: ", path.display())), "{whole}");
        assert_eq!(estimated_rows(&path).map(|n| n.abs_diff(50_001) < 500), Some(true));
        std::fs::write(&path, format!("not json\n{lines}")).unwrap();
        let error = check_file(&path, HEAD_BYTES, read_questions).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:1: ", path.display())), "{error}");
    }

    #[test]
    fn a_short_file_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("short.jsonl");
        std::fs::write(&path, format!("{}not json\n", question(0))).unwrap();
        assert!(
            check_file(&path, HEAD_BYTES, read_questions)
                .unwrap_err()
                .to_string()
                .contains("short.jsonl:2: ")
        );
        assert_eq!(estimated_rows(&path), Some(2));
        let none = folder.path().join("none.jsonl");
        assert!(check_file(&none, HEAD_BYTES, read_questions).is_err());
    }

    #[test]
    fn of_a_packed_file_the_first_lines_are_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.jsonl.gz");
        // Digits of a counter hash badly enough to stay above the limit when packed.
        let key = dgpo_core::rng::Key::new(3, dgpo_core::rng::Purpose::World);
        let mut packer = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::none(),
        );
        for n in 0..40_000u64 {
            writeln!(
                packer,
                "{{\"id\": \"{n}\", \"contents\": \"t\\n{:x}{}\"}}",
                key.bits(n),
                "y".repeat(100)
            )
            .unwrap();
        }
        packer.finish().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > HEAD_BYTES);
        check_file(&path, HEAD_BYTES, Corpus::open).unwrap();
        assert!(
            check_file(&path, HEAD_BYTES, read_questions)
                .unwrap_err()
                .to_string()
                .contains("corpus.jsonl.gz:1: ")
        );
    }
}
