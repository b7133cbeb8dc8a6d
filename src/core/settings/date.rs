//! The day that prompts are told, written as Llama 3.1's header writes it: `26 Jul 2024`.
use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u32,
    /// 1..=12
    month: u32,
    /// 1..=31
    day: u32,
}

impl Date {
    /// Reads `26 Jul 2024`; `None` of anything else, days that do not exist included.
    pub fn parse(text: &str) -> Option<Self> {
        let [day, month, year] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let is_number = |text: &str, n_digits: usize| {
            text.len() == n_digits && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(day, 2) || !is_number(year, 4) {
            return None;
        }
        let month = 1 + MONTHS.iter().position(|name| name[..3] == *month)? as u32;
        let date = Self { year: year.parse().ok()?, month, day: day.parse().ok()? };
        (1..=days_of(date.year, month)).contains(&date.day).then_some(date)
    }

    /// As C's and Python's `strftime` at midnight; `None` if the format asks for something else
    /// than day, month, year and clock.
    pub fn format(self, format: &str) -> Option<String> {
        let Self { year, month, day } = self;
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let (mut directive, mut is_padded) = (rest.next()?, true);
            if directive == '-' {
                (directive, is_padded) = (rest.next()?, false);
            }
            let number = |n: u32, width: usize| {
                if is_padded { format!("{n:0width$}") } else { n.to_string() }
            };
            let written = match directive {
                'd' => number(day, 2),
                'e' => format!("{day:2}"),
                'm' => number(month, 2),
                'y' => number(year % 100, 2),
                'Y' => format!("{year:04}"),
                'b' | 'h' => MONTHS[month as usize - 1][..3].to_owned(),
                'B' => MONTHS[month as usize - 1].to_owned(),
                'a' => WEEKDAYS[self.weekday()][..3].to_owned(),
                'A' => WEEKDAYS[self.weekday()].to_owned(),
                'j' => number(self.day_of_year(), 3),
                'H' | 'M' | 'S' => number(0, 2),
                'I' => number(12, 2),
                'p' => "AM".to_owned(),
                'F' => format!("{year:04}-{month:02}-{day:02}"),
                'T' => "00:00:00".to_owned(),
                '%' => "%".to_owned(),
                _ => return None,
            };
            write!(text, "{written}").ok()?;
        }
        Some(text)
    }

    fn day_of_year(self) -> u32 {
        (1..self.month).map(|month| days_of(self.year, month)).sum::<u32>() + self.day
    }

    /// 0 = Sunday.
    fn weekday(self) -> usize {
        // Days since Sunday, 31 December of the year 0 in this calendar.
        let before = self.year.saturating_sub(1);
        ((365 * before + before / 4 - before / 100 + before / 400 + self.day_of_year()) % 7)
            as usize
    }
}

fn days_of(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_in_the_formats_that_templates_use() {
        let date = Date::parse("06 Jul 2024").expect("a date");
        // GNU date: date -u -d '2024-07-06 00:00' '+%d %b %Y|...'
        let cases = [
            ("%d %b %Y", "06 Jul 2024"),
            ("%B %d, %Y", "July 06, 2024"),
            ("%A, %-d %B %y", "Saturday, 6 July 24"),
            ("%Y-%m-%d %H:%M:%S", "2024-07-06 00:00:00"),
            ("%a %e %j 100%%", "Sat  6 188 100%"),
        ];
        for (format, expected) in cases {
            assert_eq!(date.format(format).as_deref(), Some(expected), "{format}");
        }
        assert_eq!((date.format("%Q"), date.format("%")), (None, None));
        assert_eq!(
            Date::parse("29 Feb 2024").and_then(|date| date.format("%A")).as_deref(),
            Some("Thursday")
        );
    }

    #[test]
    fn days_that_do_not_exist_and_other_notations_are_refused() {
        for text in [
            "",
            "2024-07-26",
            "26 July 2024",
            "6 Jul 2024",
            "31 Jun 2024",
            "29 Feb 2023",
            "00 Jan 2024",
            "26  Jul 2024",
            "26 Jul 24",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
    }
}
