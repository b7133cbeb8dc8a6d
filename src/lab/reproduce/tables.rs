//! The paper's tables with ours beside them: mean over seeds, ± the standard deviation over seeds
//! where there are several.
//!
//! Our columns come first, the paper's follow and say so. The data sets of the tiny world stand in
//! for the paper's: one hop for NQ, TriviaQA and PopQA, two hops for the others. Only the rows can
//! be compared, never a number of ours with one of the paper's.
use super::{
    forest::Judged,
    orderings::{deviation, mean, set_of, verdict},
    paper,
    results::{Done, Score, SeedResults, SetArcap},
    rows::{ModelPair, ROWS, TableRow, name},
};
use dgpo_run::units::duration;
use serde::Serialize;

/// A table for people, whatever it is written in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    pub title: &'static str,
    pub note: String,
    pub columns: Vec<TableColumn>,
    /// The first cell names the row.
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableColumn {
    pub title: String,
    /// True if its numbers are the paper's.
    pub is_paper: bool,
}

fn ours(title: &str) -> TableColumn {
    TableColumn { title: title.to_owned(), is_paper: false }
}

fn papers(title: &str) -> TableColumn {
    TableColumn { title: title.to_owned(), is_paper: true }
}

/// Text in place of a missing number.
const NOTHING: &str = "–";

/// All tables of the page, in its order; the orderings are one of their own ([`of_orderings`]).
pub fn all(seeds: &[&SeedResults]) -> Vec<Table> {
    let mut tables = vec![
        table_2(seeds),
        table_3(seeds),
        table_5(seeds),
        capabilities(seeds),
        table_6(seeds),
        behaviour(seeds),
    ];
    tables.extend(alarms(seeds));
    tables.push(cost(seeds));
    tables
}

/// A figure of a row in each seed that has it.
fn values(seeds: &[&SeedResults], row: &str, figure: impl Fn(&Done) -> Option<f64>) -> Vec<f64> {
    seeds.iter().filter_map(|results| figure(results.rows.get(row)?.done()?)).collect()
}

/// `0.705 ± 0.053`
fn spread(values: &[f64]) -> String {
    match (values, deviation(values)) {
        ([], _) => NOTHING.to_owned(),
        (_, None) => format!("{:.3}", mean(values)),
        (_, Some(deviation)) => format!("{:.3} ± {deviation:.3}", mean(values)),
    }
}

fn average(seeds: &[&SeedResults], row: &str) -> String {
    spread(&values(seeds, row, |done| Some(done.score.average_em)))
}

fn on_hops(seeds: &[&SeedResults], row: &str, hops: usize) -> String {
    spread(&values(seeds, row, |done| {
        Some(done.score.datasets.get(&set_of(&done.score, hops)?)?.em)
    }))
}

/// Name of a method: as the paper's tables call it or, where they have no row of it, its
/// Figures 4 and 6.
fn title(method: &str) -> &str {
    match method {
        "dgpo-grpo" => "DGPO with GRPO",
        "kd-gkd" => "KD → GKD",
        "grpo" => "GRPO",
        _ => paper::line_of(method).map_or(method, |line| line.title),
    }
}

/// Rank of DGPO among the students that were trained; `None` where it was not.
pub fn standing(seeds: &[&SeedResults]) -> Option<String> {
    // SFT is SeqKD by another name.
    let methods = ROWS
        .iter()
        .filter(|row| row.pair == ModelPair::Qwen && row.method != "sft")
        .map(|row| row.method);
    let mut students: Vec<(&str, f64)> = methods
        .filter_map(|method| {
            let averages =
                values(seeds, &name(ModelPair::Qwen, method), |done| Some(done.score.average_em));
            (!averages.is_empty()).then(|| (method, mean(&averages)))
        })
        .collect();
    students.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let (_, dgpo) = students.iter().find(|(method, _)| *method == "dgpo")?;
    let better = students.iter().take_while(|(_, em)| em > dgpo);
    let named: Vec<String> =
        better.map(|(method, em)| format!("{} ({em:.3})", title(method))).collect();
    let above = if named.is_empty() {
        "none is above it".to_owned()
    } else {
        format!("above it: {}", named.join(", "))
    };
    let (place, n) = (named.len() + 1, students.len());
    Some(format!(
        "By mean exact match DGPO ({dgpo:.3}) is number {place} of the {n} students trained from \
         the Qwen2.5-shaped one; {above}."
    ))
}

/// Rows of exact match by data set; the paper's line where it has one.
fn by_dataset(
    seeds: &[&SeedResults],
    rows: impl Iterator<Item = (&'static str, String)>,
) -> (Vec<TableColumn>, Vec<Vec<String>>) {
    let theirs = paper::DATASETS
        .iter()
        .rev()
        .take(1)
        .chain(paper::DATASETS.iter().take(7))
        .map(|set| papers(set));
    let columns = ["method", "1 hop", "2 hops", "average", "sampled, training"]
        .map(ours)
        .into_iter()
        .chain(theirs)
        .collect();
    let cells = |(row, title): (&'static str, String)| {
        let of = name(ModelPair::Qwen, row);
        let sampled = spread(&values(seeds, &of, |done| done.train_reward));
        let own =
            [title, on_hops(seeds, &of, 1), on_hops(seeds, &of, 2), average(seeds, &of), sampled];
        let number = |at: usize| {
            paper::line_of(row).map_or(NOTHING.to_owned(), |line| format!("{:.3}", line.em[at]))
        };
        own.into_iter().chain([7, 0, 1, 2, 3, 4, 5, 6].map(number)).collect()
    };
    (columns, rows.map(cells).collect())
}

fn table_2(seeds: &[&SeedResults]) -> Table {
    let extra =
        [("sft", "SFT (the start of SFT → PPO)".to_owned()), ("grpo", title("grpo").to_owned())];
    let (columns, rows) = by_dataset(
        seeds,
        paper::TABLE_2.iter().map(|line| (line.row, line.title.to_owned())).chain(extra),
    );
    let note = "Exact match of every method, greedy, behind the last step; where a row ends with \
                RL or GKD, also that of its sampled episodes on training questions, over the last \
                tenth of the steps. DistiLLM begins with a fifth of the student's own episodes, \
                the published script with none. The paper's pair is Qwen2.5 3B → 0.5B, its \
                averages are over its seven data sets; its PPO is the checkpoint of step 200 of \
                1,000, before training collapsed. It leaves GRPO out of this table because its \
                runs collapsed, and SFT because it is SeqKD by another name."
        .to_owned();
    Table { title: "Table 2: all methods", note, columns, rows }
}

fn table_3(seeds: &[&SeedResults]) -> Table {
    let columns = ["model", "Qwen2.5-shaped student", "Llama-3-shaped student"]
        .map(ours)
        .into_iter()
        .chain(paper::PAIRS.iter().map(|pair| papers(pair)));
    let row = |(row, title, theirs): &(&'static str, &'static str, [f64; 3])| {
        let own = [
            (*title).to_owned(),
            average(seeds, &name(ModelPair::Qwen, row)),
            average(seeds, &name(ModelPair::Llama, row)),
        ];
        own.into_iter().chain(theirs.map(|em| format!("{em:.3}"))).collect()
    };
    let note =
        "Average exact match. Both tiny students learn from the same teacher; the tiny world has \
         no second teacher to stand in for the 7B."
            .to_owned();
    Table {
        title: "Table 3: other models",
        note,
        columns: columns.collect(),
        rows: paper::TABLE_3.iter().map(row).collect(),
    }
}

/// A figure of ARCap of a row on the data set with so many hops.
fn arcap(
    seeds: &[&SeedResults],
    row: &str,
    hops: usize,
    figure: impl Fn(&SetArcap) -> Option<f64>,
) -> String {
    let of = |score: &Score| figure(score.datasets.get(&set_of(score, hops)?)?.arcap.as_ref()?);
    spread(&values(seeds, &name(ModelPair::Qwen, row), |done| of(&done.score)))
}

fn table_5(seeds: &[&SeedResults]) -> Table {
    let titles = ["w/o thinking", "w/ thinking"];
    let own = ["1 hop", "2 hops"]
        .into_iter()
        .flat_map(|set| titles.map(|title| ours(&format!("{set}, {title}"))));
    let theirs = ["NQ", "MuSiQue"]
        .into_iter()
        .flat_map(|set| titles.map(|title| papers(&format!("{set}, {title}"))));
    let row = |line: &paper::Referencing| {
        let figure = |hops, is_thinking: bool| match is_thinking {
            false => arcap(seeds, line.row, hops, |set| set.without_thinking),
            true => arcap(seeds, line.row, hops, |set| set.with_thinking),
        };
        let own = [figure(1, false), figure(1, true), figure(2, false), figure(2, true)];
        [line.title.to_owned()]
            .into_iter()
            .chain(own)
            .chain(line.em.map(|em| format!("{em:.3}")))
            .collect()
    };
    let columns = [ours("model")].into_iter().chain(own).chain(theirs).collect();
    let note = "Source referencing (ARCap): exact match with the gold passages given. Without \
                thinking the turn is made to begin with <answer>; with thinking it is made to \
                begin with <think>, and the model may search again."
        .to_owned();
    Table {
        title: "Table 5: answering from given passages",
        note,
        columns,
        rows: paper::TABLE_5.iter().map(row).collect(),
    }
}

/// A column: its title, and where its figure is found.
type Figure<Of, Is> = (&'static str, fn(&Of) -> Is);

fn capabilities(seeds: &[&SeedResults]) -> Table {
    let figures: [Figure<SetArcap, Option<f64>>; 4] = [
        ("first query's hits", |set| set.first_query_hit_ratio),
        ("question's hits", |set| set.question_hit_ratio),
        ("hits of all searches", |set| set.hit_ratio),
        ("searches", |set| set.searches),
    ];
    let sets = [(1, "1 hop"), (2, "2 hops")];
    let columns =
        sets.iter().flat_map(|(_, set)| figures.map(|(title, _)| ours(&format!("{set}, {title}"))));
    let row = |line: &paper::Referencing| {
        let cells = sets
            .iter()
            .flat_map(|&(hops, _)| figures.map(|(_, figure)| arcap(seeds, line.row, hops, figure)));
        [line.title.to_owned()].into_iter().chain(cells).collect()
    };
    let note = "Query rewriting and thinking (ARCap): the share of episodes whose first query \
                brings a passage with a gold answer, the same with the question itself as the \
                query, of all searches together, and searches an episode. The paper shows these in \
                its text."
        .to_owned();
    let columns = [ours("model")].into_iter().chain(columns).collect();
    Table {
        title: "Asking and deciding",
        note,
        columns,
        rows: paper::TABLE_5.iter().map(row).collect(),
    }
}

fn table_6(seeds: &[&SeedResults]) -> Table {
    let extra =
        ["dgpo-grpo", "kd-gkd"].map(|method| (method, format!("{} (Fig. 6)", title(method))));
    let (columns, rows) = by_dataset(
        seeds,
        paper::TABLE_6.iter().map(|line| (line.row, line.title.to_owned())).chain(extra),
    );
    let note = "What DGPO is without one of its parts, behind the last step. The paper's row (a) \
                collapsed around step 800 of 1,000 and is from before. The last two rows are in \
                the paper's Figure 6, without numbers."
        .to_owned();
    Table { title: "Table 6: ablations", note, columns, rows }
}

/// Rows of the results in the order of the page: what every row starts from, then the runs.
fn everything() -> impl Iterator<Item = String> {
    let starts = [ModelPair::Qwen, ModelPair::Llama]
        .into_iter()
        .flat_map(|pair| ["student", "teacher"].map(|start| name(pair, start)));
    starts.chain(ROWS.iter().map(TableRow::name))
}

fn behaviour(seeds: &[&SeedResults]) -> Table {
    let figures: [Figure<Score, f64>; 5] = [
        ("substring EM", |score| score.substring_em),
        ("hit ratio", |score| score.hit_ratio),
        ("searches", |score| score.searches),
        ("invalid actions", |score| score.invalid_actions),
        ("response tokens", |score| score.response_tokens),
    ];
    let row = |row: String| {
        let cells = figures
            .map(|(_, figure)| spread(&values(seeds, &row, |done| Some(figure(&done.score)))));
        [row.clone()].into_iter().chain(cells).collect()
    };
    let columns = [ours("row")].into_iter().chain(figures.map(|(title, _)| ours(title))).collect();
    let note = "How the evaluated models behave: means over all test questions.".to_owned();
    Table { title: "Behaviour", note, columns, rows: everything().map(row).collect() }
}

/// Table of alarms; `None` where they saw nothing.
pub fn alarms(seeds: &[&SeedResults]) -> Option<Table> {
    let of_seed = |results: &&SeedResults| {
        let rows = ROWS.iter().filter_map(|row| {
            Some((row.name(), results.rows.get(&row.name())?.done()?.alarms.clone()))
        });
        let seed = results.seed;
        rows.flat_map(move |(row, alarms)| {
            alarms.into_iter().map(move |alarm| vec![row.clone(), seed.to_string(), alarm])
        })
        .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = seeds.iter().flat_map(of_seed).collect();
    let note = "Signs of a run that goes wrong. In a reproduction the guards only warn, so these \
                rows were trained to their end all the same: where the paper reports a step before \
                a collapse, ours is the last one."
        .to_owned();
    (!rows.is_empty()).then(|| Table {
        title: "What the guards saw",
        note,
        columns: ["row", "seed", "alarm"].map(ours).into(),
        rows,
    })
}

fn cost(seeds: &[&SeedResults]) -> Table {
    let columns = ["row", "begins with", "own work", "all its phases", "recipe"]
        .map(ours)
        .into_iter()
        .collect();
    let seconds = |values: &[f64]| {
        if values.is_empty() { NOTHING.to_owned() } else { duration(mean(values)) }
    };
    let row = |row: &TableRow| {
        let name = row.name();
        let recipe =
            seeds.iter().find_map(|results| Some(results.rows.get(&name)?.done()?.recipe.clone()));
        vec![
            name.clone(),
            row.source().map_or(NOTHING.to_owned(), TableRow::name),
            seconds(&values(seeds, &name, |done| Some(done.own_wall_s))),
            seconds(&values(seeds, &name, |done| Some(done.wall_s))),
            recipe.unwrap_or(NOTHING.to_owned()),
        ]
    };
    let note = "Time of work, mean over seeds, evaluation included, and the recipe's fingerprint. \
                A row begins with the phases that another one has finished."
        .to_owned();
    Table { title: "Cost", note, columns, rows: ROWS.iter().map(row).collect() }
}

/// Every ordering of the paper and what became of it.
pub fn of_orderings(judged: &[Judged]) -> Table {
    let own = [
        "difference here",
        "sd over seeds",
        "seeds with that sign",
        "95 % over seeds and questions",
        "verdict",
    ]
    .map(ours);
    let columns =
        [ours("ordering"), papers("table"), papers("difference")].into_iter().chain(own).collect();
    let row = |(ordering, found): &Judged| {
        let judged = verdict(found.as_ref()).as_str().to_owned();
        let here = match found {
            None => [(); 4].map(|()| NOTHING.to_owned()),
            Some(found) => [
                format!("{:+.3}", found.mean),
                found.deviation.map_or(NOTHING.to_owned(), |deviation| format!("{deviation:.3}")),
                format!("{} of {}", found.n_holding(), found.differences.len()),
                format!("[{:+.3}, {:+.3}]", found.interval.low, found.interval.high),
            ],
        };
        let theirs =
            [ordering.text.clone(), ordering.source.to_owned(), format!("{:+.3}", ordering.paper)];
        theirs.into_iter().chain(here).chain([judged]).collect()
    };
    let note = "A difference holds if its 95 % interval lies above 0, is reversed if it lies \
                below, and is within noise otherwise (paired bootstrap: seeds and test questions \
                are drawn again, with replacement). Of a few seeds such an interval is too narrow, \
                of one it says nothing of other trainings: read it with the deviation and the \
                signs beside it."
        .to_owned();
    Table { title: "Which orderings hold", note, columns, rows: judged.iter().map(row).collect() }
}

#[cfg(test)]
mod tests;
