//! Results of a conformance run: families of cases of checks, each with its worst deviation and the
//! tolerance it was held to.
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Debug};

/// The result of a run. `passed` and `failed` count checks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FixtureReport {
    pub passed: usize,
    pub failed: usize,
    pub families: BTreeMap<String, Vec<Case>>,
}

impl FixtureReport {
    /// Appends cases to a family and counts their checks.
    pub fn add(&mut self, family: &str, cases: Vec<Case>) {
        for check in cases.iter().flat_map(|case| &case.checks) {
            if check.passed {
                self.passed += 1;
            } else {
                self.failed += 1;
            }
        }
        self.families.entry(family.to_owned()).or_default().extend(cases);
    }
}

/// One fixture: a file, a model folder, a group of keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    pub name: String,
    pub checks: Vec<Check>,
}

/// One compared key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub key: String,
    pub passed: bool,
    /// |got - expected| of the worst entry (the one that uses most of its tolerance). Null for exact comparisons and non-finite results.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<f64>,
    /// Tolerance of that entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Why it failed, or what is different on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Tolerance of an entry: abs + rel · |expected| + rel_of_max · max |expected|.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
    pub rel_of_max: f64,
}

impl Tolerance {
    pub const fn abs(abs: f64) -> Self {
        Self { abs, rel: 0.0, rel_of_max: 0.0 }
    }

    pub const fn rel(rel: f64) -> Self {
        Self { abs: 0.0, rel, rel_of_max: 0.0 }
    }

    pub const fn or_rel(self, rel: f64) -> Self {
        Self { rel, ..self }
    }

    pub const fn or_rel_of_max(self, rel_of_max: f64) -> Self {
        Self { rel_of_max, ..self }
    }
}

impl Case {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), checks: Vec::new() }
    }

    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// Compares arrays entry by entry.
    pub fn close(&mut self, key: &str, got: &[f32], expected: &[f32], tolerance: Tolerance) {
        self.close_where(key, got, expected, |_| true, tolerance);
    }

    /// Compares the entries for which `is_compared(index)`.
    pub fn close_where(
        &mut self,
        key: &str,
        got: &[f32],
        expected: &[f32],
        is_compared: impl Fn(usize) -> bool,
        tolerance: Tolerance,
    ) {
        if got.len() != expected.len() {
            return self.fail(key, format!("{} values, expected {}", got.len(), expected.len()));
        }
        let pairs = (0..got.len())
            .filter(|&i| is_compared(i))
            .map(|i| (f64::from(got[i]), f64::from(expected[i])));
        self.compare(key, &pairs.collect::<Vec<_>>(), tolerance);
    }

    /// As [`Case::close`], for values the project computes in f64.
    pub fn close_f64(&mut self, key: &str, got: &[f64], expected: &[f64], tolerance: Tolerance) {
        if got.len() != expected.len() {
            return self.fail(key, format!("{} values, expected {}", got.len(), expected.len()));
        }
        self.compare(
            key,
            &got.iter().copied().zip(expected.iter().copied()).collect::<Vec<_>>(),
            tolerance,
        );
    }

    pub fn scalar(&mut self, key: &str, got: f64, expected: f64, tolerance: Tolerance) {
        self.compare(key, &[(got, expected)], tolerance);
    }

    /// As [`Case::scalar`], the expected value as the fixture writes it: anything but a number
    /// fails.
    pub fn number(&mut self, key: &str, got: f64, expected: &Value, tolerance: Tolerance) {
        match expected.as_f64() {
            Some(expected) => self.scalar(key, got, expected, tolerance),
            None => self.fail(
                key,
                format!(
                    "the fixture holds {}, expected a number",
                    shortened(&expected.to_string())
                ),
            ),
        }
    }

    /// A reference that holds no numbers cannot be met: a recorded value that is not finite fails,
    /// and so does a comparison of no entries.
    fn compare(&mut self, key: &str, pairs: &[(f64, f64)], tolerance: Tolerance) {
        if pairs.is_empty() {
            return self.fail(key, "the fixture holds no value to compare");
        }
        let max = pairs.iter().map(|(_, expected)| expected.abs()).fold(0.0, f64::max);
        let mut worst = (0.0, tolerance.abs + tolerance.rel_of_max * max, -1.0);
        for (i, &(got, expected)) in pairs.iter().enumerate() {
            if !got.is_finite() || !expected.is_finite() {
                let whose =
                    if expected.is_finite() { "" } else { ": the recorded value is not finite" };
                return self.fail(
                    key,
                    format!("entry {i} of {} is {got}, expected {expected}{whose}", pairs.len()),
                );
            }
            if got == expected {
                continue;
            }
            let deviation = (got - expected).abs();
            let allowed =
                tolerance.abs + tolerance.rel * expected.abs() + tolerance.rel_of_max * max;
            if deviation / allowed > worst.2 {
                worst = (deviation, allowed, deviation / allowed);
            }
        }
        let (deviation, allowed, share) = worst;
        let passed = share <= 1.0;
        let message = (!passed).then(|| format!("off by {deviation:.3e}, allowed {allowed:.3e}"));
        self.checks.push(Check {
            key: key.to_owned(),
            passed,
            deviation: Some(deviation),
            tolerance: Some(allowed),
            message,
        });
    }

    /// Compares exactly.
    pub fn equal<T: PartialEq + Debug + ?Sized>(&mut self, key: &str, got: &T, expected: &T) {
        let passed = got == expected;
        let message =
            (!passed).then(|| format!("got {}, expected {}", shortened(got), shortened(expected)));
        self.checks.push(Check {
            key: key.to_owned(),
            passed,
            deviation: None,
            tolerance: None,
            message,
        });
    }

    pub fn fail(&mut self, key: &str, message: impl Into<String>) {
        self.checks.push(Check {
            key: key.to_owned(),
            passed: false,
            deviation: None,
            tolerance: None,
            message: Some(message.into()),
        });
    }

    /// A passed check with a remark: a difference from the reference that `method §1` asks for.
    pub fn differs_on_purpose(&mut self, key: &str, difference: &str) {
        self.note(key, format!("differs on purpose: {difference}"));
    }

    /// A passed check with a remark.
    pub fn note(&mut self, key: &str, remark: impl Into<String>) {
        self.checks.push(Check {
            key: key.to_owned(),
            passed: true,
            deviation: None,
            tolerance: None,
            message: Some(remark.into()),
        });
    }

    /// Keys of a fixture nobody has looked at: what is not understood is not passed.
    pub fn fail_unknown(&mut self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            self.fail(&key, "unknown key: this program has nothing to compare it with");
        }
    }
}

/// A value's debug text, cut in the middle of long arrays.
fn shortened(value: &(impl Debug + ?Sized)) -> String {
    const LIMIT: usize = 200;
    let text = format!("{value:?}");
    if text.chars().count() <= LIMIT {
        text
    } else {
        text.chars().take(LIMIT).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_fails_just_beyond_its_tolerance_and_reports_the_worst_entry() {
        let mut case = Case::new("c");
        case.close("in", &[1.0, 2.0], &[1.0, 2.0625], Tolerance::abs(0.0625));
        case.close("out", &[1.0, 2.0], &[1.5, 2.0625], Tolerance::abs(0.25));
        assert_eq!(case.checks.iter().map(|c| c.passed).collect::<Vec<_>>(), [true, false]);
        assert_eq!((case.checks[1].deviation, case.checks[1].tolerance), (Some(0.5), Some(0.25)));
    }

    #[test]
    fn nothing_passes_without_finite_numbers_on_both_sides() {
        let mut case = Case::new("c");
        for (got, expected) in [
            (f64::NAN, 1.0),
            (1.0, f64::NAN),
            (1.0, f64::INFINITY),
            (f64::INFINITY, f64::INFINITY),
            (f64::NAN, f64::NAN),
        ] {
            case.scalar("not finite", got, expected, Tolerance::abs(9.0).or_rel(9.0));
        }
        case.close("length", &[1.0], &[1.0, 1.0], Tolerance::abs(9.0));
        case.close("nothing", &[], &[], Tolerance::abs(9.0));
        case.number("null", 1.0, &Value::Null, Tolerance::abs(9.0));
        case.number("text", 1.0, &Value::from("1.0"), Tolerance::abs(9.0));
        assert!(case.checks.iter().all(|check| !check.passed));
    }
}
