//! Which names do the world's people, works and places carry?
//!
//! A name is two words, each drawn from a small pool: 300 people share 28 given and 40 family
//! names. Small pools matter twice. The retriever has to tell apart passages that share a word, and
//! a language model sees each word often enough to learn to copy it, while the pair still has to be
//! copied from the passage in front of it. Every word is unique to its pool, and becomes one token
//! of the world's vocabulary.
use dgpo_core::rng::Key;
use std::collections::HashSet;

const CONSONANTS: &[u8] = b"bdklmnrstv";
const VOWELS: &[u8] = b"aeiou";
/// Final consonants, so that family names sound alike.
const FINALS: &[u8] = b"nrs";

const N_GIVEN: usize = 28;
const N_FAMILY: usize = 40;
const N_TITLE: usize = 24;
const N_FIRM: usize = 20;
const N_CITY: usize = 20;
const FIRM_KINDS: [&str; 6] = ["Works", "Mills", "Tools", "Foods", "Press", "Lines"];
const CITY_KINDS: [&str; 5] = ["Bay", "Hill", "Ford", "Port", "Field"];

/// Number of names of each kind to invent.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub people: usize,
    /// Films and books together: their titles come from the same pools.
    pub works: usize,
    pub firms: usize,
    pub cities: usize,
    pub countries: usize,
}

/// Names, distinct over all kinds.
#[derive(Clone, Debug)]
pub struct Names {
    pub people: Vec<String>,
    pub works: Vec<String>,
    pub firms: Vec<String>,
    pub cities: Vec<String>,
    pub countries: Vec<String>,
}

impl Names {
    /// Draws the pools, then pairs. `counts` must stay below the products of the pool sizes (1,120
    /// people, 576 works, 120 firms, 100 cities).
    pub fn draw(key: Key, counts: Counts) -> Self {
        let mut words = Words { key: key.fold(0), n_drawn: 0, taken: HashSet::new() };
        let given = words.pool("CVCV", N_GIVEN);
        let family = words.pool("CVCVF", N_FAMILY);
        let title_first = words.pool("VCVC", N_TITLE);
        let title_second = words.pool("CVCVCV", N_TITLE);
        let firm = words.pool("CVVC", N_FIRM);
        let city = words.pool("CVCCV", N_CITY);
        let countries = words.pool("CVCVnia", counts.countries);
        let owned =
            |kinds: &[&str]| kinds.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>();
        Self {
            people: pairs(key.fold(1), &given, &family, counts.people),
            works: pairs(key.fold(2), &title_first, &title_second, counts.works),
            firms: pairs(key.fold(3), &firm, &owned(&FIRM_KINDS), counts.firms),
            cities: pairs(key.fold(4), &city, &owned(&CITY_KINDS), counts.cities),
            countries,
        }
    }
}

/// `n` distinct "FIRST SECOND" in random order.
fn pairs(key: Key, first: &[String], second: &[String], n: usize) -> Vec<String> {
    let order = key.permutation(first.len() * second.len());
    assert!(n <= order.len(), "{n} names asked of {} pairs", order.len());
    order[..n]
        .iter()
        .map(|pair| format!("{} {}", first[pair / second.len()], second[pair % second.len()]))
        .collect()
}

/// Draws words that were not drawn before.
struct Words {
    key: Key,
    n_drawn: u64,
    taken: HashSet<String>,
}

impl Words {
    fn pool(&mut self, pattern: &str, n: usize) -> Vec<String> {
        (0..n).map(|_| self.word(pattern)).collect()
    }

    /// In a pattern C is a consonant, V a vowel, F a final; lower-case letters stand for
    /// themselves.
    fn word(&mut self, pattern: &str) -> String {
        loop {
            let letters = self.key.fold(self.n_drawn);
            self.n_drawn += 1;
            let word: String = pattern
                .bytes()
                .enumerate()
                .map(|(i, class)| {
                    let pick = |from: &[u8]| char::from(from[letters.below(i as u64, from.len())]);
                    let letter = match class {
                        b'C' => pick(CONSONANTS),
                        b'V' => pick(VOWELS),
                        b'F' => pick(FINALS),
                        literal => char::from(literal),
                    };
                    if i == 0 { letter.to_ascii_uppercase() } else { letter }
                })
                .collect();
            if self.taken.insert(word.clone()) {
                return word;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dgpo_core::rng::Purpose;

    #[test]
    fn names_are_distinct_over_all_kinds() {
        let counts = Counts { people: 300, works: 220, firms: 80, cities: 60, countries: 8 };
        let names = Names::draw(Key::new(5, Purpose::World), counts);
        let all: Vec<&String> =
            [&names.people, &names.works, &names.firms, &names.cities, &names.countries]
                .into_iter()
                .flatten()
                .collect();
        assert_eq!(all.len(), 668);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 668);
    }
}
