//! Curves: entries a second over the queue's depth, the requests at once and the server's latency.

use crate::Bench;
use crate::plan::{Place, Scale, Work};
use crate::table::{Figures, Who};
use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use std::path::Path;
use std::time::Duration;

/// How often each point is measured; the median is drawn.
const ROUNDS: usize = 3;
/// From here on once: it takes a while, and varies less.
const LONG: u32 = 100_000;
/// About how long the original takes for a point, where it waits for the server most of the time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A picture, and what is measured for it.
struct Plot {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    /// Logarithmic upwards, too.
    steep: bool,
    points: Vec<(f64, Work)>,
}

/// Measures and draws all of them.
pub fn draw(bench: &Bench<'_>, scale: &Scale, place: &Place, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--plots {}", dir.display()))?;
    for plot in plots(scale) {
        let mut curves: Vec<(Who, Vec<(f64, f64)>)> = Vec::new();
        for (x, work) in &plot.points {
            let rounds = if work.entries(true) >= Some(LONG) { 1 } else { ROUNDS };
            let mut figures: Vec<(Who, f64)> = Vec::new();
            bench.measure(&format!("{}: {x}", plot.file), work, place, rounds, |round| {
                figures.push((round.who, round.figure));
            })?;
            for (who, _) in &bench.sides {
                let of: Vec<f64> =
                    figures.iter().filter(|(w, _)| w == who).map(|(_, figure)| *figure).collect();
                match curves.iter_mut().find(|(w, _)| w == who) {
                    Some((_, points)) => points.push((*x, Figures::of(&of).median)),
                    None => curves.push((*who, vec![(*x, Figures::of(&of).median)])),
                }
            }
        }
        let path = dir.join(plot.file);
        paint(&plot, &curves, &path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn plots(scale: &Scale) -> Vec<Plot> {
    let replay = |entries, concurrency, latency: Duration| {
        let far =
            if latency.is_zero() { entries } else { (PATIENCE.as_micros() / latency.as_micros()) as u32 };
        Work::Replay { entries, original_entries: far.min(entries), concurrency, latency }
    };
    let depths: Vec<u32> =
        (2..=6).map(|power| 10u32.pow(power)).filter(|depth| *depth <= scale.depth).collect();
    let over_depth = |work: &dyn Fn(u32) -> Work| depths.iter().map(|n| (f64::from(*n), work(*n))).collect();
    let queued = |entries| Work::Enqueue { entries, callers: 1, sync: false, original_sync: false };
    let at_once = [1, 2, 4, 8, 16, 32, 64];
    let far = [1, 2, 5, 10, 20, 50];
    vec![
        Plot {
            file: "enqueue-depth.svg",
            title: "Queueing 1 KiB without fsync, one caller",
            x: "entries queued",
            steep: false,
            points: over_depth(&queued),
        },
        Plot {
            file: "replay-depth.svg",
            title: "Replaying 1 KiB, 16 at once, server on this machine",
            x: "entries waiting",
            steep: false,
            points: over_depth(&|entries| replay(entries, 16, Duration::ZERO)),
        },
        Plot {
            file: "replay-concurrency.svg",
            title: "Replaying 1 KiB, server on this machine",
            x: "requests at once (the original: always one)",
            steep: false,
            points: at_once.map(|n| (n as f64, replay(2_000, n, Duration::ZERO))).to_vec(),
        },
        Plot {
            file: "replay-latency.svg",
            title: "Replaying 1 KiB, 64 at once (the original: one), server some way off",
            x: "the server's latency, ms",
            steep: true,
            points: far.map(|ms| (ms as f64, replay(5_000, 64, Duration::from_millis(ms)))).to_vec(),
        },
    ]
}

fn paint(
    plot: &Plot,
    curves: &[(Who, Vec<(f64, f64)>)],
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || curves.iter().flat_map(|(_, points)| points);
    let fold = |of: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64, first| all().map(of).fold(first, pick);
    let xs = fold(|p| p.0, f64::min, f64::MAX)..fold(|p| p.0, f64::max, 1.0);
    // With room for the legend above.
    let top = fold(|p| p.1, f64::max, 1.0) * 1.35;
    let bottom = fold(|p| p.1, f64::min, top) / 2.0;
    let area = SVGBackend::new(path, (720, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area);
    chart
        .caption(plot.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(40)
        .y_label_area_size(70);
    // Both kinds of axis have types of their own.
    macro_rules! curves_in {
        ($ys:expr) => {{
            let mut chart = chart.build_cartesian_2d(xs.log_scale(), $ys)?;
            let mut mesh = chart.configure_mesh();
            mesh.x_desc(plot.x).y_desc("entries a second").max_light_lines(0);
            mesh.x_label_formatter(&|x| format!("{x:.0}")).y_label_formatter(&|y| format!("{y:.0}"));
            mesh.draw()?;
            for (who, points) in curves {
                let (name, color) = look(*who);
                let style = color.stroke_width(2);
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))?
                    .label(name)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            }
            let mut legend = chart.configure_series_labels();
            let corner = match plot.steep {
                true => SeriesLabelPosition::LowerLeft,
                false => SeriesLabelPosition::UpperRight,
            };
            legend.position(corner).background_style(WHITE).border_style(BLACK.mix(0.3)).draw()?;
        }};
    }
    match plot.steep {
        true => curves_in!((bottom..top).log_scale()),
        false => curves_in!(0.0..top),
    }
    Ok(area.present()?)
}

fn look(who: Who) -> (&'static str, RGBColor) {
    match who {
        Who::Ours => ("outbox", RGBColor(0, 90, 181)),
        Who::Original => ("the original", RGBColor(220, 50, 32)),
        Who::Floor => ("floor", RGBColor(128, 128, 128)),
    }
}
