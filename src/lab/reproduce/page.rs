//! reproduction.md and reproduction.html: the same tables, figures and verdicts, from the results
//! of the seeds alone.
//!
//! Seeds are put together only where every row was made in the same way: results made with other
//! settings or recipes are left out and named.
use super::{
    ReproduceError, figures, forest,
    orderings::{self, Verdict, verdict},
    results::{self, SeedResults},
    tables::{self, Table, TableColumn},
};
use dgpo_models::files::write_file;
use dgpo_run::report::{
    curves::Section,
    html::{self, number},
    markdown::spark,
    table::{cell, table},
};
use serde::Serialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const MAIN: &str = include_str!("page.html");
const TITLE: &str = "The paper’s experiment at tiny scale";

/// Folder of the results inside the folder of the pages.
pub const RESULTS_DIR: &str = "reproduction";

/// The pages that were written.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    pub markdown: PathBuf,
    pub html: PathBuf,
    pub seeds: Vec<u64>,
}

/// Reads every seed's results in `out`/reproduction and writes `out`/reproduction.md and .html.
/// # Errors
/// If there are no results, one is damaged, or a page cannot be written.
pub fn write(out: &Path) -> Result<Written, ReproduceError> {
    let folder = out.join(RESULTS_DIR);
    let all = results::read_all(&folder)?;
    if all.is_empty() {
        return Err(ReproduceError::NoResults(folder));
    }
    let page = Page::of(&all);
    let [markdown, html] = ["reproduction.md", "reproduction.html"].map(|name| out.join(name));
    for (path, text) in [(&markdown, page.markdown()), (&html, page.html())] {
        write_file(path, text).map_err(|source| ReproduceError::Io {
            verb: "write",
            path: path.clone(),
            source,
        })?;
    }
    Ok(Written { markdown, html, seeds: page.seeds })
}

/// Content of both forms.
struct Page {
    seeds: Vec<u64>,
    subtitle: String,
    /// Paragraphs, and the orderings of each verdict.
    short: Vec<String>,
    verdicts: Vec<(Verdict, Vec<String>)>,
    tables: Vec<Table>,
    figures: Vec<Section>,
    orderings: Table,
    /// The same as a picture, in HTML.
    forest: String,
    /// (what, value)
    made: Vec<(String, String)>,
    commands: Vec<String>,
}

impl Page {
    fn of(all: &[SeedResults]) -> Self {
        let chosen = alike(all);
        let seeds: Vec<u64> = chosen.iter().map(|results| results.seed).collect();
        let settings = chosen.first().map_or(Vec::new(), |results| results.settings.clone());
        let judged = forest::judged(orderings::all(), &chosen);
        let verdicts = Verdict::ALL.map(|wanted| {
            let found = judged.iter().filter(|(_, found)| verdict(found.as_ref()) == wanted);
            (wanted, found.map(|(ordering, _)| ordering.text.clone()).collect::<Vec<_>>())
        });
        let names: Vec<String> = seeds.iter().map(u64::to_string).collect();
        let mut short = vec![format!(
            "The rows of the paper’s tables, trained from the same small models on the built-in \
             tiny world: an invented encyclopaedia of 660 passages, questions of one and two hops, \
             minutes instead of days. The paper trains each model once; here a seed is another \
             training from the same models, on the same questions. The world was arranged so that \
             the paper’s orderings might show: the teacher’s training and the weight of the KL \
             were chosen by runs of seed 0 on development questions, which are neither trained on \
             nor asked here; sizes and lengths come from an earlier world of this kind, whose \
             choices were made on these test questions (docs/benchmarks.md says which runs). Of {} \
             orderings taken from the paper’s tables 2, 3, 5 and 6, {} hold here, {} are within \
             noise, {} are reversed, and {} were not measured.",
            judged.len(),
            verdicts[0].1.len(),
            verdicts[1].1.len(),
            verdicts[2].1.len(),
            verdicts[3].1.len()
        )];
        short.extend(tables::standing(&chosen));
        if tables::alarms(&chosen).is_none() {
            short.push(
                "The paper’s Figures 4 and 6 show runs that collapse: PPO and GRPO from the base \
                 student, DGPO without KD or with GRPO, GKD after KD. Here the guards saw none, so \
                 that part of its findings is not reproduced."
                    .to_owned(),
            );
        }
        if !settings.is_empty() {
            let set = settings.join(", ");
            short.push(format!(
                "These runs were made with settings of their own ({set}): they show that \
                 everything works, not what it is worth."
            ));
        }
        let failed = chosen
            .iter()
            .flat_map(|results| results.failed().map(|(row, why)| (results.seed, row, why)));
        short.extend(failed.map(|(seed, row, why)| format!("Failed: {row} of seed {seed}: {why}")));
        let left_out = all.iter().filter(|results| !seeds.contains(&results.seed));
        short.extend(left_out.map(|results| {
            format!(
                "Left out: seed {}, whose rows were made with other settings or recipes than those \
                 of the seeds shown.",
                results.seed
            )
        }));
        Self {
            subtitle: format!("{} · mean ± standard deviation over seeds", counted_seeds(&names)),
            short,
            verdicts: verdicts.into(),
            tables: tables::all(&chosen),
            figures: figures::all(&chosen)
                .into_iter()
                .filter(|section| !section.charts.is_empty())
                .collect(),
            orderings: tables::of_orderings(&judged),
            forest: forest::html(&judged),
            made: made(&chosen),
            commands: commands(&seeds, &settings),
            seeds,
        }
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {TITLE}\n\n{}.\n\n## In short\n\n", self.subtitle);
        self.short.iter().for_each(|paragraph| text += &format!("{}\n\n", cell(paragraph)));
        for (verdict, orderings) in
            self.verdicts.iter().filter(|(_, orderings)| !orderings.is_empty())
        {
            text += &format!("- {}: {}\n", verdict.as_str(), cell(&orderings.join("; ")));
        }
        text += "\nColumns that begin with “paper” are the paper’s numbers, all others were \
                 measured here. Compare rows, not columns: the tiny world is another task.\n";
        for each in &self.tables {
            text += &format!("\n## {}\n\n{}\n\n{}", each.title, each.note, markdown_table(each));
        }
        for section in &self.figures {
            let note = "Means over the seeds; each course from its smallest to its largest value. \
                        reproduction.html draws them.";
            text += &format!("\n## {}\n\n{note}\n\n{}", section.title, courses(section));
        }
        text += &format!(
            "\n## {}\n\n{}\n\n{}",
            self.orderings.title,
            self.orderings.note,
            markdown_table(&self.orderings)
        );
        text += "\n## How it was made\n\n";
        self.made.iter().for_each(|(what, value)| text += &format!("- {what}: {}\n", cell(value)));
        text += &format!("\n```text\n{}\n```\n", self.commands.join("\n"));
        text
    }

    fn html(&self) -> String {
        html::Page {
            name: "Reproduction",
            kind: "dgpo reproduction",
            title: TITLE,
            subtitle: &self.subtitle,
            nav: &[
                ("short", "In short"),
                ("tables", "Tables"),
                ("figures", "Figures"),
                ("orderings", "Orderings"),
                ("made", "How it was made"),
            ],
            template: MAIN,
            content: json!({
                "short": self.short,
                "forest": self.forest,
                "tables": self.tables.iter().map(ShownTable::of).collect::<Vec<_>>(),
                "orderings": ShownTable::of(&self.orderings),
                "made": self.made,
                "commands": self.commands.join("\n"),
            }),
            source: "the results of the seeds alone",
            data: json!({"sections": self.figures}),
            scripts: "",
        }
        .to_html()
    }
}

fn counted_seeds(names: &[String]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} seed{plural} ({})", names.len(), names.join(", "))
}

/// The largest set of seeds whose rows were all made in the same way; of several, the one with the
/// smallest seed.
fn alike(all: &[SeedResults]) -> Vec<&SeedResults> {
    let like =
        |one: &SeedResults| all.iter().filter(|other| are_alike(one, other)).collect::<Vec<_>>();
    let mut sets: Vec<Vec<&SeedResults>> = all.iter().map(like).collect();
    // Stable: among sets of equal size the first stays first.
    sets.sort_by_key(|set| std::cmp::Reverse(set.len()));
    sets.into_iter().next().unwrap_or_default()
}

/// True if two seeds have the same settings, and the same recipe for every row that both have.
fn are_alike(one: &SeedResults, other: &SeedResults) -> bool {
    let recipe = |results: &SeedResults, row: &str| {
        results.rows.get(row).and_then(|outcome| outcome.done()).map(|done| done.recipe.clone())
    };
    let is_alike = |row: &String| match (recipe(one, row), recipe(other, row)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    one.settings == other.settings && one.rows.keys().all(is_alike)
}

/// With which program and machine.
fn made(seeds: &[&SeedResults]) -> Vec<(String, String)> {
    let known = [
        ("version", "version"),
        ("executable", "executable"),
        ("device", "device"),
        ("hardware threads at hand", "n_host_cores"),
    ];
    let mut made = Vec::new();
    for (what, key) in known {
        let mut values: BTreeMap<String, usize> = BTreeMap::new();
        for done in seeds
            .iter()
            .flat_map(|results| results.rows.values())
            .filter_map(|outcome| outcome.done())
        {
            if let Some(value) = done.provenance.get(key).filter(|value| !value.is_null()) {
                *values
                    .entry(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                    .or_default() += 1;
            }
        }
        let told: Vec<String> = match values.len() {
            0 | 1 => values.into_keys().collect(),
            _ => values.into_iter().map(|(value, n)| format!("{value} ({n} rows)")).collect(),
        };
        if !told.is_empty() {
            made.push((what.to_owned(), told.join(", ")));
        }
    }
    let seconds = |results: &&&SeedResults| {
        results
            .rows
            .values()
            .filter_map(|outcome| outcome.done())
            .map(|done| done.own_wall_s)
            .sum::<f64>()
    };
    let times = seeds.iter().map(|results| {
        format!("{} (seed {})", dgpo_run::units::duration(seconds(&results)), results.seed)
    });
    made.push(("time of work".to_owned(), times.collect::<Vec<_>>().join(", ")));
    made
}

fn commands(seeds: &[u64], settings: &[String]) -> Vec<String> {
    let set: String = settings.iter().map(|setting| format!(" --set {setting}")).collect();
    let runs = seeds.iter().map(|seed| format!("cargo xtask reproduce --seed {seed}{set}"));
    runs.chain([
        "cargo xtask reproduce --render    # these pages, from the files in reproduction/ alone"
            .to_owned(),
    ])
    .collect()
}

fn markdown_table(each: &Table) -> String {
    let title = |column: &TableColumn| {
        if column.is_paper {
            format!("paper: {}", cell(&column.title))
        } else {
            cell(&column.title)
        }
    };
    let headers: Vec<String> = each.columns.iter().map(title).collect();
    let rows: Vec<Vec<String>> =
        each.rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    table(&headers.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

/// A table with the runs of columns that are the paper's or not, as the template reads it.
#[derive(Serialize)]
struct ShownTable<'t> {
    #[serde(flatten)]
    table: &'t Table,
    /// (the paper's?, columns), without the first.
    groups: Vec<(bool, usize)>,
}

impl<'t> ShownTable<'t> {
    fn of(table: &'t Table) -> Self {
        let runs = table.columns[1..].chunk_by(|left, right| left.is_paper == right.is_paper);
        Self { table, groups: runs.map(|run| (run[0].is_paper, run.len())).collect() }
    }
}

/// The courses of a figure, a line each.
fn courses(section: &Section) -> String {
    let curves = section
        .charts
        .iter()
        .flat_map(|chart| chart.curves.iter().map(move |curve| (&chart.title, curve)));
    let rows = curves.filter_map(|(title, curve)| {
        let figures = curve.figures()?.map(number);
        Some(
            [cell(title), cell(&curve.label)]
                .into_iter()
                .chain(figures)
                .chain([spark(curve)])
                .collect(),
        )
    });
    table(
        &["figure", "row", "first", "last tenth", "min", "max", "course"],
        &rows.collect::<Vec<Vec<String>>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::{
        orderings::tests::{answering, seed},
        results::Outcome,
    };
    use std::fs;

    fn two_seeds() -> Vec<SeedResults> {
        let rows = |dgpo: usize| {
            [
                ("dgpo", answering(dgpo, 20)),
                ("kd", answering(60, 20)),
                ("ppo", Outcome::Failed { why: "</script> a | b".into() }),
            ]
        };
        vec![seed(0, &rows(80)), seed(1, &rows(90))]
    }

    #[test]
    fn both_pages_come_from_the_files_alone_and_are_the_same_again() {
        let out = tempfile::tempdir().unwrap();
        fs::create_dir(out.path().join(RESULTS_DIR)).unwrap();
        for results in two_seeds() {
            fs::write(
                results::path_of(&out.path().join(RESULTS_DIR), results.seed),
                results.to_json(),
            )
            .unwrap();
        }
        let written = write(out.path()).unwrap();
        assert_eq!(written.seeds, [0, 1]);
        let read =
            || [&written.markdown, &written.html].map(|path| fs::read_to_string(path).unwrap());
        let [markdown, html] = read();
        for (page, row) in [
            (&markdown, "0.625 ± 0.035"),
            (&html, "<td>0.625 ± 0.035</td>"),
            (&markdown, "paper: Avg."),
            (&html, "class=\"paper\">0.329"),
        ] {
            assert!(page.contains(row), "no {row} in {page}");
        }
        assert!(markdown.contains("- holds: ") && markdown.contains("DGPO > KD"), "{markdown}");
        assert!(markdown.contains("cargo xtask reproduce --seed 1\n"), "{markdown}");
        write(out.path()).unwrap();
        assert_eq!(read(), [markdown, html]);
    }

    #[test]
    fn a_failed_row_is_named_and_its_words_stay_words() {
        let all = two_seeds();
        let page = Page::of(&all);
        assert!(page.markdown().contains("Failed: qwen-ppo of seed 0"), "{}", page.markdown());
        assert!(page.markdown().contains("a \\| b"));
        // The data, the charts: two scripts of the page's own.
        assert_eq!(page.html().matches("</script").count(), 2);
    }

    #[test]
    fn seeds_made_in_another_way_are_left_out_and_named() {
        let mut all = two_seeds();
        all.push(SeedResults {
            settings: vec!["rl.steps=2".into()],
            ..seed(2, &[("dgpo", answering(10, 2))])
        });
        let page = Page::of(&all);
        assert_eq!(page.seeds, [0, 1]);
        assert!(
            page.short.iter().any(|line| line.starts_with("Left out: seed 2")),
            "{:?}",
            page.short
        );
    }

    #[test]
    fn settings_of_ones_own_are_said() {
        let all = [SeedResults {
            settings: vec!["rl.steps=2".into()],
            ..seed(0, &[("dgpo", answering(10, 2))])
        }];
        let page = Page::of(&all);
        assert!(
            page.short.iter().any(|line| line.contains("settings of their own (rl.steps=2)")),
            "{:?}",
            page.short
        );
        assert_eq!(page.commands[0], "cargo xtask reproduce --seed 0 --set rl.steps=2");
    }

    #[test]
    fn the_page_loads_nothing() {
        let all = two_seeds();
        let html = Page::of(&all).html().replace("http://www.w3.org/2000/svg", "");
        for forbidden in ["http://", "https://", "@import", "url(", " src="] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn without_results_the_hint_says_how_to_make_some() {
        let out = tempfile::tempdir().unwrap();
        let error = write(out.path()).unwrap_err().to_string();
        assert!(
            error.contains("seed-N.json") && error.contains("hint: `dgpo reproduce --seed 0`"),
            "{error}"
        );
    }
}
