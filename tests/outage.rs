//! A retrieval server that goes away costs time, never a run, and never becomes a figure.
use crate::support::{Ended, World, names_in};
use dgpo::rollout::episode::read_episodes;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A server that finds the same passage for every query while it is up, and answers 500 while it is not.
struct Server {
    url: String,
    is_up: Arc<AtomicBool>,
}

impl Server {
    fn start(is_up: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/retrieve", listener.local_addr().unwrap());
        let state = Arc::new(AtomicBool::new(is_up));
        let seen = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), seen.load(Ordering::SeqCst));
            }
        });
        Self { url, is_up: state }
    }

    fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::SeqCst);
    }

    /// Runs `dgpo ARGUMENTS` with this server as the retriever.
    fn dgpo(&self, world: &World, arguments: &[&str]) -> Ended {
        let url = format!("retriever.url={}", self.url);
        world.dgpo(&[arguments, &["--set", "retriever.kind=remote", "--set", &url, "--set", "retriever.max_retries=0"]].concat())
    }
}

fn answer(mut stream: TcpStream, is_up: bool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut n_bytes) = (String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            n_bytes = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; n_bytes];
    reader.read_exact(&mut body).unwrap();
    let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let hit = r#"{"document": {"id": "1", "contents": "\"A\"\nA passage."}, "score": 1.0}"#;
    let lists: Vec<String> = request["queries"].as_array().unwrap().iter().map(|_| format!("[{hit}]")).collect();
    let (status, body) = if is_up { ("200 OK", format!("{{\"result\": [{}]}}", lists.join(","))) } else { ("500 Broken", String::new()) };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
}

/// The whole pipeline on the built-in teacher, which is greedy here and so searches in every episode. All of them are kept: where every query finds the
/// same passage, hardly any is right.
const PIPELINE: [&str; 14] = [
    "train",
    "--config",
    "smoke",
    "--name",
    "a",
    "--set",
    "demos.temperature=0",
    "--set",
    "demos.only_correct=false",
    "--set",
    "distill.steps=2",
    "--set",
    "rl.steps=1",
    "-q",
];

#[test]
fn teacher_episodes_lost_to_the_retriever_are_played_again() {
    let (world, server) = (World::new(), Server::start(false));
    server.dgpo(&world, &PIPELINE).failed(1, &["lost to the retriever", "is the retrieval server up?"]);
    assert!(names_in(&world.path("runs/a/episodes")).is_empty(), "a block without a played episode is not done");
    server.set_up(true);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert!(names_in(&world.path("runs/a/episodes")).contains(&"demos-000000.jsonl".to_owned()));
}

#[test]
fn an_evaluation_without_a_retriever_is_an_error_and_no_figure() {
    let (world, server) = (World::new(), Server::start(false));
    let arguments = ["eval", "--config", "tiny", "--model", "builtin:tiny/teacher", "--limit", "4"];
    server.dgpo(&world, &arguments).failed(1, &["lost to the retriever"]);
    server.set_up(true);
    let figures = server.dgpo(&world, &[&arguments[..], &["--json"]].concat()).json();
    assert_eq!((&figures["retriever_failed"], &figures["n_episodes"]), (&0.0.into(), &8.into()));
}

#[test]
fn an_outage_during_rl_keeps_the_steps_before_it() {
    let world = World::new();
    let server = Server::start(true);
    // One checkpoint at the very end; the server goes away behind step 2, where the talker searches in most of its episodes.
    let settings =
        ["--set", "retriever.kind=remote", "--set", "run.save_every=100", "--set", "rl.steps=40", "--set", "retriever.max_retries=0"];
    let (url, one_turn) = (format!("retriever.url={}", server.url), "episode.max_turns=1");
    let arguments = [&["train", "--config", "rl.toml", "--name", "a", "--set", &url, "--set", one_turn][..], &settings].concat();
    // Questions few enough that every one of a step's episodes may search; the reward of so few says nothing of a collapse.
    let few = ["--set", "rl.questions_per_step=2", "--set", "rl.mini_batch=2", "--set", "guards.action=off"];
    let mut command = world.command(&[&arguments[..], &few].concat());
    let ended = crate::support::at_line(&mut command, "rl 2/40", |_| server.set_up(false));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("lost to the retriever") && ended.stderr.contains("hint: "), "{}", ended.stderr);
    let checkpoints = names_in(&world.path("runs/a/checkpoints"));
    assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
    server.set_up(true);
    world.dgpo(&["train", "--resume", "runs/a"]).done();
    assert!(names_in(&world.path("runs/a/checkpoints")).contains(&"rl-step-000040".to_owned()));
    let episodes = read_episodes(&world.path("runs/a/episodes/rl-step-000040.jsonl")).unwrap();
    assert_eq!(episodes.len(), 2);
}
