//! The table, for people and as JSON.

use crate::plan::{Row, Target, Unit};
use serde_json::{Value, json};

/// A line of the table, measured.
pub struct Line {
    name: String,
    place: &'static str,
    unit: Unit,
    target: Option<Target>,
    ours: Figures,
    original: Option<Figures>,
}

/// What several rounds gave.
#[derive(Clone, Copy)]
struct Figures {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Figures {
    fn of(rounds: &[f64]) -> Figures {
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
    /// The first side is ours.
    pub fn new(row: &Row<'_>, figures: &[Vec<f64>]) -> Line {
        Line {
            name: row.name.clone(),
            place: row.place.name,
            unit: row.unit,
            target: row.target,
            ours: Figures::of(figures.first().map_or(&[], Vec::as_slice)),
            original: figures.get(1).map(|rounds| Figures::of(rounds)),
        }
    }

    fn ratio(&self) -> Option<f64> {
        self.original.map(|original| self.ours.median / original.median)
    }

    fn met(&self) -> Option<bool> {
        match self.target? {
            Target::Below(limit) => Some(self.ours.median < limit),
            Target::TimesOriginal(times) => self.ratio().map(|ratio| ratio >= times),
        }
    }

    fn target_text(&self) -> String {
        match self.target {
            None => String::new(),
            Some(Target::Below(limit)) => format!("< {} {}", number(limit), self.unit.name()),
            Some(Target::TimesOriginal(times)) => format!(">= {times:.1} x"),
        }
    }

    fn cells(&self) -> Vec<String> {
        let met = match self.met() {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        vec![
            self.name.clone(),
            self.place.into(),
            self.unit.name().into(),
            self.ours.text(),
            self.original.map_or_else(String::new, |figures| figures.text()),
            self.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2} x")),
            self.target_text(),
            met.into(),
        ]
    }

    fn json(&self) -> Value {
        let target = match self.target {
            None => Value::Null,
            Some(Target::Below(limit)) => json!({ "below": limit }),
            Some(Target::TimesOriginal(times)) => json!({ "times_original": times }),
        };
        json!({
            "work": self.name, "place": self.place, "unit": self.unit.name(),
            "ours": self.ours.json(), "original": self.original.map(|figures| figures.json()),
            "ratio": self.ratio(), "target": target, "met": self.met(),
        })
    }
}

const HEADER: [&str; 8] = ["work", "place", "unit", "ours", "original", "ours/original", "target", "met"];

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
