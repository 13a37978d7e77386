//! What is printed at the end.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::arguments::Limit;
use crate::error::BenchError;
use crate::measure::{METRICS, Metric, Results};
use crate::statistics::{Summary, summarize};

/// One metric on every engine, ours first.
struct Row {
    metric: Metric,
    summaries: Vec<Option<Summary>>,
}

impl Row {
    /// Ours divided by the peer's median, where both were measured and the peer's is not zero.
    fn ratio(&self) -> Option<f64> {
        self.ratio_of(|summary| summary.median)
    }

    /// The same of the smallest samples, which other load on the machine disturbs least.
    fn ratio_of_min(&self) -> Option<f64> {
        self.ratio_of(|summary| summary.min)
    }

    fn ratio_of(&self, figure: impl Fn(&Summary) -> f64) -> Option<f64> {
        match &self.summaries[..] {
            [Some(ours), Some(peer)] if figure(peer) > 0.0 => Some(figure(ours) / figure(peer)),
            _ => None,
        }
    }
}

fn rows(results: &Results) -> Vec<Row> {
    METRICS
        .iter()
        .map(|&metric| Row {
            metric,
            summaries: results
                .engines
                .iter()
                .map(|engine| engine.samples.get(metric.name).and_then(|samples| summarize(samples)))
                .collect(),
        })
        .filter(|row| row.summaries.iter().any(Option::is_some))
        .collect()
}

/// For people.
pub(crate) fn table(results: &Results) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["METRIC".to_owned(), "UNIT".to_owned()];
    for engine in &results.engines {
        for column in ["min", "median", "p95"] {
            header.push(format!("{} {column}", engine.name));
        }
    }
    if results.engines.len() == 2 {
        header.push("ours/peer".to_owned());
        header.push("of min".to_owned());
    }
    header.push("WHAT".to_owned());
    table.set_header(header);
    for row in rows(results) {
        let mut cells = vec![Cell::new(row.metric.name), Cell::new(row.metric.unit)];
        let number = |value: Option<f64>, digits: usize| {
            let text = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
            Cell::new(text).set_alignment(CellAlignment::Right)
        };
        let digits = if row.metric.unit == "KiB" { 0 } else { 2 };
        for summary in &row.summaries {
            cells.push(number(summary.map(|s| s.min), digits));
            cells.push(number(summary.map(|s| s.median), digits));
            cells.push(number(summary.map(|s| s.p95), digits));
        }
        if results.engines.len() == 2 {
            cells.push(number(row.ratio(), 2));
            cells.push(number(row.ratio_of_min(), 2));
        }
        cells.push(Cell::new(row.metric.meaning));
        table.add_row(cells);
    }
    let mut text = String::new();
    for engine in &results.engines {
        text.push_str(&format!("{}: {}", engine.name, engine.version));
        if let Some(helpers) = engine.helpers {
            text.push_str(&format!(", {helpers} monitors or shims for {} pods", results.pods));
        }
        text.push('\n');
    }
    let network = if results.host_network { "host network" } else { "pod network" };
    text.push_str(&format!("{} rounds, {} under way at once, {network}\n\n", results.rounds, results.parallel));
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}

/// For programs: `{engines: [{name, version, helpers}], rounds, parallel, pods, host_network, metrics: {NAME: {unit,
/// ours: {samples, min, median, p95}, peer, ratio, ratio_of_min}}}`; what was not measured is null.
pub(crate) fn json(results: &Results) -> Value {
    let metrics: serde_json::Map<String, Value> = rows(results)
        .into_iter()
        .map(|row| {
            let mut metric = json!({"unit": row.metric.unit, "ratio": row.ratio(), "ratio_of_min": row.ratio_of_min()});
            for (engine, summary) in results.engines.iter().zip(&row.summaries) {
                metric[engine.name] = json!(summary);
            }
            (row.metric.name.to_owned(), metric)
        })
        .collect();
    let engines: Vec<Value> = results
        .engines
        .iter()
        .map(|engine| json!({"name": engine.name, "version": engine.version, "helpers": engine.helpers}))
        .collect();
    json!({
        "engines": engines,
        "rounds": results.rounds,
        "parallel": results.parallel,
        "pods": results.pods,
        "host_network": results.host_network,
        "metrics": metrics,
    })
}

/// A sentence for each limit that a ratio is above.
pub(crate) fn judge(results: &Results, limits: &[Limit]) -> Result<Vec<String>, BenchError> {
    let rows = rows(results);
    let mut above = Vec::new();
    for limit in limits {
        let ratio = rows
            .iter()
            .find(|row| row.metric.name == limit.metric)
            .and_then(Row::ratio)
            .ok_or_else(|| BenchError::NotMeasured { metric: limit.metric.clone() })?;
        if ratio > limit.ratio {
            above.push(format!("{}: ratio {ratio:.2} is above {}", limit.metric, limit.ratio));
        }
    }
    Ok(above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::EngineResults;

    fn results() -> Results {
        let engine = |name, start: &[f64], rss: &[f64]| EngineResults {
            name,
            version: format!("{name} 1"),
            samples: [("start", start.to_vec()), ("rss", rss.to_vec())].into(),
            helpers: Some(3),
        };
        Results {
            engines: vec![engine("ours", &[10.0, 30.0, 20.0], &[]), engine("peer", &[50.0, 40.0], &[2048.0])],
            rounds: 3,
            parallel: 0,
            pods: 3,
            host_network: false,
        }
    }

    #[test]
    fn tables() {
        let text = table(&results());
        assert!(text.starts_with("ours: ours 1, 3 monitors or shims for 3 pods\npeer: peer 1"), "{text}");
        let row = text.lines().find(|line| line.trim_start().starts_with("start ")).unwrap();
        let words: Vec<&str> = row.split_whitespace().take(10).collect();
        assert_eq!(words, ["start", "ms", "10.00", "20.00", "30.00", "40.00", "45.00", "50.00", "0.44", "0.25"]);
        let row = text.lines().find(|line| line.trim_start().starts_with("rss ")).unwrap();
        let words: Vec<&str> = row.split_whitespace().take(9).collect();
        assert_eq!(words, ["rss", "KiB", "-", "-", "-", "2048", "2048", "2048", "-"]);
        assert!(!text.contains("exec"));
    }

    #[test]
    fn documents() {
        let value = json(&results());
        assert_eq!(value["metrics"]["start"]["ours"]["median"], 20.0);
        assert_eq!(value["metrics"]["start"]["ratio"], 20.0 / 45.0);
        assert_eq!(value["metrics"]["start"]["ratio_of_min"], 0.25);
        assert_eq!(value["metrics"]["rss"]["ours"], Value::Null);
        assert_eq!(value["metrics"]["rss"]["ratio"], Value::Null);
        assert_eq!(value["engines"][1]["version"], "peer 1");
    }

    #[test]
    fn limits() {
        let limit = |metric: &str, ratio| Limit { metric: metric.to_owned(), ratio };
        assert!(judge(&results(), &[limit("start", 0.45)]).unwrap().is_empty());
        assert_eq!(judge(&results(), &[limit("start", 0.4)]).unwrap(), ["start: ratio 0.44 is above 0.4"]);
        for metric in ["rss", "exec"] {
            let error = judge(&results(), &[limit(metric, 1.0)]).unwrap_err();
            assert!(error.to_string().contains("was not measured"), "{error}");
        }
    }
}
