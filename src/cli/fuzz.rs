//! `dgpo fuzz`: damaged files for every reader.
use super::{Context, Ended, UsageError, args::at_least_one, output};
use dgpo_lab::fuzz::{
    Reader, named, readers,
    supervise::{self, Count, Fault, Options},
    work,
};
use dgpo_run::units::duration;
use std::{
    io::BufWriter,
    path::{Path, PathBuf},
};

/// Give every reader of files damaged ones; exit code 1 if any of them panics, aborts, hangs or
/// eats memory.
///
/// Example: dgpo fuzz --cases 1000 --reader parquet
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Damaged files for each reader.
    #[arg(long, value_name = "N", default_value = "200", value_parser = at_least_one)]
    cases: usize,
    /// Only this reader; may be repeated. Default: all of them.
    #[arg(long, value_name = "NAME")]
    reader: Vec<String>,
    /// Another seed gives other damage.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of the first case: with --cases 1 a single one is done again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Seconds until a case counts as one that does not end.
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    limit_s: f64,
    /// MiB of memory until a case counts as one that takes it all (where the system tells: Linux).
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    limit_mib: u64,
    /// Processes at the same time. Default: one for each processor.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    workers: Option<usize>,
    /// Folder in which the files of the last case of each reader stay. Default: a temporary one.
    #[arg(long, value_parser = super::args::path, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Print one JSON object on one line instead.
    #[arg(long)]
    json: bool,
    /// Work on cases FROM up to before TO of a reader in this process; what `dgpo fuzz` starts.
    #[arg(long, num_args = 3, value_names = ["READER", "FROM", "TO"], hide = true)]
    worker: Option<Vec<String>>,
}

pub(super) fn run(args: &Args, context: Context) -> anyhow::Result<Ended> {
    if let Some(worker) = &args.worker {
        return run_worker(worker, args);
    }
    let chosen: Vec<&'static Reader> = match args.reader.as_slice() {
        [] => readers().iter().collect(),
        names => names.iter().map(|name| reader(name)).collect::<Result<_, _>>()?,
    };
    if !(0.001..=1e6).contains(&args.limit_s) {
        return Err(UsageError(format!(
            "--limit-s {} is no time; hint: seconds from 0.001 to 1000000",
            args.limit_s
        ))
        .into());
    }
    let temporary = tempfile::tempdir()?;
    let options = Options {
        n_cases: args.cases as u64,
        first: args.first,
        seed: args.seed,
        limit_s: args.limit_s,
        limit_bytes: args.limit_mib << 20,
        n_workers: args
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        folder: args.keep.clone().unwrap_or_else(|| temporary.path().to_owned()),
    };
    let hear = |count: &Count| {
        if !context.is_quiet {
            output::say(&format!(
                "{}: {} cases in {}",
                count.reader,
                count.n_cases,
                duration(count.work_s)
            ));
        }
    };
    let (counts, faults) = supervise::run(&chosen, &options, &hear)?;
    if args.json {
        output::data(
            &serde_json::json!({"seed": args.seed, "readers": counts, "faults": faults})
                .to_string(),
        )?;
    } else {
        output::data(&describe(&counts, &faults, args.seed))?;
    }
    Ok(if faults.is_empty() { Ended::Done } else { Ended::Failed })
}

fn reader(name: &str) -> Result<&'static Reader, UsageError> {
    let known = || readers().iter().map(|reader| reader.name).collect::<Vec<_>>().join(", ");
    named(name).ok_or_else(|| UsageError(format!("there is no reader {name}; hint: {}", known())))
}

fn run_worker(worker: &[String], args: &Args) -> anyhow::Result<Ended> {
    let number = |text: &String| {
        text.parse::<u64>().map_err(|_| {
            UsageError(format!("{text} is no number; hint: --worker is not for people"))
        })
    };
    let (reader, from, to) = (reader(&worker[0])?, number(&worker[1])?, number(&worker[2])?);
    let folder = args.keep.as_deref().unwrap_or(Path::new("."));
    let mut out = BufWriter::new(std::io::stdout().lock());
    work(reader, args.seed, from..to, folder, &mut out)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Ended::Done)
}

/// A table of the readers, and how each fault is seen again.
fn describe(counts: &[Count], faults: &[Fault], seed: u64) -> String {
    let mut text = String::from(
        "| reader | cases | read | refused | contained panics | faults | longest case | memory \
         |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for count in counts {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            count.reader,
            output::grouped(count.n_cases),
            output::grouped(count.n_read),
            output::grouped(count.n_refused),
            output::grouped(count.n_contained),
            count.n_faults,
            duration(count.longest_s),
            output::bytes(count.most_bytes),
        );
    }
    let n_cases: u64 = counts.iter().map(|count| count.n_cases).sum();
    let of = |kinds: &[&str]| faults.iter().filter(|fault| kinds.contains(&fault.kind)).count();
    text += &format!(
        "{} cases: {} panics, {} aborts, {} without an end, {} of memory, {} wrong\n",
        output::grouped(n_cases),
        of(&["panic"]),
        of(&["abort"]),
        of(&["no end"]),
        of(&["memory"]),
        of(&["wrong"])
    );
    for fault in faults {
        let Fault { reader, case, kind, why } = fault;
        text += &format!(
            "{kind}  {reader} case {case}: {why}\n      again: dgpo fuzz --reader {reader} --first \
             {case} --cases 1 --seed {seed} --keep FOLDER\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_with_the_command_that_shows_it_again() {
        let fault =
            Fault { reader: "parquet", case: 17, kind: "abort", why: "signal 6".to_owned() };
        let count = Count {
            reader: "parquet",
            n_cases: 1200,
            n_read: 200,
            n_refused: 999,
            n_faults: 1,
            ..Count::default()
        };
        let text = describe(&[count], &[fault], 5);
        assert!(
            text.contains("| parquet | 1,200 | 200 | 999 | 0 | 1 |")
                && text.contains("1,200 cases: 0 panics, 1 aborts"),
            "{text}"
        );
        assert!(
            text.contains(
                "again: dgpo fuzz --reader parquet --first 17 --cases 1 --seed 5 --keep FOLDER"
            ),
            "{text}"
        );
    }
}
