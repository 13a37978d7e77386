//! How far a pull has come, on a terminal: a bar where the engine tells, a clock where it does not.

use std::io::IsTerminal;
use std::time::Duration;

use cri_api::beyond::{PullProgress, PullProgressRequest};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::Client;

/// Smooth to the eye, cheap on a slow line.
const TICK: Duration = Duration::from_millis(120);
const CLOCK: &str = "{spinner} {msg} {elapsed}";
// On a narrow line it is the name that is cut.
const BAR: &str = "{spinner} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left {wide_msg}";

/// A line that shows that something is under way, while it exists; nothing unless standard error is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    has_total: bool,
}

impl Progress {
    /// Begins to show.
    pub(crate) fn begin(what: String) -> Self {
        let bar = ProgressBar::new_spinner();
        if std::io::stderr().is_terminal() {
            bar.set_style(style(CLOCK));
            bar.set_message(what.clone());
            bar.enable_steady_tick(TICK);
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, what, has_total: false }
    }

    /// Shows how far the engine is with the image, until it is asked no more. An engine that cannot tell is asked once.
    pub(crate) async fn follow_pull(&mut self, client: &Client, image: &str) {
        if self.bar.is_hidden() {
            return;
        }
        let question = PullProgressRequest { image: image.to_owned() };
        while let Ok(answer) = client.pull_progress(question.clone()).await {
            if let Some(progress) = answer.progress {
                self.show(progress);
            }
            tokio::time::sleep(TICK).await;
        }
    }

    fn show(&mut self, progress: PullProgress) {
        if progress.bytes_total == 0 {
            return;
        }
        self.bar.set_length(progress.bytes_total);
        self.bar.set_position(progress.bytes);
        let places = places(&progress);
        let from = if places.is_empty() { String::new() } else { format!(" from {}", places.join(", ")) };
        self.bar.set_message(format!("{} of {} layers, {}{from}", progress.layers, progress.layers_total, self.what));
        if !self.has_total {
            self.has_total = true;
            self.bar.set_style(style(BAR));
            // Speed and time left count from here, not from the search for the manifest.
            self.bar.reset_eta();
        }
    }
}

/// Where layers come from now that the image's name does not tell: mirrors, each once.
fn places(progress: &PullProgress) -> Vec<&str> {
    let mut places: Vec<&str> = Vec::new();
    for layer in progress.each.iter().filter(|layer| layer.state == "fetching") {
        let host = layer.place.split('/').next().unwrap_or_default();
        if !host.is_empty() && !places.contains(&host) {
            places.push(host);
        }
    }
    places
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use cri_api::beyond::LayerProgress;

    use super::*;

    #[test]
    fn the_templates_are_understood() {
        for template in [CLOCK, BAR] {
            ProgressStyle::with_template(template).expect("a template");
        }
    }

    #[test]
    fn the_bar_follows_what_the_engine_says() {
        let mut progress = Progress::begin("pulling a".to_owned());
        progress.show(PullProgress::default());
        assert!(!progress.has_total, "before the manifest there is nothing to measure by");
        let each = ["done", "fetching", "fetching"].map(|state| LayerProgress {
            state: state.to_owned(),
            place: format!("{state}.example:5000/a"),
            ..LayerProgress::default()
        });
        let each = each.to_vec();
        progress.show(PullProgress {
            bytes: 5,
            bytes_total: 30,
            layers: 1,
            layers_total: 2,
            each,
            ..Default::default()
        });
        assert_eq!((progress.bar.position(), progress.bar.length()), (5, Some(30)));
        assert_eq!(progress.bar.message(), "1 of 2 layers, pulling a from fetching.example:5000");
    }
}
