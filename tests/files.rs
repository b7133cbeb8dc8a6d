//! What files look like on the disk: their modes, and that nothing is written through a link that
//! somebody put in the way.
#![cfg(unix)]
use crate::support::{Ended, World, files_below};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

#[test]
fn every_file_of_a_run_has_the_mode_that_the_umask_gives() {
    let world = World::new();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "umask 027; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_dgpo"),
        "train",
        "--config",
        "rl.toml",
    ]);
    command.args([
        "--name",
        "new",
        "--set",
        "rl.steps=1",
        "--set",
        "rl.questions_per_step=8",
        "--set",
        "rl.mini_batch=8",
    ]);
    world.at_home(&mut command);
    Ended::of(&mut command).done();
    let run = world.path("runs/new");
    let files = files_below(&run);
    assert!(files.keys().any(|name| name.ends_with("summary.json")), "{:?}", files.keys());
    for name in files.keys() {
        let mode = fs::metadata(run.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "{} is {mode:o}", name.display());
    }
}

#[test]
fn a_link_at_the_name_of_an_unfinished_file_is_not_written_through() {
    let world = World::new();
    world.write("precious", "mine");
    fs::create_dir_all(world.path("index")).unwrap();
    // The names that unfinished files of an index have had, or have.
    for name in ["index.json.tmp", "progress.json.tmp", "vectors.f32.part"] {
        symlink(world.path("precious"), world.path("index").join(name)).unwrap();
    }
    // Whether it is refused or another name is taken does not matter here.
    let arguments = [
        "index",
        "build",
        "--corpus",
        "corpus.jsonl",
        "--encoder",
        "builtin:tiny/encoder",
        "--out",
        "index",
    ];
    let _ = world.dgpo(&arguments);
    assert_eq!(fs::read_to_string(world.path("precious")).unwrap(), "mine");
}

#[test]
fn a_link_at_the_name_of_a_graph_is_replaced() {
    let world = World::new();
    world.write("precious", "mine");
    fs::create_dir_all(world.path("index")).unwrap();
    for name in ["links.hnsw.graph", "links.hnsw.data"] {
        symlink(world.path("precious"), world.path("index").join(name)).unwrap();
    }
    let arguments = [
        "index",
        "build",
        "--corpus",
        "corpus.jsonl",
        "--encoder",
        "builtin:tiny/encoder",
        "--out",
        "index",
    ];
    world
        .dgpo(
            &[
                &arguments[..],
                &["--set", "retriever.search=hnsw", "--set", "retriever.max_tokens=64"],
            ]
            .concat(),
        )
        .done();
    assert_eq!(fs::read_to_string(world.path("precious")).unwrap(), "mine");
    assert!(fs::symlink_metadata(world.path("index/links.hnsw.graph")).unwrap().is_file());
}

#[test]
fn a_link_at_the_names_that_a_run_appends_to_is_refused() {
    let world = World::new();
    world.write("precious", "mine");
    let short =
        ["--set", "rl.steps=1", "--set", "rl.questions_per_step=8", "--set", "rl.mini_batch=8"];
    world.dgpo(&[&["train", "--config", "rl.toml", "--name", "new"], &short[..]].concat()).done();
    for name in ["lock", "metrics.jsonl"] {
        let path = world.path("runs/new").join(name);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(world.path("precious"), &path).unwrap();
        let ended = world.dgpo(&["train", "--resume", "runs/new"]);
        assert!(
            ended.code != Some(0)
                && ended.stderr.contains(name)
                && ended.stderr.contains("is a link"),
            "{ended:?}"
        );
        assert_eq!(fs::read_to_string(world.path("precious")).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        fs::write(&path, kept).unwrap();
    }
}
