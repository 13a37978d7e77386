//! The moment a log line carries: RFC 3339 with nine digits and the zone's offset.

use rustix::time::{ClockId, clock_gettime};

/// Length of a written moment in bytes.
pub(crate) const STAMP_LENGTH: usize = 35;

/// A zone's rules change its offset on a quarter of an hour, so an offset looked up once holds until the next one.
const OFFSET_HOLDS_SECONDS: i64 = 900;

/// Reads the time and writes it out.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Which quarter of an hour the offset was looked up in.
    quarter: i64,
    offset_seconds: i64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { quarter: i64::MIN, offset_seconds: 0 }
    }

    /// The present moment in the zone of this process.
    pub(crate) fn stamp(&mut self) -> [u8; STAMP_LENGTH] {
        let now = clock_gettime(ClockId::Realtime);
        let quarter = now.tv_sec.div_euclid(OFFSET_HOLDS_SECONDS);
        if quarter != self.quarter {
            self.quarter = quarter;
            self.offset_seconds = sys::supervise::local_offset_seconds(now.tv_sec);
        }
        write_stamp(now.tv_sec, now.tv_nsec, self.offset_seconds)
    }
}

fn write_stamp(unix_seconds: i64, nanoseconds: i64, offset_seconds: i64) -> [u8; STAMP_LENGTH] {
    let mut text = *b"0000-00-00T00:00:00.000000000+00:00";
    let local = unix_seconds.saturating_add(offset_seconds);
    let (year, month, day) = civil_date(local.div_euclid(86_400));
    let second = local.rem_euclid(86_400);
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second / 3600);
    digits(&mut text[14..16], second / 60 % 60);
    digits(&mut text[17..19], second % 60);
    digits(&mut text[20..29], nanoseconds);
    if offset_seconds < 0 {
        text[29] = b'-';
    }
    digits(&mut text[30..32], offset_seconds.abs() / 3600);
    digits(&mut text[33..35], offset_seconds.abs() / 60 % 60);
    text
}

fn digits(place: &mut [u8], mut value: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value.rem_euclid(10)).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar.
///
/// Counts in years that begin in March, so that the leap day is the last of its year, and in eras of 400 years, after
/// which the calendar repeats.
fn civil_date(day: i64) -> (i64, i64, i64) {
    const DAYS_IN_ERA: i64 = 146_097;
    // 1970-01-01 is this many days after 0000-03-01.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(DAYS_IN_ERA), day.rem_euclid(DAYS_IN_ERA));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, twice over: 153 days in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_kubelet_reads_them() {
        for (seconds, nanoseconds, offset, text) in [
            (0, 0, 0, "1970-01-01T00:00:00.000000000+00:00"),
            (951_782_399, 999_999_999, 0, "2000-02-28T23:59:59.999999999+00:00"),
            (951_782_400, 1, 0, "2000-02-29T00:00:00.000000001+00:00"),
            (951_868_800, 1, 0, "2000-03-01T00:00:00.000000001+00:00"),
            (1_795_165_442, 304_460_994, 3600, "2026-11-20T10:04:02.304460994+01:00"),
            (1_795_165_442, 304_460_994, -12_600, "2026-11-20T05:34:02.304460994-03:30"),
            (4_102_444_799, 0, 0, "2099-12-31T23:59:59.000000000+00:00"),
            (-1, 0, 0, "1969-12-31T23:59:59.000000000+00:00"),
        ] {
            assert_eq!(std::str::from_utf8(&write_stamp(seconds, nanoseconds, offset)).unwrap(), text);
        }
    }

    #[test]
    fn every_day_of_an_era_follows_the_one_before() {
        let mut last = civil_date(-1);
        for day in 0..146_097 {
            let date = civil_date(day);
            let is_next_day = date == (last.0, last.1, last.2 + 1);
            let is_next_month = date == (last.0, last.1 + 1, 1) && last.2 >= 28;
            let is_next_year = date == (last.0 + 1, 1, 1) && (last.1, last.2) == (12, 31);
            assert!(is_next_day || is_next_month || is_next_year, "{last:?} {date:?}");
            last = date;
        }
        assert_eq!(civil_date(146_096), (2369, 12, 31));
    }
}
