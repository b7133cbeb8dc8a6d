//! A retrieval server that goes away costs time, never a run, and never becomes a figure.
use crate::{
    baselines::{TALKER, what_was_learned},
    support::{Ended, World, at_line, interrupt, metrics_of, names_in},
};
use dgpo_run::episodes::read_episodes;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    process::Command,
    sync::{Arc, Mutex},
};

/// A server that finds the same passage for every query while it is up, and answers 500 while it is
/// not.
pub(crate) struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Requests since the last [`Server::set`].
    n_requests: usize,
    /// Those of them that are answered with 500.
    down: Range<usize>,
    /// The `Authorization` headers of all requests.
    authorizations: Vec<String>,
}

/// Every request.
const ALWAYS: Range<usize> = 0..usize::MAX;
/// No request.
const NEVER: Range<usize> = 0..0;

impl Server {
    pub(crate) fn start(down: Range<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/retrieve", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { down, ..State::default() }));
        let seen = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &mut seen.lock().unwrap());
            }
        });
        Self { url, state }
    }

    /// Which requests from now on find it down.
    pub(crate) fn set(&self, down: Range<usize>) {
        let mut state = self.state.lock().unwrap();
        (state.n_requests, state.down) = (0, down);
    }

    /// The `Authorization` headers of all requests so far.
    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.state.lock().unwrap().authorizations.clone()
    }

    /// `dgpo ARGUMENTS` with this server as the retriever, and no pauses worth mentioning.
    fn command(&self, world: &World, arguments: &[&str]) -> Command {
        let url = format!("retriever.url={}", self.url);
        let settings = [
            "retriever.kind=remote",
            &url,
            "retriever.max_retries=0",
            "retriever.first_pause_s=0.001",
        ];
        world.command(&[arguments, &settings.map(|setting| ["--set", setting]).concat()].concat())
    }

    fn dgpo(&self, world: &World, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(world, arguments))
    }
}

fn answer(mut stream: TcpStream, state: &mut State) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut n_bytes) = (String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some((name, value)) = line.split_once(':') {
            match name.to_lowercase().as_str() {
                "content-length" => n_bytes = value.trim().parse().unwrap(),
                "authorization" => state.authorizations.push(value.trim().to_owned()),
                _ => {}
            }
        }
        line.clear();
    }
    let mut body = vec![0; n_bytes];
    reader.read_exact(&mut body).unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let hit = r#"{"document": {"id": "1", "contents": "\"A\"\nA passage."}, "score": 1.0}"#;
    let lists: Vec<String> =
        request["queries"].as_array().unwrap().iter().map(|_| format!("[{hit}]")).collect();
    let (status, body) = match state.down.contains(&state.n_requests) {
        true => ("500 Broken", "down for tea".to_owned()),
        false => ("200 OK", format!("{{\"result\": [{}]}}", lists.join(","))),
    };
    state.n_requests += 1;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
}

/// The whole pipeline on the built-in teacher, which is greedy here and so searches in every
/// episode. All of them are kept: where every query finds the same passage, hardly any is right.
const PIPELINE: [&str; 5] = [
    "demos.temperature=0",
    "demos.only_correct=false",
    "distill.steps=2",
    "rl.steps=1",
    "retriever.max_outage_s=600",
];

/// `train` of a recipe under a name, with settings.
fn train<'a>(recipe: &'a str, name: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
    ["train", "--config", recipe, "--name", name].into_iter().chain(settings).collect()
}

/// A run with the server up all the time and one for which it is `down` for a while end alike, file
/// by file.
fn assert_an_outage_leaves_no_trace(recipe: &str, settings: &[&str], down: Range<usize>) {
    let (world, server) = (World::new(), Server::start(NEVER));
    world.write("talker.toml", TALKER);
    server.dgpo(&world, &train(recipe, "whole", settings)).done();
    assert!(server.state.lock().unwrap().n_requests > 0, "the run searches");
    server.set(down);
    let disturbed = server.dgpo(&world, &train(recipe, "disturbed", settings)).done();
    let n_waits = disturbed.stderr.matches("that searched were lost to the retriever").count();
    assert!(
        n_waits > 1 && disturbed.stderr.contains("down for tea"),
        "{n_waits} waits: {}",
        disturbed.stderr
    );
    let [whole, disturbed] =
        ["whole", "disturbed"].map(|run| what_was_learned(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole.keys().collect::<Vec<_>>(), disturbed.keys().collect::<Vec<_>>());
    let different: Vec<_> = whole
        .iter()
        .filter(|(name, bytes)| disturbed[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    assert!(different.is_empty(), "these files differ: {different:?}");
    let [whole, disturbed] =
        ["whole", "disturbed"].map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole, disturbed);
}

#[test]
fn an_outage_during_rl_leaves_no_trace() {
    assert_an_outage_leaves_no_trace(
        "talker.toml",
        &["stage=rl", "rl.questions_per_step=24", "rl.mini_batch=12"],
        7..90,
    );
}

#[test]
fn an_outage_during_the_teachers_episodes_leaves_no_trace() {
    assert_an_outage_leaves_no_trace("smoke", &PIPELINE, 0..60);
}

#[test]
fn an_outage_during_gkd_leaves_no_trace() {
    assert_an_outage_leaves_no_trace(
        "talker.toml",
        &["stage=gkd", "gkd.questions_per_step=16"],
        5..60,
    );
}

#[test]
fn an_outage_while_distillms_student_plays_leaves_no_trace() {
    let given = "data.trajectories=[\"demos.jsonl.gz\"]";
    let own = [
        "distill.student_outputs.is_adaptive=true",
        "distill.student_outputs.initial_share=1.0",
        "distill.batch=16",
    ];
    assert_an_outage_leaves_no_trace(
        "talker.toml",
        &[&["stage=distill", given][..], &own].concat(),
        3..60,
    );
}

#[test]
fn an_outage_during_an_evaluation_and_its_capabilities_changes_no_figure() {
    let (world, server) = (World::new(), Server::start(NEVER));
    let arguments = [
        "eval",
        "--config",
        "tiny",
        "--model",
        "builtin:tiny/teacher",
        "--limit",
        "4",
        "--arcap",
        "--json",
    ];
    let whole = server.dgpo(&world, &arguments).json();
    let n_requests = server.state.lock().unwrap().n_requests;
    // Once in the first request, and once in the last one, which asks for the questions themselves.
    for down in [0..9, n_requests - 1..n_requests + 8] {
        server.set(down);
        let disturbed = server.dgpo(&world, &arguments);
        assert!(
            disturbed.stderr.contains("lost to the retriever: http://127.0.0.1"),
            "{}",
            disturbed.stderr
        );
        assert_eq!(disturbed.json(), whole);
    }
}

#[test]
fn teacher_episodes_that_the_retriever_never_serves_are_not_recorded_as_played() {
    let (world, server) = (World::new(), Server::start(ALWAYS));
    let settings = [&PIPELINE[..4], &["retriever.max_outage_s=0"]].concat();
    let ended = server.dgpo(&world, &[&train("smoke", "a", &settings)[..], &["-q"]].concat());
    ended.failed(
        1,
        &[
            "block 1 of the teacher's episodes",
            "lost to the retriever",
            "down for tea",
            "retriever.max_outage_s = 0",
        ],
    );
    assert!(
        names_in(&world.path("runs/a/episodes")).is_empty(),
        "a block that was lost is not done"
    );
    server.set(NEVER);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    let names = names_in(&world.path("runs/a/episodes"));
    assert!(
        ["demos-000000.json", "demos-000000.jsonl"]
            .iter()
            .all(|file| names.contains(&(*file).to_owned())),
        "{names:?}"
    );
}

#[test]
fn a_block_that_an_outage_or_a_power_cut_left_behind_is_played_again() {
    let (world, server) = (World::new(), Server::start(NEVER));
    server.dgpo(&world, &train("smoke", "a", &PIPELINE)).done();
    let (block, counts) = (
        world.path("runs/a/episodes/demos-000000.jsonl"),
        world.path("runs/a/episodes/demos-000000.json"),
    );
    let (played, counted) =
        (std::fs::read(&block).unwrap(), std::fs::read_to_string(&counts).unwrap());
    let lost = counted.replace("\"n_lost\":0", "\"n_lost\":1");
    assert_ne!(lost, counted);
    for (left, said) in [(&played[..played.len() / 2], &counted), (&[], &counted), (&played, &lost)]
    {
        std::fs::remove_dir_all(world.path("runs/a/checkpoints")).unwrap();
        std::fs::write(&block, left).unwrap();
        std::fs::write(&counts, said).unwrap();
        let resumed = world.dgpo(&["train", "--resume", "runs/a"]).done();
        assert!(
            resumed
                .stderr
                .contains("demos-000000.jsonl: an outage or a power cut left no whole block"),
            "{}",
            resumed.stderr
        );
        assert!(
            std::fs::read(&block).unwrap() == played
                && std::fs::read_to_string(&counts).unwrap() == counted
        );
    }
}

#[test]
fn an_evaluation_without_a_retriever_is_an_error_and_no_figure() {
    let (world, server) = (World::new(), Server::start(ALWAYS));
    let arguments = ["eval", "--config", "tiny", "--model", "builtin:tiny/teacher", "--limit", "4"];
    let patient = [&arguments[..], &["--set", "retriever.max_outage_s=0.01"]].concat();
    server.dgpo(&world, &patient).failed(
        1,
        &["the evaluation: 8 of 8 that searched were lost to the retriever", "down for tea"],
    );
    server.set(NEVER);
    let figures = server.dgpo(&world, &[&arguments[..], &["--json"]].concat()).json();
    assert_eq!((&figures["retriever_failed"], &figures["n_episodes"]), (&0.0.into(), &8.into()));
}

/// One checkpoint at the very end; the reward of so few questions says nothing of a collapse.
const FEW: [&str; 5] = [
    "rl.steps=40",
    "rl.questions_per_step=2",
    "rl.mini_batch=2",
    "guards.action=off",
    "run.save_every=100",
];

#[test]
fn an_outage_that_does_not_end_keeps_the_steps_before_it() {
    let (world, server) = (World::new(), Server::start(NEVER));
    let mut command = server.command(
        &world,
        &train("rl.toml", "a", &[&FEW[..], &["retriever.max_outage_s=0.01"]].concat()),
    );
    let ended = at_line(&mut command, "rl 2/40", |_| server.set(ALWAYS));
    ended.failed(1, &["RL step", "lost to the retriever", "down for tea", "--resume runs/a"]);
    let checkpoints = names_in(&world.path("runs/a/checkpoints"));
    assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
    server.set(NEVER);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert!(names_in(&world.path("runs/a/checkpoints")).contains(&"rl-step-000040".to_owned()));
    let episodes = read_episodes(&world.path("runs/a/episodes/rl-step-000040.jsonl")).unwrap();
    assert_eq!(episodes.len(), 2);
}

#[test]
fn ctrl_c_ends_the_wait_for_a_retriever_and_saves() {
    let (world, server) = (World::new(), Server::start(NEVER));
    server.dgpo(&world, &train("rl.toml", "whole", &FEW)).done();
    server.set(5..usize::MAX);
    let mut command = server.command(&world, &train("rl.toml", "a", &FEW));
    command.args(["--set", "retriever.first_pause_s=60"]);
    let stopped = at_line(&mut command, "it is played again in 60.0s", interrupt);
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    server.set(NEVER);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    let [whole, resumed] =
        ["whole", "a"].map(|run| metrics_of(&world.path(&format!("runs/{run}"))));
    assert_eq!(whole, resumed);
}
