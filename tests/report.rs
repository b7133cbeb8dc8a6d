//! Reports: what they say of a run, how the page behaves in a real browser, and what TensorBoard
//! reads.
use crate::{
    browser::{Browser, keep_screenshot, png_size},
    support::{World, metrics_of},
};
use dgpo_core::rollout::EpisodeRecord;
use dgpo_run::episodes::read_records;
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command};

/// Ends the script that it stands in, opens another and loads a picture, wherever it is taken for
/// HTML.
const HOSTILE: &str =
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> <!-- who?";

/// An RL run of four steps, evaluated, one of whose questions is hostile.
fn finished_run() -> World {
    let world = World::new();
    let questions = std::fs::read_to_string(world.path("questions.jsonl")).unwrap();
    let hostile = |line: &str| {
        let mut question: Value = serde_json::from_str(line).unwrap();
        question["question"] =
            json!(format!("{HOSTILE} {}", question["question"].as_str().unwrap()));
        question.to_string() + "\n"
    };
    let text: String = questions
        .lines()
        .enumerate()
        .map(|(i, line)| if i == 3 { hostile(line) } else { format!("{line}\n") })
        .collect();
    world.write("questions.jsonl", &text);
    let test = [
        "--set",
        "data.test=[\"questions.jsonl\"]",
        "--set",
        "data.max_test=6",
        "--set",
        "episode.max_start_length=160",
    ];
    world.dgpo(&[&["train", "--config", "rl.toml", "--name", "a"][..], &test].concat()).done();
    world
}

fn records_of(world: &World, step: usize) -> Vec<EpisodeRecord> {
    read_records(&world.path(&format!("runs/a/episodes/rl-step-{step:06}.jsonl"))).unwrap()
}

#[test]
fn a_training_run_ends_with_a_report_and_the_command_writes_it_again() {
    let world = finished_run();
    let files = ["report.html", "report.md", "tb/rl/events.out.tfevents.0.dgpo"]
        .map(|name| world.path(&format!("runs/a/{name}")));
    let first = files.each_ref().map(|file| std::fs::read(file).unwrap());
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let written = world.dgpo(&["report", "a", "--json"]).json();
    assert_eq!(written["html"], "runs/a/report.html");
    // Four steps of 48 episodes and 6 test questions for student, teacher and DGPO: all small
    // enough to be shown.
    assert_eq!(
        (&written["n_episodes"], &written["warnings"]),
        (&json!(4 * 48 + 3 * 6), &json!([]))
    );
    assert_eq!(files.each_ref().map(|file| std::fs::read(file).unwrap()), first);
    let text = String::from_utf8(first[1].clone()).unwrap();
    let evaluated: Value =
        serde_json::from_slice(&std::fs::read(world.path("runs/a/evaluation/rl.json")).unwrap())
            .unwrap();
    let row =
        text.lines().find(|line| line.starts_with("| rl ")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        row.contains(&format!("{:.3}", evaluated["average_em"].as_f64().unwrap()))
            && row.contains("rl-step-000004"),
        "{row}"
    );
    assert!(text.contains("rollout/reward"), "{text}");
}

#[test]
fn saved_rl_episodes_carry_the_numbers_of_their_tokens() {
    let world = World::new();
    world.dgpo(&["train", "--config", "rl.toml", "--name", "a", "--set", "rl.steps=1"]).done();
    let records = records_of(&world, 1);
    let (mut penalty, mut n_penalised) = (0.0, 0);
    for record in &records {
        let tokens = record.tokens.as_ref().unwrap();
        let n_agent = record.episode.n_agent_tokens();
        assert_eq!(tokens.old_log_probs.as_ref().unwrap().len(), n_agent);
        assert_eq!(tokens.values.as_ref().unwrap().len(), record.episode.response_len());
        // The reference reads wrong episodes alone.
        assert_eq!(tokens.ref_log_probs.is_some(), !record.episode.is_correct());
        if let (Some(old), Some(reference), Some(kl)) =
            (&tokens.old_log_probs, &tokens.ref_log_probs, &tokens.kl)
        {
            let known = |numbers: &Vec<Option<f32>>| {
                numbers.iter().map(|x| f64::from(x.unwrap())).collect::<Vec<f64>>()
            };
            let [old, reference, kl] = [old, reference, kl].map(known);
            for ((old, reference), kl) in old.iter().zip(&reference).zip(&kl) {
                // Three numbers of five decimals each.
                assert!((old - reference - kl).abs() < 2e-5, "{old} - {reference} is not {kl}");
            }
            penalty += kl.iter().sum::<f64>() / n_agent as f64;
            n_penalised += 1;
        }
    }
    assert!(n_penalised > 0 && n_penalised < records.len());
    let metrics = &metrics_of(&world.path("runs/a"))[0];
    assert_eq!(
        metrics["kl/selected_episodes"].as_f64().unwrap(),
        n_penalised as f64 / records.len() as f64
    );
    // What the sampler saw and what was recomputed differ as little as the metric says.
    let largest = metrics["rollout/logprob_diff_max"].as_f64().unwrap() + 1e-5;
    for record in &records {
        let sampled = record.episode.segments.iter().filter_map(|segment| match segment {
            dgpo_core::rollout::Segment::Agent { sample_log_probs, .. } => Some(sample_log_probs),
            _ => None,
        });
        let old = record.tokens.as_ref().unwrap().old_log_probs.as_ref().unwrap();
        for (sampled, old) in sampled.flatten().zip(old) {
            assert!(f64::from((sampled - old.unwrap()).abs()) <= largest);
        }
    }
    assert!(penalty.is_finite());
}

#[test]
fn a_run_without_the_numbers_still_has_a_report() {
    let world = World::new();
    world.dgpo(&["train", "--config", "rl.toml", "--name", "a", "--set", "rl.steps=1"]).done();
    let path = world.path("runs/a/episodes/rl-step-000001.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let old: String = text
        .lines()
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            assert!(record.as_object_mut().unwrap().remove("tokens").is_some());
            record.to_string() + "\n"
        })
        .collect();
    std::fs::write(&path, old).unwrap();
    let written = world.dgpo(&["report", "runs/a", "--json"]).json();
    assert_eq!((&written["n_episodes"], &written["warnings"]), (&json!(48), &json!([])));
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    World::new().dgpo(&["report", "nowhere"]).failed(2, &["there is no run nowhere"]);
}

/// Chooses one of the viewer's radio buttons.
fn choose(browser: &mut Browser, name: &str, value: &str) {
    browser.evaluate(&format!(
        "document.querySelector('input[name=\"{name}\"][value=\"{value}\"]').click()"
    ));
}

/// What the token panel says under each name.
fn panel(browser: &mut Browser) -> Value {
    browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#token dd')].map((dd) => \
         [dd.dataset.of, dd.textContent]))",
    )
}

/// Lines of the file whose episodes the list shows, in the order of the list.
fn listed(browser: &mut Browser) -> Value {
    browser.evaluate(
        "[...document.querySelectorAll('#list [role=option]')].map((row) => \
         Number(row.dataset.line))",
    )
}

/// Lines, counted from 1, of the records that `keeps` keeps.
fn lines(records: &[EpisodeRecord], keeps: impl Fn(&EpisodeRecord) -> bool) -> Vec<usize> {
    (1..=records.len()).filter(|line| keeps(&records[line - 1])).collect()
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(mut browser) = Browser::start() else { return };
    let world = finished_run();
    let page = world.path("runs/a/report.html");
    browser.screen(1280, 900, "light");
    browser.open(&page);

    // Filters and orders of the list against the file of the last step, which the page opens with.
    let records = records_of(&world, 4);
    assert_eq!(listed(&mut browser), json!(lines(&records, |_| true)));
    choose(&mut browser, "filter", "wrong");
    assert_eq!(listed(&mut browser), json!(lines(&records, |r| !r.episode.is_correct())));
    choose(&mut browser, "filter", "correct");
    assert_eq!(listed(&mut browser), json!(lines(&records, |r| r.episode.is_correct())));
    choose(&mut browser, "filter", "invalid");
    assert_eq!(listed(&mut browser), json!(lines(&records, |r| r.episode.n_invalid_actions > 0)));
    choose(&mut browser, "filter", "all");
    for (order, respect) in [("longest", true), ("searches", false)] {
        choose(&mut browser, "order", order);
        let size = |line: &usize| {
            if respect {
                records[line - 1].episode.response_len()
            } else {
                records[line - 1].episode.searches.len()
            }
        };
        let mut expected = lines(&records, |_| true);
        expected.sort_by_key(|line| std::cmp::Reverse(size(line)));
        assert_eq!(listed(&mut browser), json!(expected), "{order}");
    }
    choose(&mut browser, "order", "line");

    // The numbers of the second agent token of a wrong episode, reached with the keyboard.
    choose(&mut browser, "filter", "wrong");
    let is_fit = |record: &EpisodeRecord| {
        let segments = &record.episode.segments;
        !record.episode.is_correct() && segments.len() > 2 && segments[1].ids().len() > 1
    };
    let line = lines(&records, is_fit)[0];
    let record = &records[line - 1];
    browser.evaluate(&format!("document.querySelector('[data-line=\"{line}\"]').click()"));
    browser.evaluate("document.querySelector('#tokens .t[tabindex=\"0\"]').focus()");
    browser.press("ArrowRight");
    let shown = panel(&mut browser);
    let tokens = record.tokens.as_ref().unwrap();
    let four = |numbers: &Option<Vec<Option<f32>>>| numbers.as_ref().unwrap()[1].unwrap();
    assert_eq!((&shown["author"], &shown["loss mask"]), (&json!("agent"), &json!("1 (trained)")));
    assert_eq!(
        shown["position, id"],
        format!(
            "{}, {}",
            record.episode.prompt_len() + 1,
            record.episode.ids()[record.episode.prompt_len() + 1]
        )
    );
    let expected = [
        ("log π old", four(&tokens.old_log_probs)),
        ("log π teacher", four(&tokens.ref_log_probs)),
        ("KL", four(&tokens.kl)),
        ("value", four(&tokens.values)),
        ("advantage", four(&tokens.advantages)),
    ];
    for (name, number) in expected {
        let text = shown[name].as_str().unwrap_or_else(|| panic!("no {name} in {shown}"));
        // Five decimals in the file, four on the page.
        assert!(
            (text.parse::<f64>().unwrap() - f64::from(number)).abs() < 6e-5,
            "{name}: {text} for {number}"
        );
    }
    // Down to the observation: the critic reads it, no loss does.
    browser.press("ArrowDown");
    let shown = panel(&mut browser);
    assert_eq!((&shown["author"], &shown["loss mask"]), (&json!("observation"), &json!("0")));
    assert!(shown["value"].is_string() && shown.get("advantage").is_none(), "{shown}");
    // Up to the prompt: context, not trained on.
    browser.press("ArrowUp");
    browser.press("ArrowUp");
    let shown = panel(&mut browser);
    assert_eq!(
        [&shown["author"], &shown["loss mask"], &shown["position, id"]],
        ["prompt", "0", &*format!("0, {}", record.episode.ids()[0])]
    );
    // A correct episode was not read by the teacher, and says so.
    choose(&mut browser, "filter", "correct");
    browser.evaluate("document.querySelector('#tokens .t[tabindex=\"0\"]').focus()");
    assert_eq!(panel(&mut browser)["log π teacher"], "not computed: no penalty here");

    // The slider goes through the files of a kind, and the kinds are apart.
    choose(&mut browser, "filter", "all");
    browser.evaluate("document.querySelector('#step').focus()");
    browser.press("Home");
    assert_eq!(
        browser.evaluate("document.querySelector('#step-label').textContent"),
        "step 1 (rl-step-000001.jsonl)"
    );
    choose(&mut browser, "kind", "evaluation");
    assert_eq!(
        browser.evaluate("document.querySelector('#step-label').textContent"),
        "rl (eval-rl.jsonl)"
    );
    assert_eq!(listed(&mut browser), json!([1, 2, 3, 4, 5, 6]));

    // A hostile question is text.
    browser.evaluate("document.querySelector('[data-line=\"4\"]').click()");
    let title = browser.evaluate("document.querySelector('#about h3').textContent");
    assert!(title.as_str().unwrap().starts_with(HOSTILE), "{title}");
    assert_eq!(
        browser.evaluate(
            "window.hacked === undefined && document.querySelectorAll('main img').length === 0"
        ),
        true
    );

    // A chart read with the keyboard says what metrics.jsonl says.
    browser.evaluate(
        "document.querySelector('figure[data-metric=\"rollout/reward\"] svg[tabindex]').focus()",
    );
    browser.press("End");
    browser.press("ArrowLeft");
    let tip = browser.evaluate(
        "document.querySelector('figure[data-metric=\"rollout/reward\"] .tip').innerText",
    );
    let reward = metrics_of(&world.path("runs/a")).iter().find(|line| line["step"] == 3).unwrap()["rollout/reward"].as_f64().unwrap();
    let read: Vec<&str> = tip.as_str().unwrap().lines().collect();
    assert_eq!(read[0], "step 3");
    assert!((read[1].parse::<f64>().unwrap() - reward).abs() < 1e-4, "{tip} for {reward}");

    // It says so beside the point, which is in the right half of the chart.
    let middle = |part: &str| {
        format!(
            "(({{left, right}}) => (left + right) / \
             2)(document.querySelector('{part}').getBoundingClientRect())"
        )
    };
    let figure = "figure[data-metric=\"rollout/reward\"]";
    assert_eq!(
        browser.evaluate(&format!("{} > {}", middle(&format!("{figure} .tip")), middle(figure))),
        true
    );

    assert_eq!(browser.errors(), Vec::<&Value>::new());
    assert!(
        browser
            .requests()
            .iter()
            .all(|address| address.starts_with("file://") && address.ends_with("report.html")),
        "{:?}",
        browser.requests()
    );
}

#[test]
fn the_page_opens_on_the_tokens_that_the_kl_acts_on() {
    let Some(mut browser) = Browser::start() else { return };
    let world = finished_run();
    browser.screen(1280, 900, "light");
    browser.open(&world.path("runs/a/report.html"));
    assert_eq!(
        browser.evaluate(
            "[...document.querySelectorAll('main > section[id]')].map((section) => section.id)"
        ),
        json!(["results", "episodes", "curves", "run"])
    );
    assert_eq!(browser.evaluate("document.querySelectorAll('.card .sure').length"), 3);
    let legend = |browser: &mut Browser| {
        browser
            .evaluate("document.querySelector('#legend').textContent")
            .as_str()
            .unwrap()
            .to_owned()
    };
    let n_shaded = |browser: &mut Browser| {
        browser.evaluate("document.querySelectorAll('#tokens .t[style]').length").as_u64().unwrap()
    };
    assert_eq!(
        browser
            .evaluate("document.querySelectorAll('#list [aria-selected=\"true\"] .wrong').length"),
        1
    );
    let told = legend(&mut browser);
    assert!(
        told.contains("pulled towards the teacher") && told.contains("KL, nats a token"),
        "{told}"
    );
    let n_agent =
        browser.evaluate("document.querySelectorAll('#tokens .agent .t').length").as_u64().unwrap();
    assert_eq!(n_shaded(&mut browser), n_agent);
    choose(&mut browser, "filter", "correct");
    let told = legend(&mut browser);
    assert!(
        told.contains("this episode is correct, and the selective KL acts on wrong ones alone"),
        "{told}"
    );
    assert_eq!(n_shaded(&mut browser), 0);
    choose(&mut browser, "filter", "all");
    choose(&mut browser, "kind", "evaluation");
    assert!(legend(&mut browser).contains("not trained on"));
    assert_eq!(browser.errors(), Vec::<&Value>::new());
}

#[test]
fn labels_of_axes_are_whole_and_a_constant_has_no_range() {
    let Some(mut browser) = Browser::start() else { return };
    let world = finished_run();
    // Small and negative numbers have the longest labels.
    let metrics = world.path("runs/a/metrics.jsonl");
    let lines =
        (1..=2).map(|step| format!("{{\"phase\":\"rl\",\"step\":{step},\"mine/negative\":-0.000{step}25,\"mine/constant\":-0.1}}\n"));
    std::fs::write(&metrics, lines.collect::<String>()).unwrap();
    world.dgpo(&["report", "a"]).done();
    browser.screen(1280, 900, "light");
    browser.open(&world.path("runs/a/report.html"));
    let labels = |browser: &mut Browser, metric: &str| {
        browser.evaluate(&format!(
            "[...document.querySelectorAll('figure[data-metric=\"{metric}\"] svg \
             text[text-anchor=\"end\"]')].map((text) => [text.textContent, \
             text.getBoundingClientRect().left >= \
             text.ownerSVGElement.getBoundingClientRect().left])"
        ))
    };
    let negative = labels(&mut browser, "mine/negative");
    let negative = negative.as_array().unwrap();
    assert!(negative.len() > 1 && negative.iter().all(|label| label[1] == true), "{negative:?}");
    assert!(negative[0][0].as_str().unwrap().starts_with('−'), "{negative:?}");
    assert_eq!(labels(&mut browser, "mine/constant"), json!([["−0.1000", true]]));
}

#[test]
fn the_page_fits_a_phone_and_follows_the_colours_of_the_system() {
    let Some(mut browser) = Browser::start() else { return };
    let world = finished_run();
    browser.screen(390, 844, "light");
    browser.open(&world.path("runs/a/report.html"));
    let background = |browser: &mut Browser| {
        browser
            .evaluate("getComputedStyle(document.body).backgroundColor")
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut backgrounds = Vec::new();
    for (width, height, scheme) in
        [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]
    {
        browser.screen(width, height, scheme);
        let overflow = browser
            .evaluate(&format!("Math.max(0, document.documentElement.scrollWidth - {width})"));
        assert_eq!(overflow, 0, "something is wider than the screen");
        for (name, part) in [
            ("top", "body"),
            ("curves", "#curves"),
            ("episodes", "#episodes"),
            ("tokens", "#tokens"),
        ] {
            let show = format!(
                "document.querySelector('{part}').scrollIntoView({{behavior: 'instant'}}); \
                 document.querySelector('#tokens .t[tabindex=\"0\"]').focus({{preventScroll: \
                 true}})"
            );
            browser.evaluate(&show);
            let png = browser.screenshot();
            assert_eq!(png_size(&png), (width, height));
            keep_screenshot(&format!("{width}-{scheme}-{name}.png"), &png);
        }
        backgrounds.push(background(&mut browser));
    }
    assert_eq!((&backgrounds[0], &backgrounds[1]), (&backgrounds[2], &backgrounds[3]));
    assert_ne!(backgrounds[0], backgrounds[1]);
    // The switch wins over the system.
    browser.evaluate("document.querySelector('#theme input[value=\"light\"]').click()");
    assert_eq!(background(&mut browser), backgrounds[0]);
    assert_eq!(browser.errors(), Vec::<&Value>::new());
}

/// Prints every scalar of an event file as [tag, step, value].
const READ_EVENTS: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
events.Reload()
print(json.dumps([[tag, e.step, e.value] for tag in events.Tags()['scalars'] for e in events.Scalars(tag)]))
";

#[test]
fn tensorboard_reads_every_metric() {
    // `1`, or the Python that has the package.
    let Some(python) = std::env::var_os("DGPO_TENSORBOARD")
        .map(|value| if value == "1" { PathBuf::from("python3") } else { value.into() })
    else {
        dgpo_core::testing::skipped(
            "DGPO_TENSORBOARD=1 reads the event files back with the Python package \
             tensorboard",
        );
        return;
    };
    let world = finished_run();
    let output = Command::new(python)
        .args(["-c", READ_EVENTS])
        .arg(world.path("runs/a/tb/rl"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Vec<(String, u64, f64)> = serde_json::from_slice(&output.stdout).unwrap();
    let text = std::fs::read_to_string(world.path("runs/a/metrics.jsonl")).unwrap();
    let mut n_expected = 0;
    for line in text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Map<String, Value>>(line).unwrap())
    {
        let step = line["step"].as_u64().unwrap();
        for (name, value) in
            line.iter().filter(|(name, value)| *name != "step" && value.is_number())
        {
            let found = read
                .iter()
                .find(|(tag, at, _)| tag == name && *at == step)
                .unwrap_or_else(|| panic!("no {name} of step {step}"));
            assert_eq!(found.2 as f32, value.as_f64().unwrap() as f32, "{name}");
            n_expected += 1;
        }
    }
    assert!(n_expected > 0);
    assert_eq!(read.len(), n_expected);
}
