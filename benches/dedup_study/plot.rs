//! Line charts as SVG, for light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 616.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 296.0;
/// Colours that can be told apart on white and on black, and by those who see few.
const COLOURS: [&str; 3] = ["#0b7fc7", "#d55e00", "#009e73"];

/// Shares in percent over settings that are drawn at equal distances.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x_title: &'a str,
    pub(crate) ticks: &'a [String],
    pub(crate) lines: Vec<Line<'a>>,
}

pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<f64>,
}

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
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
            text(&mut out, LEFT - 8.0, at + 4.0, "text-anchor=\"end\"", &format!("{value:.0} %"));
            value += step;
        }
        for (index, tick) in self.ticks.iter().enumerate() {
            text(&mut out, x(index), BOTTOM + 20.0, "text-anchor=\"middle\"", tick);
        }
        let middle = (LEFT + RIGHT) / 2.0;
        text(&mut out, middle, BOTTOM + 44.0, "text-anchor=\"middle\"", self.x_title);
        let mut legend = LEFT;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let _ = writeln!(
                out,
                "<path stroke=\"{colour}\" stroke-width=\"3\" d=\"M{legend} 44h18\"/>"
            );
            text(&mut out, legend + 24.0, 48.0, "", line.name);
            legend += 44.0 + 7.0 * line.name.len() as f64;
            let points = line.values.iter().enumerate();
            let points: Vec<String> =
                points.map(|(index, &value)| format!("{:.1},{:.1}", x(index), y(value))).collect();
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                points.join(" ")
            );
            for (index, &value) in line.values.iter().enumerate() {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\">\
                     <title>{}: {value:.1} %</title></circle>",
                    x(index),
                    y(value),
                    escape(line.name)
                );
            }
        }
        out + "</svg>\n"
    }

    /// The axis' ends and the distance of its lines: round numbers around all values.
    fn scale(&self) -> (f64, f64, f64) {
        let values = || self.lines.iter().flat_map(|line| line.values.iter().copied());
        let least = values().fold(f64::INFINITY, f64::min).min(100.0);
        let most = values().fold(0.0, f64::max);
        let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
        let fits = |step: &f64| (most - least) / step <= 6.0;
        let step = steps.into_iter().find(fits).unwrap_or(most - least);
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
