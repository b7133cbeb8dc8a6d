//! Which questions does the tiny world allow, and which of them are held out?
//!
//! One hop: every fact (960). Two hops: birthplace and job of the director, author or founder of
//! something, and the country in which a person was born (900). A sixth of every kind is the test
//! set: 160 and 150 questions. Another sixth is for development: settings can be chosen by it, and
//! the test set need not be looked at for that; 1,240 questions remain for training. The two hops
//! of a held-out question may each occur in training questions, but never the pair: what is tested
//! is finding, not remembering.
use super::world::{Fact, Relation, World};
use dgpo_core::{
    question::{Question, Supporting},
    rng::{Key, Purpose},
};

/// One step of a question: a fact that has to be found.
pub type Hop = Fact;

/// A question with the facts that answer it, in the order in which they have to be found.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyQuestion {
    pub question: Question,
    pub hops: Vec<Hop>,
}

/// Training and development questions are shuffled together; test questions are kept apart by hops.
#[derive(Clone, Debug)]
pub struct Split {
    pub train: Vec<TinyQuestion>,
    pub dev: Vec<TinyQuestion>,
    pub test_one_hop: Vec<TinyQuestion>,
    pub test_two_hops: Vec<TinyQuestion>,
}

/// One question in this many is a test question, and one is for development.
const HELD_OUT_SHARE: usize = 6;

const ONE_HOP: [Relation; 6] = [
    Relation::Director,
    Relation::Author,
    Relation::Founder,
    Relation::Birthplace,
    Relation::Job,
    Relation::Country,
];
const TWO_HOPS: [(Relation, Relation); 7] = [
    (Relation::Director, Relation::Birthplace),
    (Relation::Director, Relation::Job),
    (Relation::Author, Relation::Birthplace),
    (Relation::Author, Relation::Job),
    (Relation::Founder, Relation::Birthplace),
    (Relation::Founder, Relation::Job),
    (Relation::Birthplace, Relation::Country),
];

/// All questions of a world, split by its seed.
pub fn split(world: &World, seed: u64) -> Split {
    let key = Key::new(seed, Purpose::World).fold(100);
    let [mut train, mut dev] = [const { Vec::new() }; 2];
    let mut tests = [const { Vec::new() }; 2];
    let one_hop = ONE_HOP.iter().map(|relation| {
        world.facts(*relation).into_iter().map(|fact| vec![fact]).collect::<Vec<_>>()
    });
    let two_hops = TWO_HOPS.iter().map(|(first, second)| chains(world, *first, *second));
    for (kind, chains) in one_hop.chain(two_hops).enumerate() {
        let key = key.fold(kind as u64);
        let n_held_out = (chains.len() + HELD_OUT_SHARE / 2) / HELD_OUT_SHARE;
        for (rank, i) in key.fold(0).permutation(chains.len()).into_iter().enumerate() {
            let hops = &chains[i];
            let wording = wording(hops, key.fold(1).below(i as u64, 2));
            let set = match rank / n_held_out {
                0 => &mut tests[hops.len() - 1],
                1 => &mut dev,
                _ => &mut train,
            };
            set.push((wording, hops.clone()));
        }
    }
    let finish = |name: &str, stream: u64, drafts: Vec<(String, Vec<Hop>)>| {
        let order = key.fold(stream).permutation(drafts.len());
        order
            .into_iter()
            .enumerate()
            .map(|(n, i)| tiny_question(world, name, n, drafts[i].clone()))
            .collect()
    };
    let [one, two] = tests;
    Split {
        train: finish("train", 1000, train),
        dev: finish("dev", 1003, dev),
        test_one_hop: finish("test", 1001, one),
        test_two_hops: finish("test", 1002, two),
    }
}

/// Every first fact joined with the second relation's fact about its value.
fn chains(world: &World, first: Relation, second: Relation) -> Vec<Vec<Hop>> {
    let seconds = world.facts(second);
    let join = |fact: Fact| {
        let next = seconds
            .iter()
            .find(|next| next.subject == fact.value)
            .expect("every person and every city has all its facts")
            .clone();
        vec![fact, next]
    };
    world.facts(first).into_iter().map(join).collect()
}

fn wording(hops: &[Hop], variant: usize) -> String {
    let subject = &hops[0].subject;
    let by_variant = |first: String, second: String| if variant == 0 { first } else { second };
    let relation = hops[0].relation;
    let noun = relation.noun();
    match hops.get(1).map(|hop| hop.relation) {
        None => match relation {
            Relation::Director => by_variant(
                format!("Who directed {subject}?"),
                format!("Who is the director of {subject}?"),
            ),
            Relation::Author => by_variant(
                format!("Who wrote {subject}?"),
                format!("Who is the author of {subject}?"),
            ),
            Relation::Founder => by_variant(
                format!("Who founded {subject}?"),
                format!("Who is the founder of {subject}?"),
            ),
            Relation::Birthplace => by_variant(
                format!("Where was {subject} born?"),
                format!("What is the birthplace of {subject}?"),
            ),
            Relation::Job => by_variant(
                format!("What is the job of {subject}?"),
                format!("What job does {subject} have?"),
            ),
            Relation::Country => by_variant(
                format!("In which country is {subject}?"),
                format!("In which country does {subject} lie?"),
            ),
        },
        Some(Relation::Birthplace) => by_variant(
            format!("Where was the {noun} of {subject} born?"),
            format!("What is the birthplace of the {noun} of {subject}?"),
        ),
        Some(Relation::Job) => by_variant(
            format!("What is the job of the {noun} of {subject}?"),
            format!("What job does the {noun} of {subject} have?"),
        ),
        Some(_) => by_variant(
            format!("In which country was {subject} born?"),
            format!("In which country is the birthplace of {subject}?"),
        ),
    }
}

fn tiny_question(
    world: &World,
    split: &str,
    n: usize,
    (text, hops): (String, Vec<Hop>),
) -> TinyQuestion {
    let dataset = format!("tiny-{}hop", hops.len());
    let supporting = hops
        .iter()
        .map(|hop| {
            let passage = &world.passages()[hop.passage_idx];
            Supporting {
                title: hop.subject.clone(),
                text: passage.text().to_owned(),
                pid: Some(passage.id.clone()),
            }
        })
        .collect();
    let answer = hops[hops.len() - 1].value.clone();
    let question = Question {
        id: format!("{dataset}-{split}-{n:04}"),
        dataset,
        question: text,
        golden_answers: vec![answer],
        supporting,
        supporting_kind: "annotated".to_owned(),
    };
    TinyQuestion { question, hops }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_sixth_of_each_kind_is_for_testing_and_a_sixth_for_development() {
        let split = split(&World::generate(0), 0);
        let n_dev =
            [1, 2].map(|n_hops| split.dev.iter().filter(|q| q.hops.len() == n_hops).count());
        assert_eq!((split.train.len(), n_dev), (1240, [160, 150]));
        assert_eq!([split.test_one_hop.len(), split.test_two_hops.len()], n_dev);
    }

    #[test]
    fn no_two_sets_ask_for_the_same_chain_of_facts() {
        let split = split(&World::generate(3), 3);
        let chain = |q: &TinyQuestion| {
            q.hops.iter().map(|hop| (hop.subject.clone(), hop.relation.noun())).collect::<Vec<_>>()
        };
        let all: Vec<_> = [&split.train, &split.dev, &split.test_one_hop, &split.test_two_hops]
            .into_iter()
            .flatten()
            .map(chain)
            .collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn the_last_supporting_passage_holds_the_answer() {
        let split = split(&World::generate(1), 1);
        for TinyQuestion { question, .. } in
            [&split.train, &split.dev, &split.test_one_hop, &split.test_two_hops]
                .into_iter()
                .flatten()
        {
            let last =
                question.supporting.last().map(|passage| passage.text.as_str()).unwrap_or_default();
            assert!(last.contains(&question.golden_answers[0]), "{question:?}");
            assert!(
                question.question.ends_with('?') && question.question.matches('?').count() == 1
            );
        }
    }
}
