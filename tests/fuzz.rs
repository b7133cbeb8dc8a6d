//! Damaged files for every reader, through `dgpo fuzz`: in processes of their own, so that an abort
//! or an endless loop is a finding and no end of the tests.
use crate::support::World;
use serde_json::Value;

fn fuzzed(arguments: &[&str]) -> (i32, Value) {
    let world = World::new();
    let output = world.command(&["-q", "fuzz", "--json"]).args(arguments).output().unwrap();
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), json)
}

#[test]
fn two_hundred_damaged_files_make_no_reader_panic_abort_hang_or_eat_memory() {
    let (code, found) = fuzzed(&["--cases", "200"]);
    assert_eq!(found["faults"], serde_json::json!([]), "{found}");
    assert_eq!(code, 0);
    let readers = found["readers"].as_array().unwrap();
    assert!(readers.len() >= 17, "{readers:?}");
    for reader in readers {
        assert_eq!(reader["n_cases"], 200, "{reader}");
        // Damage that nobody notices would say nothing.
        assert!(
            reader["n_refused"].as_u64().unwrap() >= 50 && reader["n_read"].as_u64().unwrap() > 0,
            "{reader}"
        );
    }
}

#[test]
fn a_reader_that_panics_aborts_hangs_or_eats_memory_is_found_out() {
    let (code, found) = fuzzed(&[
        "--reader",
        "wrong-on-purpose",
        "--cases",
        "4",
        "--limit-s",
        "3",
        "--limit-mib",
        "700",
    ]);
    assert_eq!(code, 1);
    let kinds: Vec<&str> = found["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        if cfg!(target_os = "linux") {
            ["panic", "abort", "no end", "memory"]
        } else {
            ["panic", "abort", "no end", "no end"]
        }
    );
    assert!(found["faults"][0]["why"].as_str().unwrap().contains("on purpose"), "{found}");
    assert_eq!(found["readers"][0]["n_faults"], 4);
}

#[test]
fn a_reader_that_is_not_there_is_an_error_that_names_the_others() {
    let output = World::new().command(&["fuzz", "--reader", "wieghts"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("there is no reader wieghts")
            && said.contains("hint: weights, configs, tokenizer"),
        "{said}"
    );
}
