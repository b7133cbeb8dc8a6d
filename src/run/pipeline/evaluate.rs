//! Greedy episodes of a model on the test questions: between the steps of a phase, and at the end
//! of every model, with the summary.
use super::{Inner, PipelineError, run::Run};
use crate::{
    episodes::write_episodes,
    eval::{Figures, MODELS, Summary},
    events::Event,
};
use dgpo_core::{
    env::search::Retriever,
    rollout::Episode,
    settings::Phase,
    tokenizer::Tokenizer,
    trainer::{
        metrics::{EVAL_AVERAGE_EM, EVAL_EM, EVAL_TEACHER_KL},
        score::{Pass, mean_kl},
    },
};
use dgpo_models::{
    TrainBackend,
    decoder::Decoder,
    files::{sync_folder, write_file},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A model to evaluate.
struct Subject<'m, B: TrainBackend> {
    /// Its row in the table.
    name: &'static str,
    model: &'m Decoder<Inner<B>>,
    /// The model's name, or its checkpoint's.
    of: String,
    /// Its place among those that are evaluated, from 1, and their number.
    number: usize,
    total: usize,
}

/// evaluation/NAME.json: figures, and what they were measured on.
#[derive(Serialize, Deserialize)]
struct SavedEvaluation {
    of: String,
    test: Vec<String>,
    max_test: usize,
    #[serde(flatten)]
    figures: Figures,
}

/// Evaluates student, teacher and what was trained, and writes the summary. A model that was
/// evaluated already is not played again.
pub(super) fn evaluate<B: TrainBackend>(
    run: &mut Run<'_, B>,
    tokenizer: &Tokenizer,
    retriever: Option<&dyn Retriever>,
    trained: Vec<(Phase, Decoder<Inner<B>>)>,
) -> Result<Summary, PipelineError> {
    let phase = Phase::Eval;
    let mut summary = run.summary_so_far();
    if let (Some(retriever), false) = (retriever, run.setup.recipe.data.test.is_empty()) {
        let (total, player) = (2 + trained.len(), (tokenizer, retriever));
        (run.observer)(Event::PhaseStarted { phase, done: 0, total });
        run.student_of = None;
        {
            let (of, name) = (run.setup.recipe.model.student.clone(), MODELS[0]);
            let model = &run.setup.load(&of, tokenizer)?;
            let subject = Subject { name, model, of, number: 1, total };
            summary.set(name, figures(run, player, subject)?);
        }
        if let Some(model) = &run.setup.load_teacher(tokenizer)? {
            let (of, name) = (run.setup.recipe.model.teacher.clone(), MODELS[1]);
            let subject = Subject { name, model, of, number: 2, total };
            summary.set(name, figures(run, player, subject)?);
        }
        for (number, (phase, model)) in (3..).zip(trained) {
            let newest = run.newest(phase)?;
            run.student_of = newest.as_ref().map(|checkpoint| (phase, checkpoint.step));
            let of = newest.map_or(String::new(), |checkpoint| checkpoint.name());
            let subject = Subject { name: phase.as_str(), model: &model, of, number, total };
            summary.set(phase.as_str(), figures(run, player, subject)?);
        }
        (run.observer)(Event::PhaseDone { phase });
        summary.wall_s = run.wall_s();
        run.metrics.sync()?;
    }
    run.folder.write_summary(&summary)?;
    Ok(summary)
}

/// True if the student is to be evaluated after `step` of a phase and was not yet. This is
/// asked at the beginning of the next step, where a resumed run also comes by, so that an
/// evaluation cut off by a kill is made up for.
pub(super) fn is_evaluation_due<B: TrainBackend>(
    run: &Run<'_, B>,
    phase: Phase,
    step: usize,
) -> Result<bool, PipelineError> {
    let every = run.setup.recipe.eval.every;
    if every == 0 || step == 0 || !step.is_multiple_of(every) {
        return Ok(false);
    }
    let (phase, at) = (json!(phase), json!(step));
    let is_done = |line: &Map<String, Value>| {
        line.get("phase") == Some(&phase)
            && line.get("step") == Some(&at)
            && line.contains_key(EVAL_AVERAGE_EM)
    };
    Ok(!run.folder.read_metrics()?.iter().any(is_done))
}

/// Evaluates the student after a step of a phase on the test questions, and its KL from the
/// teacher there: a metrics line of its own.
pub(super) fn evaluate_step<B: TrainBackend>(
    run: &mut Run<'_, B>,
    (phase, step): (Phase, usize),
    player: (&Tokenizer, &dyn Retriever),
    student: &Decoder<Inner<B>>,
    teacher: Option<&Decoder<Inner<B>>>,
) -> Result<(), PipelineError> {
    let (setup, mut waiting) = run.playing();
    let (episodes, figures) = setup.play_test(player, student, &mut waiting)?;
    let (em, average_em) = (figures.all.em, figures.average_em);
    let mut measured = vec![(EVAL_EM, em), (EVAL_AVERAGE_EM, average_em)];
    if let Some(teacher) = teacher {
        let episodes: Vec<&Episode> =
            episodes.iter().filter(|episode| episode.is_trainable()).collect();
        let pass = Pass {
            micro_batch_tokens: setup.recipe.rl.micro_batch_tokens,
            temperature: setup.recipe.episode.temperature,
            device: &setup.device,
        };
        measured.push((EVAL_TEACHER_KL, mean_kl(student, teacher, &episodes, &pass)));
    }
    drop(waiting);
    run.metrics.append(phase, step, &measured)?;
    let average = if figures.datasets.len() > 1 {
        format!(", mean over data sets {average_em:.3}")
    } else {
        String::new()
    };
    run.say(&format!("{phase} {step}: exact match on the test questions {em:.3}{average}"));
    Ok(())
}

/// One model's figures: from the run directory if they are there and are of this model on these
/// questions.
fn figures<B: TrainBackend>(
    run: &mut Run<'_, B>,
    player: (&Tokenizer, &dyn Retriever),
    subject: Subject<'_, B>,
) -> Result<Figures, PipelineError> {
    let path = run.folder.evaluation_dir().join(format!("{}.json", subject.name));
    let (data, arcap) = (&run.setup.recipe.data, run.setup.recipe.eval.arcap);
    let is_of_this = |known: &SavedEvaluation| {
        (&known.of, &known.test, known.max_test) == (&subject.of, &data.test, data.max_test)
            && (known.figures.arcap.is_some() || !arcap)
    };
    let known = std::fs::read(&path).ok();
    let known = known.and_then(|text| serde_json::from_slice(&text).ok()).filter(is_of_this);
    let figures = match known {
        Some(known) => known.figures,
        None => played_figures(run, player, &subject)?,
    };
    let metrics = &[(EVAL_EM, figures.all.em), (EVAL_AVERAGE_EM, figures.average_em)];
    let Subject { number: step, total, .. } = subject;
    (run.observer)(Event::Step { phase: Phase::Eval, step, total, metrics });
    if run.stop.is_requested() { Err(PipelineError::Stopped) } else { Ok(figures) }
}

/// Plays a model and keeps its episodes; the figures too, where the retriever served them all.
fn played_figures<B: TrainBackend>(
    run: &mut Run<'_, B>,
    player: (&Tokenizer, &dyn Retriever),
    subject: &Subject<'_, B>,
) -> Result<Figures, PipelineError> {
    let &Subject { name, model, .. } = subject;
    let (dir, episodes_dir) = (run.folder.evaluation_dir(), run.folder.episodes_dir());
    let (setup, mut waiting) = run.playing();
    let (episodes, mut figures) = setup.play_test(player, model, &mut waiting)?;
    write_episodes(&episodes_dir.join(format!("eval-{name}.jsonl")), &episodes)?;
    if setup.recipe.eval.arcap {
        let (played, arcap) = setup.play_arcap(player, model, &episodes, &mut waiting)?;
        played.write(&episodes_dir, &format!("eval-{name}"))?;
        if subject.number == 1 && !arcap.left_out().is_empty() {
            (waiting.say)(&format!(
                "source referencing leaves out {}: no question there has annotated gold \
                 passages",
                arcap.left_out().join(", ")
            ));
        }
        figures.arcap = Some(arcap);
    }
    let n_episodes = figures.all.n_episodes;
    if figures.all.retriever_failed > 0.0 {
        let n = (figures.all.retriever_failed * n_episodes as f64).round();
        (waiting.say)(&format!(
            "{name}: {n} of {n_episodes} test episodes were lost to the retriever and count \
             nowhere; --resume plays the evaluation again"
        ));
        return Ok(figures);
    }
    let data = &setup.recipe.data;
    let (of, test) = (subject.of.clone(), data.test.clone());
    let evaluation = SavedEvaluation { of, test, max_test: data.max_test, figures };
    drop(waiting);
    let text = serde_json::to_vec_pretty(&evaluation).expect("figures are plain numbers");
    let path = dir.join(format!("{name}.json"));
    std::fs::create_dir_all(&dir)
        .and_then(|()| sync_folder(run.folder.path()))
        .map_err(|source| PipelineError::Io { path: dir, source })?;
    write_file(&path, text).map_err(|source| PipelineError::Io { path, source })?;
    Ok(evaluation.figures)
}
