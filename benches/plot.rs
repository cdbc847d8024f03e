//! Line charts as SVG, for light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 616.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 296.0;
/// Colours that can be told apart on white and on black, and by those who see few.
const COLOURS: [&str; 5] = ["#0b7fc7", "#d55e00", "#009e73", "#cc79a7", "#8a7a00"];
/// With more values than this, they are not also drawn as dots.
const MAX_DOTS: usize = 40;

/// Values at settings, or at moments, that are drawn at equal distances.
pub struct Chart<'a> {
    /// What is shown.
    pub title: &'a str,
    /// What it is shown over.
    pub x_title: &'a str,
    /// What the values are counted in.
    pub unit: &'a str,
    /// The vertical axis has this value, whatever the lines have.
    pub base: f64,
    /// A text below each setting; an empty one is left out.
    pub ticks: &'a [String],
    /// The values.
    pub lines: Vec<Line<'a>>,
    /// What happened at some of the settings.
    pub marks: Vec<Mark<'a>>,
}

/// A value for each setting.
pub struct Line<'a> {
    /// What they are.
    pub name: &'a str,
    /// From the first setting on.
    pub values: Vec<f64>,
}

/// Settings at which something happened.
pub struct Mark<'a> {
    /// What happened.
    pub name: &'a str,
    /// The settings' numbers.
    pub at: Vec<usize>,
}

impl<'a> Chart<'a> {
    /// Shares in percent over settings.
    #[must_use]
    pub fn of_percent(
        title: &'a str,
        x_title: &'a str,
        ticks: &'a [String],
        lines: Vec<Line<'a>>,
    ) -> Self {
        Self { title, x_title, unit: "%", base: 100.0, ticks, lines, marks: Vec::new() }
    }

    /// The chart as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let (low, high, step) = self.scale();
        let last = (self.ticks.len().max(2) - 1) as f64;
        let x = |index: usize| LEFT + (RIGHT - LEFT) * index as f64 / last;
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\">\n<title>{}</title>\n<style>\n\
             text {{ font: 13px sans-serif; fill: #333 }}\n\
             .title {{ font-size: 15px; font-weight: bold }}\n\
             .grid {{ stroke: #8886; stroke-width: 1 }}\n\
             .page {{ fill: #fff }}\n\
             @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} .page {{ fill: #111 }} }}\n\
             </style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n",
            escape(self.title)
        );
        text(&mut out, LEFT, 24.0, "class=\"title\"", self.title);
        let mut value = low;
        while value <= high + step / 2.0 {
            let at = y(value);
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
            text(
                &mut out,
                LEFT - 8.0,
                at + 4.0,
                "text-anchor=\"end\"",
                &format!("{value:.0} {}", self.unit),
            );
            value += step;
        }
        for (index, tick) in self.ticks.iter().enumerate().filter(|(_, tick)| !tick.is_empty()) {
            text(&mut out, x(index), BOTTOM + 20.0, "text-anchor=\"middle\"", tick);
        }
        let middle = (LEFT + RIGHT) / 2.0;
        text(&mut out, middle, BOTTOM + 44.0, "text-anchor=\"middle\"", self.x_title);
        let mut legend = LEFT;
        let mut colours = COLOURS.iter().cycle();
        let mut name = |out: &mut String, colour: &str, stroke: &str, name: &str| {
            let _ = writeln!(
                out,
                "<path stroke=\"{colour}\" stroke-width=\"3\" d=\"M{legend} {stroke}\"/>"
            );
            text(out, legend + 24.0, 48.0, "", name);
            legend += 44.0 + 7.0 * name.len() as f64;
        };
        for (line, colour) in self.lines.iter().zip(&mut colours) {
            name(&mut out, colour, "44h18", line.name);
            let points = line.values.iter().enumerate();
            let points: Vec<String> =
                points.map(|(index, &value)| format!("{:.1},{:.1}", x(index), y(value))).collect();
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                points.join(" ")
            );
            if line.values.len() > MAX_DOTS {
                continue;
            }
            for (index, &value) in line.values.iter().enumerate() {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\">\
                     <title>{}: {value:.1} {}</title></circle>",
                    x(index),
                    y(value),
                    escape(line.name),
                    self.unit
                );
            }
        }
        for (mark, colour) in self.marks.iter().zip(colours) {
            name(&mut out, colour, "38v12", mark.name);
            for &index in &mark.at {
                let at = x(index);
                let _ = writeln!(
                    out,
                    "<path stroke=\"{colour}\" stroke-width=\"2\" d=\"M{at:.1} {BOTTOM}v-12\"/>"
                );
            }
        }
        out + "</svg>\n"
    }

    /// The axis' ends and the distance of its lines: round numbers around all values.
    fn scale(&self) -> (f64, f64, f64) {
        let values = || self.lines.iter().flat_map(|line| line.values.iter().copied());
        let least = values().fold(f64::INFINITY, f64::min).min(self.base);
        let most = values().fold(0.0, f64::max);
        let steps = (0..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
        let step = steps.into_iter().find(|step| (most - least) / step <= 6.0);
        let step = step.unwrap_or(most - least);
        let (low, high) = ((least / step).floor() * step, (most / step).ceil() * step);
        (low, high.max(low + step), step)
    }
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escape(text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_has_round_numbers_around_all_values_and_its_base() {
        let chart = |base, values: &[f64]| Chart {
            title: "",
            x_title: "",
            unit: "",
            base,
            ticks: &[],
            lines: vec![Line { name: "", values: values.into() }],
            marks: Vec::new(),
        };
        assert_eq!(chart(0.0, &[612.0, 480.0]).scale(), (0.0, 800.0, 200.0));
        assert_eq!(chart(100.0, &[97.0, 100.5]).scale(), (97.0, 101.0, 1.0));
    }
}
