//! The table, for people and as JSON.

use crate::plan::{Row, Target, Unit};
use serde_json::{Value, json};

/// A line of the table, measured.
pub struct Line {
    name: String,
    place: &'static str,
    unit: Unit,
    targets: &'static [Target],
    rounds: Vec<Measured>,
}

/// What one round gave.
pub struct Measured {
    pub who: Who,
    pub figure: f64,
    /// Microseconds of processor time for each entry, of the whole process: for the work of another, the process that did it.
    pub cpu: Option<f64>,
    /// The peak of its memory, in MiB.
    pub peak: Option<f64>,
}

/// Whose figures they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Ours,
    Original,
    Floor,
}

/// What several rounds gave.
#[derive(Clone, Copy)]
pub struct Figures {
    pub median: f64,
    least: f64,
    greatest: f64,
}

impl Figures {
    /// Of these rounds.
    pub fn of(rounds: &[f64]) -> Figures {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        let median = (at(last / 2) + at(sorted.len() / 2)) / 2.0;
        Figures { median, least: at(0), greatest: at(last) }
    }

    fn text(&self) -> String {
        format!("{} [{}-{}]", number(self.median), number(self.least), number(self.greatest))
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.greatest })
    }
}

/// Thousands are separated; a fraction is shown of small numbers only.
fn number(value: f64) -> String {
    let digits = if value < 100.0 { 1 } else { 0 };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').map_or((plain.as_str(), None), |(w, f)| (w, Some(f)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{grouped}.{fraction}"),
        None => grouped,
    }
}

impl Line {
    /// Nothing measured yet.
    pub fn new(row: &Row<'_>) -> Line {
        let (name, place) = (row.name.clone(), row.place.name);
        Line { name, place, unit: row.unit, targets: row.targets, rounds: Vec::new() }
    }

    /// Adds what one round gave.
    pub fn add(&mut self, round: Measured) {
        self.rounds.push(round);
    }

    fn of(&self, who: Who) -> Option<Figures> {
        self.all(who, |round| Some(round.figure))
    }

    fn all(&self, who: Who, what: impl Fn(&Measured) -> Option<f64>) -> Option<Figures> {
        let rounds: Vec<f64> = self.rounds.iter().filter(|round| round.who == who).filter_map(what).collect();
        (!rounds.is_empty()).then(|| Figures::of(&rounds))
    }

    /// The medians of all three, in one cell.
    fn each(&self, what: impl Fn(&Measured) -> Option<f64> + Copy) -> String {
        let text = |who| self.all(who, what).map_or_else(|| "-".into(), |figures| number(figures.median));
        [Who::Ours, Who::Original, Who::Floor].map(text).join(" / ")
    }

    /// Ours in terms of somebody else's.
    fn ratio(&self, who: Who) -> Option<f64> {
        Some(self.of(Who::Ours)?.median / self.of(who)?.median)
    }

    /// Whether a target is met; none where it is not known.
    fn met(&self, target: &Target) -> Option<bool> {
        match target {
            Target::Below(limit) => self.of(Who::Ours).map(|ours| ours.median < *limit),
            Target::TimesOriginal(times) => self.ratio(Who::Original).map(|ratio| ratio >= *times),
            Target::TimesFloor(times) => self.ratio(Who::Floor).map(|ratio| ratio >= *times),
        }
    }

    fn target_text(&self, target: &Target) -> String {
        match target {
            Target::Below(limit) => format!("< {} {}", number(*limit), self.unit.name()),
            Target::TimesOriginal(times) => format!(">= {times:.1} x original"),
            Target::TimesFloor(times) => format!(">= {times:.1} x floor"),
        }
    }

    fn cells(&self) -> Vec<String> {
        let met = |target| match self.met(target) {
            None => "-",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        let targets: Vec<String> = self.targets.iter().map(|target| self.target_text(target)).collect();
        let met: Vec<&str> = self.targets.iter().map(met).collect();
        let text = |who| self.of(who).map_or_else(String::new, |figures| figures.text());
        let ratio = |who| self.ratio(who).map_or_else(String::new, |ratio| format!("{ratio:.2} x"));
        vec![
            self.name.clone(),
            self.place.into(),
            self.unit.name().into(),
            text(Who::Ours),
            text(Who::Original),
            ratio(Who::Original),
            text(Who::Floor),
            ratio(Who::Floor),
            targets.join(", "),
            met.join(", "),
            self.each(|round| round.cpu),
            self.each(|round| round.peak),
        ]
    }

    fn json(&self) -> Value {
        let target = |target| match target {
            Target::Below(limit) => json!({ "below": limit, "met": self.met(&target) }),
            Target::TimesOriginal(times) => json!({ "times_original": times, "met": self.met(&target) }),
            Target::TimesFloor(times) => json!({ "times_floor": times, "met": self.met(&target) }),
        };
        let targets: Vec<Value> = self.targets.iter().copied().map(target).collect();
        let figures = |who| {
            let all = |what: fn(&Measured) -> Option<f64>| self.all(who, what).map(|figures| figures.json());
            let mut of = all(|round| Some(round.figure))?;
            if let Some(of) = of.as_object_mut() {
                of.insert("cpu_us".into(), all(|round| round.cpu).into());
                of.insert("peak_mib".into(), all(|round| round.peak).into());
            }
            Some(of)
        };
        json!({
            "work": self.name, "place": self.place, "unit": self.unit.name(),
            "ours": figures(Who::Ours), "original": figures(Who::Original), "floor": figures(Who::Floor),
            "ratio": self.ratio(Who::Original), "floor_ratio": self.ratio(Who::Floor),
            "targets": targets,
        })
    }
}

const HEADER: [&str; 12] = [
    "work",
    "place",
    "unit",
    "ours",
    "original",
    "ours/original",
    "floor",
    "ours/floor",
    "target",
    "met",
    "CPU us",
    "peak MiB",
];

/// The table and its notes, for people.
pub fn text(lines: &[Line], notes: &[String]) -> String {
    let mut table: Vec<Vec<String>> = vec![HEADER.map(String::from).to_vec()];
    table.extend(lines.iter().map(Line::cells));
    let width =
        |column: usize| table.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    table.insert(1, rule);
    let mut text = String::new();
    for row in &table {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text.push('\n');
    for note in notes {
        text += note;
        text.push('\n');
    }
    text
}

/// The same for programs.
pub fn json(lines: &[Line], notes: &[String]) -> Value {
    json!({ "lines": lines.iter().map(Line::json).collect::<Vec<_>>(), "notes": notes })
}
