//! The page: one file that loads nothing, rendered from the templates in `page/`.
//!
//! A passage, a question or a file's name may hold anything, `</script>` included. Templates escape
//! every text that is put into them; what scripts read goes through [`embedded`], and they put text
//! into the page as text (`textContent`), never as HTML.
use super::{
    Report,
    episodes::Episodes,
    facts::{COLUMNS, Column, EM, Model, Of, datasets},
};
use dgpo_core::settings::KlMode;
use minijinja::{Environment, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::LazyLock;

const STYLE: &str = include_str!("page/style.css");
/// Scripts of every page with charts.
const COMMON_SCRIPTS: [&str; 2] = [include_str!("page/common.js"), include_str!("page/charts.js")];
const MAIN: &str = include_str!("page/page.html");
const VIEWER: &str = include_str!("page/viewer.js");

/// The templates that every page builds on.
static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut templates = Environment::new();
    let blocks = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    templates.set_syntax(blocks.expect("the usual delimiters"));
    for (name, source) in [
        ("frame.html", include_str!("page/frame.html")),
        ("pieces.html", include_str!("page/pieces.html")),
    ] {
        templates.add_template(name, source).expect("a template of the program is one");
    }
    templates
});

/// A page but for what all pages have: style, theme switch, navigation, charts of the data's
/// `sections`.
#[derive(Debug)]
pub struct Page<'a> {
    /// Of the window.
    pub name: &'a str,
    /// Line over the title.
    pub kind: &'a str,
    pub title: &'a str,
    pub subtitle: &'a str,
    /// Sections by their ids; the first holds the results.
    pub nav: &'a [(&'a str, &'a str)],
    /// A template that extends `frame.html` by its block `main`.
    pub template: &'a str,
    /// Values that `template` reads.
    pub content: Value,
    /// Source of the page.
    pub source: &'a str,
    pub data: Value,
    /// Scripts of its own.
    pub scripts: &'a str,
}

impl Page<'_> {
    /// The whole file.
    pub fn to_html(&self) -> String {
        let Page { name, kind, title, subtitle, nav, source, .. } = self;
        let mut content = json!({
            "name": name, "kind": kind, "title": title, "subtitle": subtitle, "nav": nav,
            "source": source, "version": env!("CARGO_PKG_VERSION"), "style": STYLE,
            "data": embedded(&self.data), "script": COMMON_SCRIPTS.concat() + self.scripts,
        });
        if let (Some(content), Value::Object(own)) = (content.as_object_mut(), &self.content) {
            content.extend(own.clone());
        }
        let page = TEMPLATES
            .template_from_named_str("page.html", self.template)
            .and_then(|template| template.render(Serde(content)));
        page.unwrap_or_else(|error| panic!("a template of the program: {error:#}"))
    }
}

/// A run's page.
pub fn page(report: &Report) -> String {
    let facts = &report.facts;
    let figure = |title| (title, true);
    let text = |title| (title, false);
    let names = datasets(&facts.models);
    let by_dataset: Vec<_> = [text("model")]
        .into_iter()
        .chain(names.iter().copied().map(figure))
        .chain([figure("mean over data sets"), text("weights")])
        .collect();
    let all_figures: Vec<_> = [text("model"), text("questions of")]
        .into_iter()
        .chain(COLUMNS.iter().map(|column| figure(column.title)))
        .collect();
    let models: Vec<ShownModel> =
        facts.models.iter().map(|model| ShownModel::of(model, &names)).collect();
    Page {
        name: &facts.name,
        kind: "dgpo run",
        title: &facts.name,
        subtitle: &facts.subtitle,
        nav: &[
            ("results", "Results"),
            ("episodes", title_of_episodes(report)),
            ("curves", "Curves"),
            ("run", "What was run"),
        ],
        template: MAIN,
        content: json!({
            "notes": [
                ("What the guards saw", &report.alarms),
                ("Left out of this report", &report.warnings),
            ],
            "models": models,
            "by_dataset": by_dataset,
            "all_figures": all_figures,
            "episodes_title": title_of_episodes(report),
            "shown": what_is_shown(&report.episodes),
            "reference": facts.reference,
            "settings": facts.settings,
            "provenance": facts.provenance,
            "changed": facts.changed,
            "recipe": facts.recipe,
            "inputs": facts.inputs,
        }),
        source: "the files of the run",
        data: json!({
            "sections": report.sections,
            "episodes": report.episodes,
            "reference": facts.reference,
            "kl": facts.kl,
        }),
        scripts: VIEWER,
    }
    .to_html()
}

/// An evaluated model as the template reads it.
#[derive(Serialize)]
struct ShownModel<'m> {
    name: &'m str,
    weights: &'m str,
    average: Cell,
    /// EM over data sets as a part of 100.
    percent: String,
    /// EM on each data set of all models.
    datasets: Vec<Cell>,
    /// (questions of, every figure)
    figures: Vec<(&'m str, Vec<Cell>)>,
}

/// A figure, and its interval where it has one.
#[derive(Serialize)]
struct Cell {
    text: String,
    interval: Option<String>,
}

impl<'m> ShownModel<'m> {
    fn of(model: &'m Model, names: &[&str]) -> Self {
        let figures = &model.figures;
        let em = |em: f64, of: Of<'_>| Cell {
            text: format!("{em:.3}"),
            interval: model.em_interval(of),
        };
        let nothing = || Cell { text: "–".to_owned(), interval: None };
        let dataset = |name: &&str| {
            let stats = figures.datasets.get(*name);
            stats.map_or_else(nothing, |stats| em(stats.em, Of::Dataset(name)))
        };
        let sets = figures.datasets.iter().map(|(name, stats)| (&**name, Of::Dataset(name), stats));
        let row = |(name, of, stats)| {
            let cell = |column: &Column| Cell {
                text: (column.value)(stats),
                interval: (column.title == EM).then(|| model.em_interval(of)).flatten(),
            };
            (name, COLUMNS.iter().map(cell).collect())
        };
        Self {
            name: &model.name,
            weights: &model.weights,
            average: em(figures.average_em, Of::Average),
            percent: format!("{:.1}", 100.0 * figures.average_em.clamp(0.0, 1.0)),
            datasets: names.iter().map(dataset).collect(),
            figures: [("all", Of::All, &figures.all)].into_iter().chain(sets).map(row).collect(),
        }
    }
}

/// Title of the viewer: where the penalty lies, in a run that has one.
fn title_of_episodes(report: &Report) -> &'static str {
    match report.facts.kl {
        Some(KlMode::Selective | KlMode::Uniform) => "Which tokens the KL acts on",
        Some(KlMode::None) | None => "Episodes",
    }
}

/// A value as JSON inside a `<script>` element: no `<` is left that could end the element or open a
/// comment in it.
fn embedded(value: &impl Serialize) -> String {
    // `<` occurs in JSON inside strings alone, where \u003c is the same character.
    serde_json::to_string(value)
        .expect("keys are text and values are finite or null")
        .replace('<', "\\u003c")
}

/// Four significant digits.
pub fn number(x: f64) -> String {
    let size = x.abs();
    match size {
        _ if x == 0.0 => "0".to_owned(),
        1e5.. => format!("{x:.3e}"),
        1000.0.. => format!("{x:.0}"),
        100.0.. => format!("{x:.1}"),
        10.0.. => format!("{x:.2}"),
        1.0.. => format!("{x:.3}"),
        0.001.. => format!("{x:.4}"),
        _ => format!("{x:.2e}"),
    }
}

fn what_is_shown(episodes: &Episodes) -> String {
    let n_all: usize = episodes.sets.iter().map(|set| set.n_all).sum();
    let (n_shown, n_files) = (episodes.n_shown(), episodes.sets.len());
    if n_all == 0 {
        return "No episodes were saved (yet).".to_owned();
    }
    if n_shown == n_all && episodes.n_files_left_out == 0 {
        return format!(
            "All {} of {}, token by token.",
            counted(n_all, "episode"),
            counted(n_files, "file")
        );
    }
    let files = match episodes.n_files_left_out {
        0 => counted(n_files, "file"),
        n => format!("{} spread over the run, {n} more being left out", counted(n_files, "file")),
    };
    format!(
        "{n_shown} of {} of {files}, token by token: from each file first the longest, those with \
         the most searches and those with invalid actions, then wrong and correct ones in turn, as \
         far as its share of this page reaches.",
        counted(n_all, "episode")
    )
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
