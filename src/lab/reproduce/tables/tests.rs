use super::*;
use crate::reproduce::{
    forest::judged,
    orderings::{self, tests::*},
    results::Outcome,
};

fn two_seeds() -> [SeedResults; 2] {
    let rows = |dgpo: usize| {
        [
            ("dgpo", answering(dgpo, 20)),
            ("kd", answering(60, 20)),
            ("ppo", Outcome::Failed { why: "x".into() }),
        ]
    };
    [seed(0, &rows(80)), seed(1, &rows(90))]
}

fn row<'t>(table: &'t Table, title: &str) -> &'t [String] {
    table
        .rows
        .iter()
        .find(|row| row[0] == title)
        .unwrap_or_else(|| panic!("no {title} in {}", table.title))
}

#[test]
fn ours_are_means_with_their_deviation_beside_the_papers_numbers() {
    let seeds = two_seeds();
    let table = table_2(&seeds.iter().collect::<Vec<_>>());
    // (0.8 + 0.9) / 2, and their average with 0.4 on two hops; the deviations are 0.1 / sqrt(2)
    // and half of it.
    let dgpo = ["DGPO", "0.850 ± 0.071", "0.400 ± 0.000", "0.625 ± 0.035", NOTHING, "0.329"];
    assert_eq!(row(&table, "DGPO")[..6], dgpo.map(str::to_owned));
    assert!(row(&table, "GRPO")[1..].iter().all(|cell| cell == NOTHING));
    let is_paper: Vec<bool> = table.columns.iter().map(|column| column.is_paper).collect();
    assert_eq!(is_paper, [[false; 5].as_slice(), &[true; 8]].concat());
    assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
}

#[test]
fn one_seed_has_no_deviation_and_a_failed_row_no_number() {
    let [first, _] = two_seeds();
    let table = table_2(&[&first]);
    assert_eq!(row(&table, "DGPO")[3], "0.600");
    assert_eq!(
        (row(&table, "PPO")[3].as_str(), row(&table, "PPO")[5].as_str()),
        (NOTHING, "0.238")
    );
}

#[test]
fn every_table_is_rectangular() {
    let seeds = two_seeds();
    let seeds: Vec<&SeedResults> = seeds.iter().collect();
    for table in all(&seeds).into_iter().chain([of_orderings(&judged(orderings::all(), &seeds))]) {
        assert!(
            table.rows.iter().all(|row| row.len() == table.columns.len()) && !table.rows.is_empty(),
            "{}",
            table.title
        );
    }
}

#[test]
fn what_stands_above_dgpo_is_named() {
    let [first, _] = two_seeds();
    let told = standing(&[&first]).expect("it was trained");
    assert!(
        told.contains("DGPO (0.600) is number 1 of the 2 students")
            && told.ends_with("none is above it."),
        "{told}"
    );
    let rows = [
        ("dgpo", answering(10, 2)),
        ("gkd", answering(60, 20)),
        ("dgpo-grpo", answering(80, 20)),
        ("sft", answering(100, 50)),
    ];
    let told = standing(&[&seed(0, &rows)]).expect("it was trained");
    assert!(
        told.ends_with(
            "is number 3 of the 3 students trained from the Qwen2.5-shaped one; above it: DGPO \
             with GRPO (0.600), GKD (0.500)."
        ),
        "{told}"
    );
    let tied = standing(&[&seed(0, &[("kd", answering(10, 2)), ("dgpo", answering(10, 2))])])
        .expect("it was trained");
    assert!(
        tied.contains("is number 1 of the 2 students") && tied.ends_with("none is above it."),
        "{tied}"
    );
    assert_eq!(standing(&[&seed(0, &[("kd", answering(1, 1))])]), None);
}

#[test]
fn alarms_are_told_where_there_are_any() {
    let [mut first, second] = two_seeds();
    assert_eq!(alarms(&[&first, &second]), None);
    let Some(Outcome::Done(done)) = first.rows.get_mut("qwen-kd") else { panic!("a finished row") };
    done.alarms.push("kd step 9: repetition".to_owned());
    let table = alarms(&[&first, &second]).expect("an alarm");
    assert_eq!(table.rows, [["qwen-kd", "0", "kd step 9: repetition"].map(str::to_owned).to_vec()]);
}

#[test]
fn an_ordering_is_told_with_its_seeds_and_its_verdict() {
    let seeds = two_seeds();
    let table = of_orderings(&judged(orderings::all(), &seeds.iter().collect::<Vec<_>>()));
    let told = row(&table, "DGPO > KD");
    assert_eq!([&told[2], &told[3], &told[5], &told[7]], ["+0.031", "+0.125", "2 of 2", "holds"]);
    assert_eq!(row(&table, "DGPO > PPO")[7], "not measured");
}
