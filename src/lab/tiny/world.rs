//! Facts of the tiny world, and the passages that state them.
//!
//! Facts are drawn uniformly: film -> director, book -> author, firm -> founder, person ->
//! birthplace and job, city -> country. Each entity has one passage of one or two sentences in one
//! of two or three wordings. A passage names its subject in the text as well as in the title, so a
//! model may copy the name with its leading space from where it stands in running text.
use super::names::{Counts, Names};
use dgpo_core::{
    env::search::Passage,
    rng::{Key, Purpose},
};

const N_PEOPLE: usize = 300;
const N_FILMS: usize = 120;
const N_BOOKS: usize = 100;
const N_FIRMS: usize = 80;
const N_CITIES: usize = 60;
const N_COUNTRIES: usize = 8;
const JOBS: [&str; 12] = [
    "baker", "painter", "doctor", "pilot", "farmer", "singer", "lawyer", "teacher", "nurse",
    "chemist", "tailor", "sailor",
];

/// A kind of fact: SUBJECT's RELATION is VALUE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Director,
    Author,
    Founder,
    Birthplace,
    Job,
    Country,
}

impl Relation {
    /// The relation's noun, as queries and thoughts use it.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Director => "director",
            Self::Author => "author",
            Self::Founder => "founder",
            Self::Birthplace => "birthplace",
            Self::Job => "job",
            Self::Country => "country",
        }
    }

    /// Which passages hold facts of this relation.
    const fn subjects(self) -> Subjects {
        match self {
            Self::Director => Subjects::Films,
            Self::Author => Subjects::Books,
            Self::Founder => Subjects::Firms,
            Self::Birthplace | Self::Job => Subjects::People,
            Self::Country => Subjects::Cities,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subjects {
    People,
    Films,
    Books,
    Firms,
    Cities,
}

/// One fact and the passage that states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub subject: String,
    pub relation: Relation,
    pub value: String,
    /// Index of the passage in [`World::passages`].
    pub passage_idx: usize,
}

/// The names and what connects them. Passages come in the order people, films, books, firms,
/// cities.
#[derive(Clone, Debug)]
pub struct World {
    names: Names,
    /// [people] index of the city.
    birthplaces: Vec<usize>,
    /// [people] index into `JOBS`.
    jobs: Vec<usize>,
    /// [films + books + firms] index of the person.
    makers: Vec<usize>,
    /// [cities] index of the country.
    countries: Vec<usize>,
    passages: Vec<Passage>,
}

impl World {
    /// The world of a seed.
    pub fn generate(seed: u64) -> Self {
        let key = Key::new(seed, Purpose::World);
        let counts = Counts {
            people: N_PEOPLE,
            works: N_FILMS + N_BOOKS,
            firms: N_FIRMS,
            cities: N_CITIES,
            countries: N_COUNTRIES,
        };
        let draw = |stream: u64, n: usize, from: usize| {
            (0..n).map(|i| key.fold(stream).below(i as u64, from)).collect::<Vec<_>>()
        };
        let mut world = Self {
            names: Names::draw(key.fold(0), counts),
            birthplaces: draw(1, N_PEOPLE, N_CITIES),
            jobs: draw(2, N_PEOPLE, JOBS.len()),
            makers: draw(3, N_FILMS + N_BOOKS + N_FIRMS, N_PEOPLE),
            countries: draw(4, N_CITIES, N_COUNTRIES),
            passages: Vec::new(),
        };
        world.passages = world.write_passages(key.fold(5));
        world
    }

    /// All passages, one an entity; `id` is the passage's number.
    pub fn passages(&self) -> &[Passage] {
        &self.passages
    }

    /// All facts of a relation, in the order of the passages.
    pub fn facts(&self, relation: Relation) -> Vec<Fact> {
        let subjects = relation.subjects();
        let (first_idx, names) = self.section(subjects);
        names
            .iter()
            .enumerate()
            .map(|(i, subject)| {
                let value = match relation {
                    Relation::Director | Relation::Author | Relation::Founder => {
                        &self.names.people[self.makers[first_idx + i - N_PEOPLE]]
                    }
                    Relation::Birthplace => &self.names.cities[self.birthplaces[i]],
                    Relation::Job => JOBS[self.jobs[i]],
                    Relation::Country => &self.names.countries[self.countries[i]],
                };
                Fact {
                    subject: subject.clone(),
                    relation,
                    value: value.to_owned(),
                    passage_idx: first_idx + i,
                }
            })
            .collect()
    }

    /// The first passage of a kind of subject, and the subjects' names.
    fn section(&self, subjects: Subjects) -> (usize, &[String]) {
        let (films, books) = self.names.works.split_at(N_FILMS);
        match subjects {
            Subjects::People => (0, &self.names.people),
            Subjects::Films => (N_PEOPLE, films),
            Subjects::Books => (N_PEOPLE + N_FILMS, books),
            Subjects::Firms => (N_PEOPLE + N_FILMS + N_BOOKS, &self.names.firms),
            Subjects::Cities => (N_PEOPLE + N_FILMS + N_BOOKS + N_FIRMS, &self.names.cities),
        }
    }

    fn write_passages(&self, key: Key) -> Vec<Passage> {
        let mut texts: Vec<(String, String)> = Vec::new();
        let births = self.facts(Relation::Birthplace);
        for (birth, job) in births.iter().zip(self.facts(Relation::Job)) {
            let (person, city, job) = (&birth.subject, &birth.value, job.value);
            let text = match key.below(texts.len() as u64, 3) {
                0 => format!("{person} was born in {city} and works as a {job}."),
                1 => format!("{person} is a {job} born in {city}."),
                _ => format!("{person} works as a {job}. {person} was born in {city}."),
            };
            texts.push((person.clone(), text));
        }
        for relation in [Relation::Director, Relation::Author, Relation::Founder, Relation::Country]
        {
            for Fact { subject, value, .. } in self.facts(relation) {
                let is_first = key.below(texts.len() as u64, 2) == 0;
                let text = match (relation, is_first) {
                    (Relation::Director, true) => {
                        format!("{subject} is a film directed by {value}.")
                    }
                    (Relation::Director, false) => {
                        format!("The film {subject} was made by director {value}.")
                    }
                    (Relation::Author, true) => format!("{subject} is a book written by {value}."),
                    (Relation::Author, false) => {
                        format!("The book {subject} is by author {value}.")
                    }
                    (Relation::Founder, true) => format!("{subject} is a firm founded by {value}."),
                    (Relation::Founder, false) => {
                        format!("The firm {subject} was started by founder {value}.")
                    }
                    (_, true) => format!("{subject} is a city in {value}."),
                    (_, false) => format!("The city {subject} lies in {value}."),
                };
                texts.push((subject, text));
            }
        }
        texts
            .into_iter()
            .enumerate()
            .map(|(i, (title, text))| Passage {
                id: i.to_string(),
                contents: format!("\"{title}\"\n{text}"),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entity_has_one_passage_that_states_its_facts() {
        let world = World::generate(7);
        assert_eq!(world.passages().len(), 660);
        for relation in [
            Relation::Director,
            Relation::Author,
            Relation::Founder,
            Relation::Birthplace,
            Relation::Job,
            Relation::Country,
        ] {
            for fact in world.facts(relation) {
                let passage = &world.passages()[fact.passage_idx];
                assert_eq!(passage.title(), format!("\"{}\"", fact.subject));
                assert!(
                    passage.text().contains(&fact.subject) && passage.text().contains(&fact.value),
                    "{passage:?} lacks {fact:?}"
                );
            }
        }
    }

    #[test]
    fn worlds_of_different_seeds_differ() {
        assert_ne!(World::generate(0).passages(), World::generate(1).passages());
    }
}
