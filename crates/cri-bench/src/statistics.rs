//! Minimum, median and 95th percentile.

use serde::Serialize;

/// What many samples of one thing come to, in the samples' unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many there were.
    pub(crate) samples: usize,
    /// The smallest.
    pub(crate) min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The smallest sample that at least 95 of 100 do not exceed (nearest rank).
    pub(crate) p95: f64,
}

/// Summary of the samples; nothing for none.
pub(crate) fn summarize(samples: &[f64]) -> Option<Summary> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (&min, count) = (sorted.first()?, sorted.len());
    let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
    // Whole numbers throughout: the ceiling of 0.95 * count, at least 1.
    let rank = (count * 95).div_ceil(100);
    Some(Summary { samples: count, min, median, p95: sorted[rank - 1] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let none: &[f64] = &[];
        let cases = [
            (none, None),
            (&[7.0], Some((7.0, 7.0, 7.0))),
            (&[2.0, 1.0], Some((1.0, 1.5, 2.0))),
            (&[3.0, 1.0, 2.0], Some((1.0, 2.0, 3.0))),
            (&[4.0, 1.0, 3.0, 2.0], Some((1.0, 2.5, 4.0))),
            (&hundred, Some((1.0, 50.5, 95.0))),
        ];
        for (samples, expected) in cases {
            let got = summarize(samples).map(|s| (s.min, s.median, s.p95));
            assert_eq!(got, expected, "{samples:?}");
        }
    }
}
