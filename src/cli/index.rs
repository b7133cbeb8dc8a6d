//! `dgpo index build|search|info`: passages made searchable, on their own.
use super::{
    Context, Ended, UsageError,
    args::{DeviceArgs, at_least_one, stop_on_interrupt},
    counter::Counter,
    output,
};
use clap::Subcommand;
use dgpo_core::env::search::{Hit, Retriever, SearchError};
use dgpo_models::TrainBackend;
use dgpo_run::{
    config::{ConfigError, Recipe, RetrieverKind, Search, check, load},
    data::{corpus::Corpus, questions::read_questions},
    devices::{DeviceJob, with_device},
    eval::retrieval::{HitRatios, annotated_ids, hit_ratios, keep_annotated},
    hub,
    pipeline::{
        cut_share::{CutShare, cut_share_in},
        preflight::{Missing, PlannedWork, missing},
    },
    retriever::{
        OnProgress, RetrieverError,
        build::BuildReport,
        build_index,
        equal::EqualVectors,
        hnsw::HnswParams,
        index::IndexMeta,
        measure::{FoundPassages, IndexInfo, IndexRequest, Queries, ids_in_corpus, index_info},
        open_encoder,
    },
    units::duration,
};
use serde::Serialize;
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

/// Build, search or measure an index of passages.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Encode passages and build an index folder; an interrupted build continues.
    ///
    /// Example: dgpo index build --corpus wiki.jsonl.gz --out indexes/wiki
    Build(BuildArgs),
    /// Show the passages an index finds for queries, nearest first.
    ///
    /// Of equally near ones the first of the corpus comes first. Through a graph that holds for the
    /// candidates that it brings, eight more than are shown; `index info` counts equal vectors.
    ///
    /// Example: dgpo index search indexes/wiki "who wrote Middlemarch"
    Search(SearchArgs),
    /// Describe an index and measure its speed and recall.
    ///
    /// Example: dgpo index info indexes/wiki --questions nq.jsonl
    Info(InfoArgs),
}

#[derive(clap::Args, Debug)]
struct BuildArgs {
    /// Folder to build in.
    #[arg(long, value_parser = super::args::path, value_name = "DIR")]
    out: PathBuf,
    /// Passages: JSON Lines with id and contents, plain or gzip [default: data.corpus of the
    /// recipe].
    #[arg(long, value_name = "FILE")]
    corpus: Option<String>,
    /// Encoder: folder, owner/name or builtin:NAME [default: retriever.encoder of the recipe].
    #[arg(long, value_name = "MODEL")]
    encoder: Option<String>,
    /// Recipe whose [retriever] settings are used: a file, or the name of a built-in one.
    #[arg(long, value_name = "FILE|NAME", default_value = "base")]
    config: String,
    /// Change one setting of the recipe; may be repeated. Example: --set retriever.hnsw_m=48
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Replace an index of another encoder or corpus.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The index, and what to use instead of what it remembers.
#[derive(clap::Args, Debug)]
struct IndexArgs {
    /// Folder of the index.
    #[arg(value_parser = super::args::path)]
    dir: PathBuf,
    /// Passages [default: the file the index was built from].
    #[arg(long, value_name = "FILE")]
    corpus: Option<String>,
    /// Encoder [default: the one the index was built with].
    #[arg(long, value_name = "MODEL")]
    encoder: Option<String>,
    /// How to search: exact or hnsw [default: hnsw where the index has a graph].
    #[arg(long, value_name = "KIND")]
    search: Option<Search>,
    /// HNSW: candidates looked at [default: the value the index was built with].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    ef_search: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON instead.
    #[arg(long)]
    json: bool,
}

impl IndexArgs {
    /// # Errors
    /// If the folder is not there or holds no index: that is for whoever typed it to change.
    fn request(&self) -> anyhow::Result<IndexRequest<'_>> {
        let Self { dir, corpus, encoder, search, ef_search, .. } = self;
        // Other faults of the index are told where it is opened.
        if let Err(none @ (RetrieverError::NoIndex { .. } | RetrieverError::NotAFolder { .. })) =
            IndexMeta::read(dir)
        {
            return Err(UsageError(none.to_string()).into());
        }
        let (corpus, encoder) = (corpus.as_deref(), encoder.as_deref());
        Ok(IndexRequest { dir, corpus, encoder, search: *search, ef_search: *ef_search })
    }
}

#[derive(clap::Args, Debug)]
struct SearchArgs {
    #[command(flatten)]
    index: IndexArgs,
    /// Queries to look for; several are searched together.
    #[arg(required = true)]
    queries: Vec<String>,
    /// Passages a query.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    top_k: usize,
}

#[derive(clap::Args, Debug)]
struct InfoArgs {
    #[command(flatten)]
    index: IndexArgs,
    /// Question files to measure with; also reports how often exact search, the graph and BM25 find
    /// the answer [default: first sentences of sampled passages].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    questions: Vec<String>,
    /// Only questions whose gold passages are annotated and lie in the corpus.
    #[arg(long, requires = "questions")]
    annotated: bool,
    /// Queries: sampled passages, or questions of each file at most [default: 200 passages, all
    /// questions].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    n_queries: Option<usize>,
    /// Passages a question, for the hit ratios.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10))]
    top_k: u16,
    /// Recipe with whose tokenizer, top_k and episode.max_obs_length is measured how many
    /// observations would be cut: a file, or the name of a built-in one.
    #[arg(long, value_name = "FILE|NAME")]
    config: Option<String>,
    /// Seed of the sampled passages.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Passages whose first sentences an index is measured with, where nothing else is said.
const N_SAMPLED: usize = 200;

pub(super) fn run(args: Args, context: Context) -> anyhow::Result<Ended> {
    match args.command {
        Command::Build(args) => build(&args, context),
        Command::Search(args) => search(&args),
        Command::Info(args) => info(&args),
    }
}

struct BuildJob<'a> {
    recipe: &'a Recipe,
    args: &'a BuildArgs,
    progress: &'a mut OnProgress<'a>,
}
impl DeviceJob for BuildJob<'_> {
    type Output = Result<BuildReport, RetrieverError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        let Self { recipe: Recipe { data, retriever, .. }, args, progress } = self;
        let corpus = Corpus::open(&hub::resolve(&data.corpus)?)?;
        let encoder = open_encoder::<B::InnerBackend>(retriever, device)?;
        let corpus = (data.corpus.as_str(), &corpus);
        build_index(retriever, &encoder, corpus, &args.out, args.force, progress)
    }
}

fn build(args: &BuildArgs, context: Context) -> anyhow::Result<Ended> {
    let mut recipe = load::load_part(&args.config, &args.overrides)?.recipe;
    recipe.retriever.kind = RetrieverKind::Dense;
    if let Some(corpus) = &args.corpus {
        recipe.data.corpus.clone_from(corpus);
    }
    if let Some(encoder) = &args.encoder {
        recipe.retriever.encoder.clone_from(encoder);
    }
    let problems = check::check_search(&recipe).errors;
    if !problems.is_empty() {
        return Err(ConfigError::Rules(problems).into());
    }
    Missing::none(missing(PlannedWork::Index(&args.out), &recipe, args.device.device))?;
    let stop =
        stop_on_interrupt("stopping when the block of passages under way is encoded and saved")?;
    let mut counter = Counter::new(context.is_quiet);
    let mut progress = |progress: dgpo_run::retriever::StageProgress| {
        counter.tick(progress.stage, progress.done, progress.total);
        if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let job = BuildJob { recipe: &recipe, args, progress: &mut progress };
    let built = with_device(args.device.device, job)?;
    drop(counter);
    match built {
        Err(error @ RetrieverError::Interrupted { .. }) => {
            output::insist(&error.to_string());
            Ok(Ended::Interrupted)
        }
        built => show(args.json, &built?, |report| describe_build(&args.out, report)),
    }
}

/// Prints a result as JSON, or described.
fn show<T: Serialize>(
    json: bool,
    result: &T,
    describe: impl FnOnce(&T) -> String,
) -> anyhow::Result<Ended> {
    if json {
        output::json(result)?
    } else {
        output::data(&describe(result))?
    }
    Ok(Ended::Done)
}

fn describe_build(out: &Path, report: &BuildReport) -> String {
    let count = |n: usize| output::grouped(n as u64);
    let mut text = format!(
        "{}: {} passages, {} numbers each\n",
        out.display(),
        count(report.n_passages),
        report.dim
    );
    if report.n_reused > 0 {
        text += &format!("{} embeddings were there already\n", count(report.n_reused));
    }
    if report.encode_s > 0.0 {
        text += &format!(
            "encoded in {} ({:.0} passages/s)\n",
            duration(report.encode_s),
            report.passages_per_s
        );
    }
    if report.graph_s > 0.0 {
        text += &format!("graph built in {}\n", duration(report.graph_s));
    }
    text
}

struct SearchJob<'a>(IndexRequest<'a>, &'a [String], usize);
impl DeviceJob for SearchJob<'_> {
    type Output = Result<Vec<Result<Vec<Hit>, SearchError>>, RetrieverError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        Ok(self.0.open::<B::InnerBackend>(device)?.search(self.1, self.2))
    }
}

fn search(args: &SearchArgs) -> anyhow::Result<Ended> {
    if args.queries.iter().any(|query| query.trim().is_empty()) {
        return Err(UsageError(
            "a query is blank; hint: write what to look for in quotation marks".to_owned(),
        )
        .into());
    }
    let job = SearchJob(args.index.request()?, &args.queries, args.top_k);
    let found = with_device(args.index.device.device, job)??;
    let mut text = String::new();
    let mut results = Vec::new();
    for (query, hits) in args.queries.iter().zip(found) {
        let hits = hits?;
        text += &format!("{query}\n");
        if hits.is_empty() {
            text += "  nothing found\n";
        }
        for (rank, hit) in hits.iter().enumerate() {
            text += &format!(
                "  {}. {:.3}  {}  {}\n     {}\n",
                rank + 1,
                hit.score,
                hit.passage.id,
                hit.passage.title(),
                hit.passage.text()
            );
        }
        let hit = |hit: &Hit| json!({"id": hit.passage.id, "contents": hit.passage.contents, "score": hit.score});
        results.push(json!({"query": query, "hits": hits.iter().map(hit).collect::<Vec<_>>()}));
    }
    show(args.index.json, &results, |_| text)
}

struct InfoJob<'a>(IndexRequest<'a>, Queries<'a>);
impl DeviceJob for InfoJob<'_> {
    type Output = Result<(IndexInfo, Vec<FoundPassages>), RetrieverError>;
    fn run<B: TrainBackend>(self, device: &B::Device) -> Self::Output {
        index_info::<B::InnerBackend>(self.0, self.1, device)
    }
}

/// With `--json`: what `IndexInfo` holds, and the hit ratios where there are questions.
#[derive(Serialize)]
struct InfoReport {
    #[serde(flatten)]
    info: IndexInfo,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hit_ratios: Vec<HitRatios>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observations: Option<CutShare>,
}

fn info(args: &InfoArgs) -> anyhow::Result<Ended> {
    let request = args.index.request()?;
    let mut questions = Vec::new();
    for file in &args.questions {
        let mut of_file = read_questions(&hub::resolve(file)?)?;
        let in_corpus = ids_in_corpus(request, &annotated_ids(&of_file))?;
        keep_annotated(&mut of_file, &in_corpus);
        of_file.retain(|question| !args.annotated || !question.supporting.is_empty());
        if of_file.is_empty() {
            anyhow::bail!(
                "{file}: no question has annotated gold passages in this corpus; hint: leave out \
                 --annotated"
            );
        }
        of_file.truncate(args.n_queries.unwrap_or(usize::MAX));
        questions.append(&mut of_file);
    }
    let texts: Vec<String> = questions.iter().map(|question| question.question.clone()).collect();
    let queries = match texts.as_slice() {
        [] => Queries::Sampled { n: args.n_queries.unwrap_or(N_SAMPLED), seed: args.seed },
        texts => Queries::Questions { texts, top_k: args.top_k.into() },
    };
    let (info, found) = with_device(args.index.device.device, InfoJob(request, queries))??;
    let observations = match &args.config {
        Some(config) => cut_share_in(&load::load_part(config, &[])?.recipe, &info.corpus, 0)?,
        None => None,
    };
    let hit_ratios = hit_ratios(&questions, &found);
    show(args.index.json, &InfoReport { info, hit_ratios, observations }, |report| {
        describe(&report.info, report.observations.as_ref()) + &describe_hits(&report.hit_ratios)
    })
}

fn describe_hits(ratios: &[HitRatios]) -> String {
    let Some(HitRatios { top_k, .. }) = ratios.first() else { return String::new() };
    let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.3}"));
    let mut text = format!(
        "\n| data set | questions | search | answer@{top_k} | normalised | annotated | a gold \
         passage@{top_k} | all@{top_k} |\n| --- | --: | --- | --: | --: | --: | --: | --: |\n"
    );
    for row in ratios {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.dataset,
            row.n_answers,
            row.search,
            share(row.answer),
            share(row.answer_normalised),
            row.n_annotated,
            share(row.any_gold_passage),
            share(row.all_gold_passages),
        );
    }
    text
}

fn describe(info: &IndexInfo, observations: Option<&CutShare>) -> String {
    use output::bytes;
    let count = |n: usize| output::grouped(n as u64);
    let rate = |per_s: f64| format!("{} queries/s", output::grouped(per_s.round() as u64));
    let share = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.3}"));
    let at_3_and_10 = |at_3, at_10| format!("@3 {}, @10 {}", share(at_3), share(at_10));
    let IndexInfo { measured, corpus, encoder, dim, max_tokens, head, .. } = info;
    let mut lines = vec![
        ("index", info.dir.clone()),
        ("passages", format!("{} from {corpus}", count(info.n_passages))),
        ("encoder", format!("{encoder} ({dim} numbers, {max_tokens} tokens, {head})")),
        (
            "vectors",
            format!("{}, encoded in {}", bytes(info.vectors_bytes), duration(info.encode_s)),
        ),
    ];
    match &info.graph {
        None => lines.push(("graph", "none: searched exactly".to_owned())),
        Some(graph) => {
            let HnswParams { m, ef_construction, ef_search } = graph.params;
            let built = duration(graph.build_s);
            lines.push(("graph", format!("{}, built in {built}", bytes(info.graph_bytes))));
            lines.push((
                "",
                format!("M {m}, ef_construction {ef_construction}, ef_search {ef_search}"),
            ));
        }
    }
    lines.extend([
        ("measured with", format!("{} {}", measured.n_queries, measured.query_source)),
        ("encoding", rate(measured.encode_queries_per_s)),
        ("exact search", rate(measured.exact_queries_per_s)),
    ]);
    lines.extend(measured.graph_queries_per_s.map(|per_s| ("graph search", rate(per_s))));
    lines.push(("recall against exact", at_3_and_10(measured.recall_at_3, measured.recall_at_10)));
    let EqualVectors { n_passages, n_groups, largest, never_among_3, never_among_10 } =
        info.equal_vectors;
    if n_groups == 0 {
        lines.push(("equal vectors", "none".to_owned()));
    } else {
        let by_id = at_3_and_10(measured.recall_by_id_at_3, measured.recall_by_id_at_10);
        let (shared, groups, most) = (count(n_passages), count(n_groups), count(largest));
        let (of_3, of_10) = (count(never_among_3), count(never_among_10));
        lines.extend([
            ("- by passage id", by_id),
            ("equal vectors", format!("{shared} passages share {groups}, {most} at most one")),
            (
                "never found",
                format!("{of_3} of them among 3, {of_10} among 10: as many equal ones come first"),
            ),
        ]);
        // What leads from a copy to something else is at most the links that its other copies leave
        // free.
        if let Some(n_links) = info.graph.as_ref().map(|graph| 2 * graph.params.m)
            && largest > n_links
        {
            let lost = format!(
                "a point has {n_links} links at most, so a graph can lose what lies behind \
                 {largest} equal ones"
            );
            let how_much = "(the recall above says how much; --search exact loses nothing)";
            lines.extend([("", lost), ("", how_much.to_owned())]);
        }
    }
    let unknown = "--config RECIPE says how many are cut, with its tokenizer and lengths";
    lines.push(("observations", observations.map_or(unknown.to_owned(), ToString::to_string)));
    lines.into_iter().map(|(name, value)| format!("{name:<20} {value}\n")).collect()
}
