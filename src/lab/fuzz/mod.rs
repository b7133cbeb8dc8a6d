//! Does any file from outside make the program panic, abort, hang or eat memory? `dgpo fuzz`.
//!
//! Every reader gets valid files of its format ([`samples`]) with damage in one to four places
//! ([`mutate`]): it may read them or refuse them with a message, nothing else. Cases are numbered,
//! and a case is a function of (seed, reader, number) alone, so one that was found is found again.
//!
//! A panic is caught where it happens. What cannot be caught (an abort, a stack that overflows, a
//! loop, memory) ends or holds up the process; so the cases are worked on in processes of their
//! own, which [`supervise`] starts, watches and, where one is lost, starts anew behind the case
//! that it was lost with.
//!
//! ```text
//! supervise ── starts, watches ──▶ workers     one line a case: `read`, `refused`, or what went wrong
//! ```
mod dice;
mod mutate;
mod readers;
mod samples;
pub mod supervise;

use dgpo_core::contained::{contained, n_contained};
use dice::Dice;
pub use readers::{Reader, named, readers};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::Path,
};

/// Valid files that are read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// (path inside the case's folder, contents)
    files: Vec<(String, Vec<u8>)>,
    /// Which of them are changed, one a case.
    changed: Vec<usize>,
}

impl Sample {
    fn changing_all(files: Vec<(String, Vec<u8>)>) -> Self {
        Self { changed: (0..files.len()).collect(), files }
    }

    /// All files below `folder`, in the order of their names.
    fn of_folder(
        folder: &Path,
        is_changed: impl Fn(&str) -> bool,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut files = Vec::new();
        collect(folder, "", &mut files)?;
        files.sort();
        let changed = (0..files.len()).filter(|&at| is_changed(&files[at].0)).collect();
        Ok(Self { files, changed })
    }
}

fn collect(folder: &Path, inside: &str, files: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = format!("{inside}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
        } else {
            files.push((name, fs::read(&path)?));
        }
    }
    Ok(())
}

/// End of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The damage does not matter to this reader.
    Read,
    Refused,
    /// Our code panicked, or a library's panic got out of what should contain it.
    Panic(String),
    /// A valid file was refused, or something was refused without a word.
    Wrong(String),
}

/// Record of a case by a worker, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub case: u64,
    pub ending: Ending,
    /// Panics of libraries that were contained and became an error.
    pub n_contained: usize,
    /// Largest resident set of the process so far; 0 where the system does not say.
    pub most_bytes: u64,
}

/// Works on cases `from..to` in `folder`, which stays as the last case left it.
///
/// Case `n` below the number of samples is sample `n` without any damage: a reader that refuses
/// those tests nothing.
/// # Errors
/// If the samples cannot be made, or files or lines cannot be written.
pub fn work(
    reader: &Reader,
    seed: u64,
    cases: std::ops::Range<u64>,
    folder: &Path,
    out: &mut impl Write,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let samples = (reader.samples)()?;
    let n_samples = samples.len() as u64;
    // The sample whose files lie in the folder, and the file of it that is damaged there.
    let mut there: Option<(u64, Option<usize>)> = None;
    for case in cases {
        let at = case % n_samples;
        let sample = &samples[at as usize];
        match there {
            Some((same, damaged)) if same == at => {
                damaged.map_or(Ok(()), |file| write(folder, &sample.files[file]))?
            }
            _ => write_all(folder, sample)?,
        }
        let mut damaged = None;
        if case >= n_samples {
            let mut dice = Dice::new(seed, reader.number(), case);
            let file = *dice.one_of(&sample.changed);
            let (name, valid) = &sample.files[file];
            write(folder, &(name.clone(), mutate::changed(name, valid, &mut dice)))?;
            damaged = Some(file);
        }
        there = (!reader.writes).then_some((at, damaged));
        let before = n_contained();
        let ending = match contained(|| (reader.read)(folder)) {
            Ok(Ok(())) => Ending::Read,
            Ok(Err(why)) if case < n_samples => {
                Ending::Wrong(format!("the valid files are refused: {why}"))
            }
            Ok(Err(why)) if why.trim().is_empty() => {
                Ending::Wrong("refused without a word".to_owned())
            }
            Ok(Err(_)) => Ending::Refused,
            Err(why) => Ending::Panic(why),
        };
        // The panic of this case is told as its ending.
        let n_contained = n_contained() - before - usize::from(matches!(ending, Ending::Panic(_)));
        let most_bytes = supervise::resident_bytes("self");
        writeln!(
            out,
            "{}",
            serde_json::to_string(&Line { case, ending, n_contained, most_bytes })?
        )?;
        out.flush()?;
    }
    Ok(())
}

fn write_all(folder: &Path, sample: &Sample) -> io::Result<()> {
    if folder.is_dir() {
        fs::remove_dir_all(folder)?;
    }
    sample.files.iter().try_for_each(|file| write(folder, file))
}

fn write(folder: &Path, (name, bytes): &(String, Vec<u8>)) -> io::Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap_or(folder))?;
    fs::write(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of some cases.
    fn lines(reader: &Reader, cases: std::ops::Range<u64>) -> Vec<Line> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut out = Vec::new();
        work(reader, 0, cases, &folder.path().join("case"), &mut out)
            .expect("the samples are made");
        out.split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line"))
            .collect()
    }

    #[test]
    fn every_reader_reads_its_valid_files() {
        for reader in readers() {
            let n_samples = (reader.samples)().expect("samples are made").len() as u64;
            for line in lines(reader, 0..n_samples) {
                assert_eq!(line.ending, Ending::Read, "{} case {}", reader.name, line.case);
            }
        }
    }

    #[test]
    fn damage_is_refused_by_every_reader_and_a_case_ends_the_same_whoever_works_on_it() {
        for reader in readers() {
            let mut all = lines(reader, 10..50);
            assert!(all.iter().any(|line| line.ending == Ending::Refused), "{}", reader.name);
            assert!(
                all.iter().all(|line| matches!(line.ending, Ending::Read | Ending::Refused)),
                "{} {all:?}",
                reader.name
            );
            let mut again = lines(reader, 40..50);
            // Memory, and panics contained elsewhere in the process, are not of the case.
            all.iter_mut()
                .chain(&mut again)
                .for_each(|line| (line.most_bytes, line.n_contained) = (0, 0));
            assert_eq!(again, all[30..], "{}", reader.name);
        }
    }
}
