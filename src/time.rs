//! Wall-clock time as the text that logs and state files carry.
//!
//! RFC 3339 in UTC needs one algorithm (days to year, month, day) and no time zone data, so no
//! library is asked for it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as RFC 3339 in UTC with whole seconds: `2026-11-22T07:40:14Z`, the form of a log line.
pub fn now_seconds() -> String {
    seconds(since_epoch().0)
}

/// Now, as RFC 3339 in UTC with nanoseconds: `2026-11-22T07:40:14.123456789Z`, the form of
/// `created` in a container's state.
pub fn now_nanos() -> String {
    let (secs, nanos) = since_epoch();
    rfc3339(secs, nanos)
}

/// `secs` seconds and `nanos` nanoseconds after 1970-01-01T00:00:00Z, as RFC 3339 in UTC.
pub fn rfc3339(secs: u64, nanos: u32) -> String {
    let mut text = seconds(secs);
    text.pop();
    text.push_str(&format!(".{nanos:09}Z"));
    text
}

fn since_epoch() -> (u64, u32) {
    // A clock before 1970 is a broken clock; the epoch is as good an answer as any.
    let passed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (passed.as_secs(), passed.subsec_nanos())
}

fn seconds(secs: u64) -> String {
    let (year, month, day) = civil(secs / 86_400);
    let rest = secs % 86_400;
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the day `days` after 1970-01-01 in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last day of a year, and in eras of
/// 400 years (146,097 days), because the calendar repeats after that.
fn civil(days: u64) -> (u64, u64, u64) {
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // 153 days are the five months from March to July, and again from August to December.
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        // Each line was made with `date -u -d @N +%FT%TZ`.
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(seconds(secs), text, "{secs}");
        }
        assert_eq!(rfc3339(1_735_689_600, 5), "2025-01-01T00:00:00.000000005Z");
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = civil(0);
        for days in 1..146_097 {
            let today = civil(days);
            let (year, month, day) = before;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, day) if day == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
            assert_eq!(today, expected, "day {days}");
            before = today;
        }
    }
}
