//! Workers in processes of their own: started, watched, started anew behind a case that one was
//! lost with.
use super::{Ending, Line, Reader};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// Work to be done, and its limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cases of each reader, from `first` on.
    pub n_cases: u64,
    pub first: u64,
    pub seed: u64,
    /// Seconds until a case counts as one that does not end.
    pub limit_s: f64,
    /// Bytes of resident memory until a worker counts as running away.
    pub limit_bytes: u64,
    /// Processes at the same time.
    pub n_workers: usize,
    /// Files of the cases are written below this folder.
    pub folder: PathBuf,
}

/// A case that ended as none may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub reader: &'static str,
    pub case: u64,
    /// "panic", "abort", "no end", "memory" or "wrong".
    pub kind: &'static str,
    pub why: String,
}

/// Result for a reader.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Count {
    pub reader: &'static str,
    pub n_cases: u64,
    pub n_read: u64,
    pub n_refused: u64,
    /// Panics of libraries that became errors; their cases are among those refused.
    pub n_contained: u64,
    /// Cases that ended as none may.
    pub n_faults: u64,
    /// Largest resident set of a worker; 0 where the system does not say.
    pub most_bytes: u64,
    /// Seconds of all workers.
    pub work_s: f64,
    /// Seconds of the longest case.
    pub longest_s: f64,
}

/// A worker is replaced after so many cases: what a library leaks stays small.
const CASES_A_WORKER: u64 = 5000;
/// A reader with so many faults is not tried any further.
const MOST_FAULTS: u64 = 20;
/// Time between two looks at memory and time.
const LOOK: Duration = Duration::from_millis(50);

/// Why fuzzing itself failed.
#[derive(Debug, thiserror::Error)]
pub enum FuzzError {
    #[error("cannot {doing}: {source}; hint: --keep names a folder that can be written to")]
    Io { doing: &'static str, source: io::Error },
    #[error(
        "the worker of {reader} cannot begin: {why}; hint: `dgpo fuzz --reader {reader} --cases 1 \
         --keep FOLDER` leaves its files in FOLDER"
    )]
    NoBegin { reader: &'static str, why: String },
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> FuzzError {
    move |source| FuzzError::Io { doing, source }
}

/// Tries the readers. `hear` is told of each reader that is done.
/// # Errors
/// If workers cannot be started. What they find is no error.
pub fn run(
    readers: &[&'static Reader],
    options: &Options,
    hear: &(dyn Fn(&Count) + Sync),
) -> Result<(Vec<Count>, Vec<Fault>), FuzzError> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new((Vec::new(), Vec::new())));
    let result = Mutex::new(Ok(()));
    let one_after_the_other = |worker: usize| {
        while let Some(reader) = readers.get(next.fetch_add(1, Ordering::Relaxed)) {
            match one_reader(reader, options, worker) {
                Ok((count, mut faults)) => {
                    hear(&count);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.0.push(count);
                    found.1.append(&mut faults);
                }
                Err(error) => {
                    return *result.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                }
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..options.n_workers.clamp(1, readers.len().max(1)) {
            let work = &one_after_the_other;
            _ = scope.spawn(move || work(worker));
        }
    });
    result.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let (mut counts, mut faults): (Vec<Count>, Vec<Fault>) =
        found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let place = |name: &str| readers.iter().position(|reader| reader.name == name);
    counts.sort_by_key(|count| place(count.reader));
    faults.sort_by_key(|fault| (place(fault.reader), fault.case));
    Ok((counts, faults))
}

fn one_reader(
    reader: &'static Reader,
    options: &Options,
    worker: usize,
) -> Result<(Count, Vec<Fault>), FuzzError> {
    let (mut count, mut faults) = (Count { reader: reader.name, ..Count::default() }, Vec::new());
    let end = options.first.saturating_add(options.n_cases);
    let mut case = options.first;
    while case < end && count.n_faults < MOST_FAULTS {
        let cases = case..end.min(case.saturating_add(CASES_A_WORKER));
        let folder = options.folder.join(format!("{}-{worker}", reader.name));
        case = one_worker(reader, options, cases, &folder, &mut count, &mut faults)?;
    }
    Ok((count, faults))
}

/// Lets one process work; returns the case to go on with.
fn one_worker(
    reader: &'static Reader,
    options: &Options,
    cases: Range<u64>,
    folder: &Path,
    count: &mut Count,
    faults: &mut Vec<Fault>,
) -> Result<u64, FuzzError> {
    std::fs::create_dir_all(folder).map_err(io_error("make a folder"))?;
    let stderr = folder.join("stderr");
    let mut child =
        start(reader, options, &cases, folder, &stderr).map_err(io_error("start a worker"))?;
    let stdout = child.stdout.take().expect("it is piped");
    let (send, lines) = mpsc::channel();
    // Ends with the process, whose end of the pipe it reads.
    let reading = thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| _ = send.send(line))
    });
    let (mut case, mut since, began) = (cases.start, Instant::now(), Instant::now());
    let limit = Duration::from_secs_f64(options.limit_s);
    let mut is_begun = false;
    let lost = loop {
        match lines.recv_timeout(LOOK) {
            Ok(text) => {
                let Ok(line) = serde_json::from_str::<Line>(&text) else { continue };
                let n_bytes = line.most_bytes;
                enter(line, reader, count, faults);
                if is_begun {
                    // The first of a worker has the making of the samples in it.
                    count.longest_s = count.longest_s.max(since.elapsed().as_secs_f64());
                }
                (case, since, is_begun) = (case + 1, Instant::now(), true);
                if n_bytes > options.limit_bytes {
                    // It was given back before anybody looked.
                    case -= 1;
                    break Some(("memory", format!("{} MiB of memory", n_bytes >> 20)));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let n_bytes = resident_bytes(&child.id().to_string());
                count.most_bytes = count.most_bytes.max(n_bytes);
                if n_bytes > options.limit_bytes {
                    break Some((
                        "memory",
                        format!(
                            "{} MiB of memory after {:.1} s",
                            n_bytes >> 20,
                            since.elapsed().as_secs_f64()
                        ),
                    ));
                }
                if since.elapsed() > limit {
                    break Some((
                        "no end",
                        format!("it had not ended after {} s", options.limit_s),
                    ));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    if lost.is_some() {
        // One that has just ended cannot be killed, and need not be.
        _ = child.kill();
    }
    let status = child.wait().map_err(io_error("wait for a worker"))?;
    _ = reading.join();
    count.work_s += began.elapsed().as_secs_f64();
    if lost.is_none() && case >= cases.end {
        return Ok(case);
    }
    let last_words = || {
        let text = std::fs::read(&stderr).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        text.lines()
            .rev()
            .take(3)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join(" / ")
    };
    if !is_begun && lost.is_none() && status.code() == Some(1) {
        return Err(FuzzError::NoBegin { reader: reader.name, why: last_words() });
    }
    let (kind, why) = lost.unwrap_or_else(|| ("abort", format!("{status}: {}", last_words())));
    count.n_cases += 1;
    count.n_faults += 1;
    faults.push(Fault { reader: reader.name, case, kind, why });
    Ok(case + 1)
}

fn start(
    reader: &Reader,
    options: &Options,
    cases: &Range<u64>,
    folder: &Path,
    stderr: &Path,
) -> io::Result<Child> {
    let numbers = [cases.start, cases.end].map(|n| n.to_string());
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "--quiet",
        "fuzz",
        "--worker",
        reader.name,
        &numbers[0],
        &numbers[1],
        "--seed",
        &options.seed.to_string(),
    ]);
    command.arg("--keep").arg(folder.join("files"));
    // One thread a worker: there are as many workers as processors.
    command.env("RAYON_NUM_THREADS", "1").env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(stderr)?).spawn()
}

fn enter(line: Line, reader: &'static Reader, count: &mut Count, faults: &mut Vec<Fault>) {
    count.n_cases += 1;
    count.n_contained += line.n_contained as u64;
    count.most_bytes = count.most_bytes.max(line.most_bytes);
    let (kind, why) = match line.ending {
        Ending::Read => return count.n_read += 1,
        Ending::Refused => return count.n_refused += 1,
        Ending::Panic(why) => ("panic", why),
        Ending::Wrong(why) => ("wrong", why),
    };
    count.n_faults += 1;
    faults.push(Fault { reader: reader.name, case: line.case, kind, why });
}

/// The largest resident set that a process has had; 0 where the system does not say (it is not
/// Linux).
pub(super) fn resident_bytes(process: &str) -> u64 {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/status")) else { return 0 };
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |n| n * 1024)
}
