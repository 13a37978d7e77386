//! The order of the measurements.

use crate::engine::{Engine, Sample};
use crate::{Failure, RunArguments};

/// What was measured of one image: of each engine, in the engines' order.
pub(crate) struct ImageResults {
    pub(crate) image: String,
    pub(crate) engines: Vec<(&'static str, Vec<Sample>)>,
}

/// Pulls every image with every engine, in turns; each round begins with another engine.
pub(crate) fn all(arguments: &RunArguments) -> Result<Vec<ImageResults>, Failure> {
    let mut engines = vec![Engine::connect("ours", &arguments.ours, arguments.pid)?];
    if let (Some(peer), Some(pid)) = (&arguments.peer, arguments.peer_pid) {
        engines.push(Engine::connect("peer", peer, pid)?);
    }
    if let Some(store) = &arguments.skopeo {
        if store.exists() {
            return Err(Failure(format!("{} is there already", store.display())));
        }
        engines.push(Engine::Skopeo { store: store.clone() });
    }
    let mut results = Vec::new();
    for image in &arguments.image {
        for engine in &mut engines {
            engine.remove(image)?;
        }
        let mut samples: Vec<(&'static str, Vec<Sample>)> =
            engines.iter().map(|engine| (engine.name(), Vec::new())).collect();
        for round in 0..arguments.rounds as usize {
            for turn in 0..engines.len() {
                let at = (round + turn) % engines.len();
                let sample = engines[at].measure(image)?;
                eprintln!(
                    "{image} {:>7}: {:.2} s, processor {:.2} s, {} MiB, then {:.2} s to flush",
                    samples[at].0,
                    sample.wall.as_secs_f64(),
                    sample.cpu.as_secs_f64(),
                    sample.peak_kib >> 10,
                    sample.flush.as_secs_f64()
                );
                samples[at].1.push(sample);
            }
        }
        results.push(ImageResults { image: image.clone(), engines: samples });
    }
    Ok(results)
}
