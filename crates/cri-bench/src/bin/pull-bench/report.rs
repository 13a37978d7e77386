//! Medians, minima and ratios to the best of the others.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use crate::engine::Sample;
use crate::run::ImageResults;

/// A figure of a pull.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> f64,
}

const FIGURES: [Figure; 4] = [
    Figure { name: "pull, s", of: |sample| sample.wall.as_secs_f64() },
    Figure { name: "pull and flush, s", of: |sample| (sample.wall + sample.flush).as_secs_f64() },
    Figure { name: "processor, s", of: |sample| sample.cpu.as_secs_f64() },
    Figure {
        name: "peak memory, MiB",
        of: |sample| f64::from(u32::try_from(sample.peak_kib).unwrap_or(u32::MAX)) / 1024.0,
    },
];
const WALL: usize = 0;
const MEMORY: usize = 3;

/// Smallest, middle and largest.
fn summary(samples: &[Sample], of: fn(&Sample) -> f64) -> Option<(f64, f64, f64)> {
    let mut sorted: Vec<f64> = samples.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max, count) = (sorted.first()?, sorted.last()?, sorted.len());
    Some((min, f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]), max))
}

/// Ours divided by the best of the others: of minima, of medians.
fn ratios(results: &ImageResults, figure: &Figure) -> Option<(f64, f64)> {
    let all: Vec<_> =
        results.engines.iter().map(|(_, samples)| summary(samples, figure.of)).collect::<Option<Vec<_>>>()?;
    let (ours, others) = all.split_first()?;
    let best = |pick: fn(&(f64, f64, f64)) -> f64| others.iter().map(pick).min_by(f64::total_cmp);
    Some((ours.0 / best(|one| one.0)?, ours.1 / best(|one| one.1)?))
}

/// For people: a line for each image and figure.
pub(crate) fn table(results: &[ImageResults]) -> String {
    let mut text = String::new();
    for image in results {
        let rounds = image.engines.first().map_or(0, |(_, samples)| samples.len());
        let _ = writeln!(text, "\n{}, {rounds} rounds: minimum / median / maximum", image.image);
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let mut head = vec!["FIGURE".to_owned()];
        head.extend(image.engines.iter().map(|(name, _)| (*name).to_owned()));
        head.extend(["ours/best of min".to_owned(), "of median".to_owned()]);
        table.set_header(head);
        for figure in &FIGURES {
            let mut row = vec![figure.name.to_owned()];
            row.extend(image.engines.iter().map(|(_, samples)| match summary(samples, figure.of) {
                Some((min, median, max)) => format!("{min:.2} / {median:.2} / {max:.2}"),
                None => "-".to_owned(),
            }));
            match ratios(image, figure) {
                Some((min, median)) => row.extend([format!("{min:.2}"), format!("{median:.2}")]),
                None => row.extend(["-".to_owned(), "-".to_owned()]),
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let _ = writeln!(text, "{table}");
    }
    text
}

/// A sentence for each limit that is exceeded, or that nothing was measured for.
pub(crate) fn judge(results: &[ImageResults], ratio_max: Option<f64>, memory_max_mib: Option<u64>) -> Vec<String> {
    let mut above = Vec::new();
    for image in results {
        if let Some(limit) = ratio_max {
            match ratios(image, &FIGURES[WALL]) {
                Some((_, ratio)) if ratio <= limit => {}
                Some((_, ratio)) => {
                    above.push(format!("{}: {ratio:.2} of the best peer is above {limit}", image.image))
                }
                None => above.push(format!("{}: no peer was measured", image.image)),
            }
        }
        let peak = image.engines.first().and_then(|(_, samples)| summary(samples, FIGURES[MEMORY].of));
        if let (Some(limit), Some((_, _, peak))) = (memory_max_mib, peak)
            && peak > f64::from(u32::try_from(limit).unwrap_or(u32::MAX))
        {
            above.push(format!("{}: {peak:.0} MiB of memory are above {limit}", image.image));
        }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sample(seconds: u64) -> Sample {
        let time = Duration::from_secs(seconds);
        Sample { wall: time, cpu: time * 2, peak_kib: seconds * 10_240, flush: Duration::from_secs(1) }
    }

    fn results(engines: &[(&'static str, &[u64])]) -> Vec<ImageResults> {
        let engines = engines.iter().map(|(name, all)| (*name, all.iter().map(|one| sample(*one)).collect())).collect();
        vec![ImageResults { image: "large".to_owned(), engines }]
    }

    #[test]
    fn ratios_are_to_the_best_of_the_others() {
        let results = results(&[("ours", &[3, 2, 4]), ("peer", &[9, 8, 9]), ("skopeo", &[6, 9, 5])]);
        let text = table(&results);
        let row: Vec<&str> = text.lines().find(|line| line.contains("processor")).unwrap().split_whitespace().collect();
        assert_eq!(row[2..7], ["4.00", "/", "6.00", "/", "8.00"]);
        assert_eq!(row[row.len() - 2..], ["0.40", "0.50"]);
        assert_eq!(judge(&results, Some(0.5), Some(40)), Vec::<String>::new());
        assert_eq!(judge(&results, Some(0.49), Some(39)).len(), 2);
    }

    #[test]
    fn a_limit_without_a_peer_is_not_kept() {
        let results = results(&[("ours", &[1])]);
        assert_eq!(judge(&results, Some(0.5), None).len(), 1);
        assert!(table(&results).contains("1.00 / 1.00 / 1.00"));
    }
}
