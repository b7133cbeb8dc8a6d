//! Queries in batches, and what is left of a batch that a server refuses.
//!
//! A batch goes out as one request. One that an answering server refuses (a search engine's 500 to
//! one odd query) is halved, and so on down to single queries: what stays refused alone is lost,
//! and nothing else.
//!
//! The work is bounded. A server that is away is not asked for parts, nor for the batches after it:
//! all of them fail in its words. Both halves are asked before either is halved further, so that
//! what is served shows early that the server is there. Behind every [`DOUBT_AFTER`] single queries
//! refused in a row it is asked for a query that it served before; without one, or if it refuses
//! that too, it counts as away. A server that refuses everything has then been asked for 26 parts
//! of a batch of 512.

/// Single queries refused in a row after which the server itself is in doubt.
pub const DOUBT_AFTER: usize = 8;

/// The failure of a request.
pub trait Refusal: Clone {
    /// True if the server may have answered this request so because of a query in it.
    fn is_about_the_request(&self) -> bool;
}

/// Asks for all `queries`, at most `batch` a request. `ask` gets a request's queries, and true
/// for a whole batch (false for a part of one); it gives one result a query.
pub fn in_batches<T, R: Refusal>(
    queries: &[String],
    batch: usize,
    ask: impl FnMut(&[String], bool) -> Result<Vec<T>, R>,
) -> Vec<Result<T, R>> {
    let mut parts = BatchParts { ask, served: None, n_refused_alone: 0, away: None };
    let mut results = Vec::with_capacity(queries.len());
    for batch in queries.chunks(batch.max(1)) {
        let answer = parts.ask(batch, true);
        parts.settle(batch, answer, &mut results);
    }
    results
}

struct BatchParts<F, R> {
    ask: F,
    /// A query that was served.
    served: Option<String>,
    /// Single queries refused since anything was served.
    n_refused_alone: usize,
    /// Once the server counts as away, in its words.
    away: Option<R>,
}

impl<T, R: Refusal, F: FnMut(&[String], bool) -> Result<Vec<T>, R>> BatchParts<F, R> {
    fn ask(&mut self, queries: &[String], is_whole: bool) -> Result<Vec<T>, R> {
        if let Some(away) = &self.away {
            return Err(away.clone());
        }
        let answer = (self.ask)(queries, is_whole);
        match &answer {
            Ok(_) => (self.served, self.n_refused_alone) = (queries.first().cloned(), 0),
            Err(refusal) => {
                self.n_refused_alone += usize::from(queries.len() == 1);
                let in_doubt = self.n_refused_alone >= DOUBT_AFTER;
                if !refusal.is_about_the_request() || (in_doubt && !self.serves_again()) {
                    self.away = Some(refusal.clone());
                }
            }
        }
        answer
    }

    /// True if the server still serves a query that it served before.
    fn serves_again(&mut self) -> bool {
        self.n_refused_alone = 0;
        self.served
            .as_ref()
            .is_some_and(|served| (self.ask)(std::slice::from_ref(served), false).is_ok())
    }

    /// The results of some queries, from the answer to the request that held them.
    fn settle(
        &mut self,
        queries: &[String],
        answer: Result<Vec<T>, R>,
        results: &mut Vec<Result<T, R>>,
    ) {
        match answer {
            Ok(found) => results.extend(found.into_iter().map(Ok)),
            Err(_) if queries.len() > 1 && self.away.is_none() => {
                let (left, right) = queries.split_at(queries.len() / 2);
                let answers = (self.ask(left, false), self.ask(right, false));
                self.settle(left, answers.0, results);
                self.settle(right, answers.1, results);
            }
            Err(refusal) => results.extend(queries.iter().map(|_| Err(refusal.clone()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum No {
        Refused,
        Away,
    }
    impl Refusal for No {
        fn is_about_the_request(&self) -> bool {
            *self == Self::Refused
        }
    }

    fn numbers(n: usize) -> Vec<String> {
        (0..n).map(|i| i.to_string()).collect()
    }

    /// Results of a server that refuses requests with one of these queries, and how many requests
    /// that takes.
    fn refusing(
        n: usize,
        batch: usize,
        is_odd: impl Fn(usize) -> bool,
    ) -> (Vec<Result<usize, No>>, usize) {
        let mut n_requests = 0;
        let results = in_batches(&numbers(n), batch, |queries, _| {
            n_requests += 1;
            let numbers: Vec<usize> =
                queries.iter().map(|query| query.parse().expect("a number")).collect();
            assert!(numbers.len() <= batch);
            if numbers.iter().any(|&number| is_odd(number)) {
                Err(No::Refused)
            } else {
                Ok(numbers)
            }
        });
        (results, n_requests)
    }

    #[test]
    fn of_a_refused_batch_only_the_refused_query_is_lost() {
        for odd in [0, 300, 511] {
            let (results, n_requests) = refusing(512, 512, |number| number == odd);
            let expected: Vec<_> =
                (0..512).map(|i| if i == odd { Err(No::Refused) } else { Ok(i) }).collect();
            assert_eq!((results, n_requests), (expected, 1 + 2 * 9));
        }
    }

    #[test]
    fn refused_queries_at_the_front_of_a_batch_do_not_look_like_a_server_that_is_away() {
        let (results, _) = refusing(512, 512, |number| number < 100);
        assert!(results.iter().enumerate().all(|(i, result)| result.is_ok() == (i >= 100)));
    }

    #[test]
    fn a_batch_holds_no_more_queries_than_it_may() {
        let (results, n_requests) = refusing(10, 4, |_| false);
        assert_eq!((results, n_requests), ((0..10).map(Ok).collect::<Vec<_>>(), 3));
    }

    #[test]
    fn a_server_that_refuses_everything_is_given_up_soon() {
        let (results, n_requests) = refusing(5120, 512, |_| true);
        assert!(results.len() == 5120 && results.iter().all(Result::is_err));
        assert_eq!(n_requests, 1 + 26);
    }

    #[test]
    fn a_server_that_begins_to_refuse_everything_is_given_up_too() {
        let mut n_requests = 0;
        let results = in_batches(&numbers(5120), 512, |queries, _| {
            n_requests += 1;
            if n_requests > 1 { Err(No::Refused) } else { Ok(vec![(); queries.len()]) }
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 512);
        assert_eq!(n_requests, 1 + 1 + 26 + 1);
    }

    #[test]
    fn a_server_that_is_away_is_asked_once() {
        let mut n_requests = 0;
        let results: Vec<Result<usize, No>> = in_batches(&numbers(2000), 512, |_, _| {
            n_requests += 1;
            Err(No::Away)
        });
        assert_eq!((results, n_requests), (vec![Err(No::Away); 2000], 1));
    }

    #[test]
    fn what_was_served_before_the_server_went_away_is_kept() {
        let mut n_requests = 0;
        let results = in_batches(&numbers(6), 2, |queries, _| {
            n_requests += 1;
            if n_requests == 2 { Err(No::Away) } else { Ok(vec![(); queries.len()]) }
        });
        let (served, away) = (Ok(()), Err(No::Away));
        assert_eq!((results, n_requests), (vec![served, served, away, away, away, away], 2));
    }
}
