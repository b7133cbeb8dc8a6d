//! Units as people read them.

/// A time in its two largest units: 0.42 s -> "0.4s", 75 s -> "1m15s".
pub fn duration(seconds: f64) -> String {
    if (0.0..9.95).contains(&seconds) {
        return format!("{seconds:.1}s");
    }
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_largest_units_are_named() {
        assert_eq!(
            [0.42, 9.96, 75.0, 3600.0, 90_000.0].map(duration),
            ["0.4s", "10s", "1m15s", "1h00m", "1d01h"]
        );
    }
}
