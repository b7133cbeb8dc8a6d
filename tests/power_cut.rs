//! What lies on the disk when the power goes: nothing is put in place, or relied on, before it is
//! synced.
//!
//! Seen from outside with strace, which names the system calls of a whole run in their order.
use crate::support::{Ended, World, names_in, repository};
use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A system call on files.
#[derive(Clone)]
enum Call {
    /// Bytes went into a file.
    Write(PathBuf),
    /// A file or a folder was synced.
    Sync(PathBuf),
    /// A file or a folder took another's place.
    Rename(PathBuf, PathBuf),
}

/// `dgpo ARGUMENTS` and its calls; `None`, with a word, where there is no strace or it may not
/// trace.
fn traced(world: &World, arguments: &[&str]) -> Option<(Ended, Vec<Call>)> {
    let may_trace = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    if !may_trace.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no strace, or it may not trace here; install the package strace");
        return None;
    }
    let log = world.path("calls");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-qq", "-s", "0", "--seccomp-bpf", "-e", "signal=none", "-o"])
        .arg(&log);
    command.args(["-e", "trace=write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2"]);
    command.arg(env!("CARGO_BIN_EXE_dgpo")).args(arguments);
    world.at_home(&mut command);
    let ended = Ended::of(&mut command);
    let mut begun: HashMap<String, String> = HashMap::new();
    let mut calls = Vec::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let (thread, call) = line.trim_start().split_once(' ').unwrap();
        let call = call.trim_start();
        // Another thread's call came between the two halves of this one.
        if let Some(half) = call.strip_suffix("<unfinished ...>") {
            let _ = begun.insert(thread.to_owned(), half.to_owned());
            continue;
        }
        let whole = match call.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>")) {
            Some((_, rest)) => begun.remove(thread).unwrap() + rest,
            None => call.to_owned(),
        };
        calls.extend(call_of(&whole, &world.path(".")));
    }
    Some((ended, calls))
}

/// `fsync(7</tmp/x>) = 0`, `rename("a", "b") = 0`; what failed is left out.
fn call_of(text: &str, here: &Path) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    let here = here.canonicalize().unwrap();
    let of_descriptor = || Some(PathBuf::from(arguments.split_once('<')?.1.split_once('>')?.0));
    let mut quoted = arguments.split('"').skip(1).step_by(2).map(|path| here.join(path));
    match name {
        "write" | "writev" | "pwrite64" => of_descriptor().map(Call::Write),
        "fsync" | "fdatasync" => of_descriptor().map(Call::Sync),
        _ => Some(Call::Rename(quoted.next()?, quoted.next()?)),
    }
}

/// Names of what was put in place below a folder. All of it was synced before, every folder behind
/// it, and the first of `stands_for` before each name that begins like one of the others.
fn placed(calls: Vec<Call>, root: &Path, stands_for: (&str, &[&str])) -> BTreeSet<String> {
    let root = root.canonicalize().unwrap();
    let (mut unsynced, mut synced, mut moved, mut placed) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for call in calls {
        match call {
            Call::Write(path) => drop(unsynced.insert(path)),
            Call::Sync(path) => {
                let _ = (unsynced.remove(&path), moved.remove(&path), synced.insert(path));
            }
            Call::Rename(from, to) if to.starts_with(&root) => {
                let name = to.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                assert!(synced.contains(&from), "{name} was put in place before it was synced");
                let inside: Vec<_> =
                    unsynced.iter().filter(|path| path.starts_with(&from)).collect();
                assert!(inside.is_empty(), "{name} was put in place before {inside:?} were synced");
                let (needed, names) = stands_for;
                let needs = names.iter().any(|start| name.starts_with(start));
                assert!(
                    !needs || !unsynced.contains(&root.join(needed)),
                    "{needed} was not synced before {name}, which stands for it"
                );
                let _ = (moved.insert(to.parent().unwrap().to_owned()), placed.insert(name));
            }
            Call::Rename(..) => {}
        }
    }
    assert!(moved.is_empty(), "the names of new files in {moved:?} were never synced");
    placed
}

#[test]
fn nothing_of_a_run_is_put_in_place_before_it_and_the_metrics_it_stands_for_are_synced() {
    let world = World::new();
    let settings = ["demos.only_correct=false", "distill.steps=2", "rl.steps=1", "run.keep=0"]
        .map(|setting| ["--set", setting])
        .concat();
    let Some((ended, calls)) =
        traced(&world, &[&["train", "--config", "smoke", "--name", "a"][..], &settings].concat())
    else {
        return;
    };
    let _ = ended.done();
    let placed = placed(
        calls,
        &world.path("runs/a"),
        ("metrics.jsonl", &["checkpoints/", "episodes/demos", "summary"]),
    );
    let expected = [
        "recipe.toml",
        "episodes/demos-000000.jsonl",
        "episodes/demos-000000.json",
        "checkpoints/kd-step-000002",
        "checkpoints/rl-step-000001",
        "episodes/eval-rl.jsonl",
        "evaluation/rl.json",
        "summary.json",
    ];
    let missing: Vec<_> = expected.iter().filter(|name| !placed.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?} were not written as whole files; {placed:?} were");
}

#[test]
fn an_index_says_that_it_is_done_behind_its_vectors_and_its_graph() {
    let world = World::new();
    let encoder = repository("configs/tiny/encoder");
    let arguments = [
        "index",
        "build",
        "--config",
        "tiny",
        "--corpus",
        "corpus.jsonl",
        "--out",
        "a",
        "--encoder",
        encoder.to_str().unwrap(),
    ];
    let Some((ended, calls)) = traced(&world, &arguments) else { return };
    let _ = ended.done();
    for part in names_in(&world.path("a"))
        .iter()
        .filter(|name| name.contains(".hnsw.") || name.starts_with("vectors"))
    {
        assert!(
            placed(calls.clone(), &world.path("a"), (part, &["index.json"])).contains("index.json")
        );
    }
}
