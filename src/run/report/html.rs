//! The page: one file that loads nothing, with everything that comes from data escaped.
//!
//! Text goes into the page in two ways, and each has one door: [`escaped`] for HTML, [`embedded`]
//! for the JSON that the scripts read. A passage, a question or a file's name may hold anything,
//! `</script>` included; the scripts put text into the page as text (`textContent`), never as HTML.
use super::{
    Report,
    episodes::Episodes,
    facts::{COLUMNS, Column, EM, Model, Of, datasets},
};
use dgpo_core::settings::KlMode;
use serde::Serialize;
use serde_json::{Value, json};

const FRAME: &str = include_str!("page/frame.html");
const STYLE: &str = include_str!("page/style.css");
/// What every page with charts runs.
const COMMON_SCRIPTS: [&str; 2] = [include_str!("page/common.js"), include_str!("page/charts.js")];
const MAIN: &str = include_str!("page/page.html");
const VIEWER: &str = include_str!("page/viewer.js");

/// A page but for what all pages have: style, theme switch, navigation, charts of the data's
/// `sections`. Text is plain, `main` and `scripts` are code.
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
    pub main: String,
    /// What the page was made from.
    pub source: &'a str,
    pub data: Value,
    /// Scripts of its own.
    pub scripts: &'a str,
}

impl Page<'_> {
    /// The whole file.
    pub fn to_html(&self) -> String {
        let link = |(id, name): &(&str, &str)| format!("<a href=\"#{id}\">{}</a>", escaped(name));
        filled(FRAME, |slot| match slot {
            "name" => escaped(self.name),
            "style" => STYLE.to_owned(),
            "first" => self.nav.first().map_or(String::new(), |(id, _)| (*id).to_owned()),
            "kind" => escaped(self.kind),
            "title" => escaped(self.title),
            "subtitle" => escaped(self.subtitle),
            "nav" => self.nav.iter().map(link).collect(),
            "main" => self.main.clone(),
            "version" => escaped(env!("CARGO_PKG_VERSION")),
            "source" => escaped(self.source),
            "data" => embedded(&self.data),
            "script" => COMMON_SCRIPTS.concat() + self.scripts,
            _ => unreachable!("the frame has a slot {slot}, which nothing fills"),
        })
    }
}

/// A run's page.
pub fn page(report: &Report) -> String {
    let facts = &report.facts;
    let main = filled(MAIN, |slot| match slot {
        "notes" => {
            note("What the guards saw", &report.alarms)
                + &note("Left out of this report", &report.warnings)
        }
        "results" => results(&facts.models),
        "episodes" => escaped(title_of_episodes(report)),
        "shown" => escaped(&what_is_shown(&report.episodes)),
        "run" => what_was_run(report),
        "reference" => escaped(facts.reference),
        _ => unreachable!("the page has a slot {slot}, which nothing fills"),
    });
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
        main,
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

/// What the viewer opens with: where the penalty lies, in a run that has one.
fn title_of_episodes(report: &Report) -> &'static str {
    match report.facts.kl {
        Some(KlMode::Selective | KlMode::Uniform) => "Which tokens the KL acts on",
        Some(KlMode::None) | None => "Episodes",
    }
}

/// The template with its `{{slots}}` filled. What is filled in is not searched for slots again.
pub fn filled(template: &str, slot: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut page = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("a slot of the template is closed");
        page += &slot(name);
        page += rest;
    }
    page
}

/// Text as HTML, between tags and inside quoted attributes.
pub fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

/// A value as JSON inside a `<script>` element: no `<` is left that could end the element or open a
/// comment in it.
pub fn embedded(value: &impl Serialize) -> String {
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

fn note(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>", escaped(line))).collect();
    format!(
        "<section class=\"note\" aria-label=\"{0}\"><strong>{0}</strong><ul>{items}</ul></section>",
        escaped(title)
    )
}

fn results(models: &[Model]) -> String {
    if models.is_empty() {
        return "<p class=\"note\">No model of this run was evaluated (yet).</p>".to_owned();
    }
    let card = |model: &Model| {
        let em = model.figures.average_em;
        let sure = model
            .em_interval(Of::Average)
            .map_or(String::new(), |sure| format!(" <span class=\"sure\">{sure}</span>"));
        format!(
            "<li class=\"card\"><span class=\"what\">{}</span><strong>{em:.3}</strong>{sure}<span \
             class=\"meter\" style=\"--share:{:.1}%\"></span></li>",
            escaped(&model.name),
            100.0 * em.clamp(0.0, 1.0)
        )
    };
    let cards: String = models.iter().map(card).collect();
    let mut html = format!(
        "<p class=\"muted\">Exact match on the test questions, unweighted mean over data sets; in \
         brackets 95 % intervals over the questions.</p><ul class=\"cards\">{cards}</ul>"
    );
    html += "<h3>Exact match by data set</h3>";
    html += &exact_match(models);
    // Closed, so that what the KL does is on the first screens.
    html + "<details><summary>All figures</summary>" + &all_figures(models) + "</details>"
}

/// EM of every model on every data set.
fn exact_match(models: &[Model]) -> String {
    let names = datasets(models);
    let figures = names.iter().copied().chain(["mean over data sets"]).map(PageHead::Figure);
    let heads =
        [PageHead::Text("model")].into_iter().chain(figures).chain([PageHead::Text("weights")]);
    let row = |model: &Model| {
        let em = |em: Option<f64>, of: Of<'_>| {
            em.map_or("<td>–</td>".to_owned(), |em| {
                format!("<td>{em:.3}{}</td>", sure(model, of))
            })
        };
        let figures = &model.figures;
        let cells: String = names
            .iter()
            .map(|name| em(figures.datasets.get(*name).map(|stats| stats.em), Of::Dataset(name)))
            .collect();
        let average = em(Some(figures.average_em), Of::Average);
        format!(
            "<th scope=\"row\">{}</th>{cells}{average}<td class=\"text\">{}</td>",
            escaped(&model.name),
            escaped(&model.weights)
        )
    };
    table(heads, models.iter().map(row))
}

fn all_figures(models: &[Model]) -> String {
    let figures = COLUMNS.iter().map(|column| PageHead::Figure(column.title));
    let heads = ["model", "questions of"].map(PageHead::Text).into_iter().chain(figures);
    let rows = models.iter().flat_map(|model| {
        let of_sets = model
            .figures
            .datasets
            .iter()
            .map(|(name, stats)| (name.as_str(), Of::Dataset(name), stats));
        [("all", Of::All, &model.figures.all)].into_iter().chain(of_sets).map(
            move |(set, of, stats)| {
                let cell = |column: &Column| {
                    let sure = if column.title == EM { sure(model, of) } else { String::new() };
                    format!("<td>{}{sure}</td>", escaped(&(column.value)(stats)))
                };
                let cells: String = COLUMNS.iter().map(cell).collect();
                format!(
                    "<th scope=\"row\">{}</th><td class=\"text\">{}</td>{cells}",
                    escaped(&model.name),
                    escaped(set)
                )
            },
        )
    });
    table(heads, rows)
}

/// The interval beside an EM in a cell.
fn sure(model: &Model, of: Of<'_>) -> String {
    model
        .em_interval(of)
        .map_or(String::new(), |sure| format!(" <span class=\"sure\">{sure}</span>"))
}

/// The head of a column, aligned as its cells are.
enum PageHead<'h> {
    Text(&'h str),
    Figure(&'h str),
}

/// A table that scrolls by itself where it is wider than the screen; rows are cells already.
fn table<'h>(
    heads: impl Iterator<Item = PageHead<'h>>,
    rows: impl Iterator<Item = String>,
) -> String {
    let head = |head| match head {
        PageHead::Text(text) => format!("<th scope=\"col\" class=\"text\">{}</th>", escaped(text)),
        PageHead::Figure(text) => format!("<th scope=\"col\">{}</th>", escaped(text)),
    };
    let heads: String = heads.map(head).collect();
    let rows: String = rows.map(|row| format!("<tr>{row}</tr>")).collect();
    format!(
        "<div class=\"scroll\" \
         tabindex=\"0\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
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

fn what_was_run(report: &Report) -> String {
    let facts = &report.facts;
    let pairs = |pairs: &[(String, String)]| {
        let items: String = pairs
            .iter()
            .map(|(what, value)| {
                format!("<div><dt>{}</dt><dd>{}</dd></div>", escaped(what), escaped(value))
            })
            .collect();
        format!("<dl class=\"facts\">{items}</dl>")
    };
    let mut html =
        pairs(&facts.settings) + "<h3>Program and machine</h3>" + &pairs(&facts.provenance);
    if !facts.changed.is_empty() {
        let rows = facts.changed.iter().map(|[key, default, value]| {
            format!(
                "<th scope=\"row\">{}</th><td class=\"text\">{}</td><td class=\"text\">{}</td>",
                escaped(key),
                escaped(default),
                escaped(value)
            )
        });
        let table = table(["key", "default", "this run"].map(PageHead::Text).into_iter(), rows);
        html += &format!(
            "<details><summary>Settings that differ from the defaults \
             ({})</summary>{table}</details>",
            facts.changed.len()
        );
    }
    if !facts.recipe.is_empty() {
        html += &format!(
            "<details><summary>The whole recipe</summary><pre tabindex=\"0\">{}</pre></details>",
            escaped(&facts.recipe)
        );
    }
    if !facts.inputs.is_empty() {
        let rows = facts.inputs.iter().map(|(name, print)| {
            format!(
                "<th scope=\"row\">{}</th><td class=\"text\"><code>{}</code></td>",
                escaped(name),
                escaped(print)
            )
        });
        let table = table(["file", "fingerprint"].map(PageHead::Text).into_iter(), rows);
        html += &format!(
            "<details><summary>Input files ({})</summary>{table}</details>",
            facts.inputs.len()
        );
    }
    html
}

#[cfg(test)]
mod tests;
