use super::*;
use dgpo_core::env::search::SearchError;
use std::cell::RefCell;

/// Fails as many searches of each call as the script says; afterwards it serves everything.
struct Flaky {
    lost: RefCell<Vec<usize>>,
    n_calls: Cell<usize>,
}

impl Flaky {
    fn new(lost: &[usize]) -> Self {
        Self { lost: RefCell::new(lost.iter().rev().copied().collect()), n_calls: Cell::new(0) }
    }
}

impl Retriever for Flaky {
    fn search(&self, queries: &[String], _top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        self.n_calls.set(self.n_calls.get() + 1);
        let n_lost = self.lost.borrow_mut().pop().unwrap_or(0);
        let result = |at: usize| {
            if at < n_lost { Err(SearchError::failed("gone; hint: wait")) } else { Ok(Vec::new()) }
        };
        (0..queries.len()).map(result).collect()
    }
    fn describe(&self) -> String {
        "flaky".to_owned()
    }
}

fn recipe(max_lost_share: f64, max_outage_s: f64) -> RetrieverRecipe {
    RetrieverRecipe {
        max_lost_share,
        max_outage_s,
        first_pause_s: 0.0005,
        max_retries: 1,
        ..RetrieverRecipe::default()
    }
}

/// Ten queries in two calls of five, until they are served; also what was said.
fn ten(
    retriever: &Flaky,
    recipe: &RetrieverRecipe,
    stop: &Stop,
) -> (Result<usize, PipelineError>, Vec<String>) {
    let mut said = Vec::new();
    let say = |text: &str| said.push(text.to_owned());
    let mut waiting = Waiting { recipe, stop, say: Box::new(say) };
    let queries = ["q"; 5].map(str::to_owned);
    let served = waiting.until_served("step 3", retriever, 10, |watched| {
        let results = [watched.search(&queries, 1), watched.search(&queries, 1)].concat();
        Ok((results.len(), Losses::of_results(&results)))
    });
    drop(waiting);
    (served.map(|served| served.value), said)
}

#[test]
fn what_was_lost_is_attempted_again_until_it_is_served() {
    let retriever = Flaky::new(&[5, 1, 0, 2]);
    let (served, said) = ten(&retriever, &recipe(0.0, 60.0), &Stop::default());
    assert_eq!(served.expect("served in the end"), 10);
    // Behind a loss nothing more of the attempt is asked; the third attempt loses in its second
    // call.
    assert_eq!((retriever.n_calls.get(), said.len()), (1 + 1 + 2 + 2, 3));
    assert!(
        said[0].starts_with(
            "step 3: 10 of 10 that searched were lost to the retriever: gone; it is played again \
             in 1.0ms"
        ),
        "{said:?}"
    );
    assert!(said[1].contains("in 2.0ms") && said[2].contains("in 4.0ms"), "{said:?}");
}

/// Answers 400 to every search.
struct Refusing;

impl Retriever for Refusing {
    fn search(&self, queries: &[String], _top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
        let refusal = || SearchError { why: "status 400".to_owned(), is_refusal: true };
        queries.iter().map(|_| Err(refusal())).collect()
    }
    fn describe(&self) -> String {
        "refusing".to_owned()
    }
}

#[test]
fn a_refusal_is_not_waited_for() {
    let mut said = Vec::new();
    let say = |text: &str| said.push(text.to_owned());
    let (recipe, stop) = (recipe(0.0, 3600.0), Stop::default());
    let mut waiting = Waiting { recipe: &recipe, stop: &stop, say: Box::new(say) };
    let ended = waiting.until_served("step 3", &Refusing, 1, |watched| {
        let results = watched.search(&["q".to_owned()], 1);
        Ok(((), Losses::of_results(&results)))
    });
    let told = ended.expect_err("refused").to_string();
    assert!(
        told.contains("waiting does not change")
            && told.contains("retriever.max_lost_share")
            && told.contains("status 400"),
        "{told}"
    );
    drop(waiting);
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn a_share_that_the_recipe_allows_is_accepted() {
    let allowed = ten(&Flaky::new(&[1, 1]), &recipe(0.2, 0.0), &Stop::default());
    assert!(allowed.0.is_ok() && allowed.1.is_empty());
    assert!(ten(&Flaky::new(&[1, 2]), &recipe(0.2, 0.0), &Stop::default()).0.is_err());
}

#[test]
fn an_outage_that_lasts_too_long_ends_in_the_retrievers_words_with_one_hint() {
    let retriever = Flaky::new(&[5; 1000]);
    let (ended, said) = ten(&retriever, &recipe(0.0, 0.0), &Stop::default());
    let message = ended.expect_err("too long").to_string();
    assert!(message.contains("step 3: 10 of 10") && message.contains("gone"), "{message}");
    assert!(
        message.contains("retriever.max_lost_share = 0 ")
            && message.contains("retriever.max_outage_s = 0:"),
        "{message}"
    );
    assert_eq!(
        (message.matches("hint: ").count(), said.len(), retriever.n_calls.get()),
        (1, 0, 1),
        "{message}"
    );
    assert!(ten(&retriever, &recipe(0.0, 0.02), &Stop::default()).0.is_err());
}

#[test]
fn a_stop_request_ends_the_wait() {
    let stop = Stop::default();
    stop.request();
    let (ended, _) = ten(&Flaky::new(&[5; 1000]), &recipe(0.0, 1e6), &stop);
    assert!(matches!(ended, Err(PipelineError::Stopped)));
}

#[test]
fn an_attempt_that_was_cut_short_because_of_its_losses_is_no_stop() {
    let (retriever, stop) = (Flaky::new(&[5]), Stop::default());
    let recipe = recipe(0.0, 60.0);
    let say = |_: &str| {};
    let mut waiting = Waiting { recipe: &recipe, stop: &stop, say: Box::new(say) };
    let served = waiting.until_served("step 3", &retriever, 5, |watched| {
        let results = watched.search(&["q"; 5].map(str::to_owned), 1);
        if watched.has_lost_too_much() {
            Err(PipelineError::Stopped)
        } else {
            Ok(((), Losses::of_results(&results)))
        }
    });
    assert!(served.is_ok());
    let stopped = waiting
        .until_served("step 3", &retriever, 5, |_| Err::<((), Losses), _>(PipelineError::Stopped));
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
}

#[test]
fn a_wrong_number_of_results_is_a_loss_of_all() {
    struct Short;
    impl Retriever for Short {
        fn search(&self, _queries: &[String], _top_k: usize) -> Vec<Result<Vec<Hit>, SearchError>> {
            vec![Ok(Vec::new())]
        }
        fn describe(&self) -> String {
            "short".to_owned()
        }
    }
    let results = Watched::new(&Short, 9.0).search(&["a", "b"].map(str::to_owned), 1);
    assert!(results.len() == 2 && results.iter().all(Result::is_err));
}
