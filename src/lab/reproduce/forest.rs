//! A picture of the orderings: a line for each, with the difference measured here, its 95 %
//! interval, and the paper's difference.
//!
//! Elements and a style sheet alone, so that it is there without scripts; places are shares of the
//! width in percent.
use super::{
    orderings::{Found, Ordering, Verdict, verdict},
    results::SeedResults,
};
use minijinja::HtmlEscape;

/// Ordering and what became of it.
pub type Judged = (Ordering, Option<Found>);

/// Every ordering of the paper with what the seeds show of it.
pub fn judged(orderings: Vec<Ordering>, seeds: &[&SeedResults]) -> Vec<Judged> {
    let judge = |ordering: Ordering| {
        let found = super::orderings::found(&ordering, seeds);
        (ordering, found)
    };
    orderings.into_iter().map(judge).collect()
}

/// The scale that all lines share: round ends, and a number every `step`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// Around zero and everything that is drawn.
    fn of(judged: &[Judged]) -> Self {
        let drawn = judged.iter().flat_map(|(ordering, found)| {
            let ends =
                found.as_ref().map(|found| [found.interval.low, found.interval.high, found.mean]);
            ends.into_iter().flatten().chain([ordering.paper])
        });
        let (low, high) = drawn.fold((0.0f64, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
        let step = if high - low > 0.8 { 0.2 } else { 0.1 };
        let high = (high / step).ceil().max(1.0) * step;
        Self { low: (low / step).floor() * step, high, step }
    }

    /// Place of a difference, in percent of the width.
    fn place(self, x: f64) -> f64 {
        100.0 * (x - self.low) / (self.high - self.low)
    }

    fn numbers(self) -> String {
        let n = ((self.high - self.low) / self.step).round() as usize;
        let number = |at: usize| {
            let x = self.low + at as f64 * self.step;
            // The one at zero has no sign.
            let text = if x.abs() < self.step / 2.0 {
                "0".to_owned()
            } else {
                format!("{x:+.1}").replace('-', "−")
            };
            format!("<span style=\"left:{:.2}%\">{text}</span>", self.place(x))
        };
        (0..=n).map(number).collect()
    }
}

/// The picture.
pub fn html(judged: &[Judged]) -> String {
    let scale = Scale::of(judged);
    let numbers = format!(
        "<div class=\"row\"><span class=\"track numbers\" aria-hidden=\"true\">{}</span></div>",
        scale.numbers()
    );
    let mut lines = numbers.clone();
    let mut source = "";
    for (ordering, found) in judged {
        if ordering.source != source {
            source = ordering.source;
            lines += &format!("<h4>{source}</h4>");
        }
        lines += &line(scale, ordering, found.as_ref());
    }
    let key = "<p class=\"muted key\">Difference of exact match, above minus below:<i \
               class=\"dot\"></i>measured here, mean over the seeds<i class=\"range\"></i>its 95 % \
               interval over seeds and questions<i class=\"theirs\"></i>in the paper. Right of the \
               dashed line the ordering is the paper’s.</p>";
    format!("{key}<div class=\"forest\">{lines}{numbers}</div>")
}

fn line(scale: Scale, ordering: &Ordering, found: Option<&Found>) -> String {
    let judged = verdict(found);
    let class = match judged {
        Verdict::Holds => "holds",
        Verdict::Reversed => "reversed",
        Verdict::WithinNoise | Verdict::NotMeasured => "noise",
    };
    let at = |class: &str, x: f64| {
        format!("<i class=\"{class}\" style=\"left:{:.2}%\"></i>", scale.place(x))
    };
    let ours = found.map_or(String::new(), |found| {
        let (low, high) = (scale.place(found.interval.low), scale.place(found.interval.high));
        format!(
            "<i class=\"range\" style=\"left:{low:.2}%;width:{:.2}%\"></i>{}",
            high - low,
            at("dot", found.mean)
        )
    });
    let told = found.map_or("not measured here".to_owned(), |found| {
        format!(
            "{:+.3} here, 95 % interval {:+.3} to {:+.3}",
            found.mean, found.interval.low, found.interval.high
        )
    });
    format!(
        "<div class=\"row {class}\"><span class=\"what\">{}</span><span \
         class=\"said\">{}</span><span class=\"track\" role=\"img\" aria-label=\"{told}, {:+.3} in \
         the paper\" title=\"{told}, {:+.3} in the paper\">{}{}{ours}</span></div>",
        HtmlEscape(&ordering.text),
        judged.as_str(),
        ordering.paper,
        ordering.paper,
        at("zero", 0.0),
        at("theirs", ordering.paper),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::orderings::{
        self,
        tests::{answering, seed},
    };

    #[test]
    fn every_ordering_has_a_line_with_its_interval_where_it_was_measured() {
        let seeds = [seed(0, &[("dgpo", answering(90, 40)), ("kd", answering(60, 20))])];
        let judged = judged(orderings::all(), &seeds.iter().collect::<Vec<_>>());
        let html = html(&judged);
        let count = |part: &str| html.matches(part).count();
        // The key has one of each too.
        assert_eq!(
            (count("class=\"what\""), count("class=\"theirs\"")),
            (judged.len(), judged.len() + 1)
        );
        let n_measured = judged.iter().filter(|(_, found)| found.is_some()).count();
        assert_eq!(
            (count("class=\"dot\""), count("class=\"range\"")),
            (n_measured + 1, n_measured + 1)
        );
        assert!(
            n_measured > 0 && n_measured < judged.len() && count("row holds") > 0,
            "{n_measured} of {}",
            judged.len()
        );
    }

    #[test]
    fn everything_lies_inside_the_scale() {
        let seeds = [seed(0, &[("dgpo", answering(10, 0)), ("kd", answering(100, 50))])];
        let judged = judged(orderings::all(), &seeds.iter().collect::<Vec<_>>());
        let scale = Scale::of(&judged);
        for (ordering, found) in &judged {
            let ends = found.as_ref().map(|found| [found.interval.low, found.interval.high]);
            for x in ends.into_iter().flatten().chain([ordering.paper, 0.0]) {
                assert!((0.0..=100.0).contains(&scale.place(x)), "{x} in {scale:?}");
            }
        }
        assert!(scale.numbers().contains(">0</span>"), "{}", scale.numbers());
    }
}
