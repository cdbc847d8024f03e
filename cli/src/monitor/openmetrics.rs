//! The text format of OpenMetrics 1.0, as much of it as is told here: families of samples with labels.

use std::fmt::Write;

use siltstone_nbd::Latencies;

/// A page that is being written.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

/// What kind of metric a family is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Goes up, from the server's start.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A family whose samples are being written.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    kind: Kind,
}

impl Page {
    /// Begins a family. `name` ends with its unit, if it has one that is counted in bytes, seconds or shares,
    /// and without `_total`.
    pub(super) fn family<'a>(&'a mut self, kind: Kind, name: &'a str, help: &str) -> Family<'a> {
        let word = if kind == Kind::Counter { "counter" } else { "gauge" };
        self.describe(word, name, help);
        Family { text: &mut self.text, name, kind }
    }

    /// A family with one sample that has no labels.
    pub(super) fn single(&mut self, kind: Kind, name: &str, help: &str, value: impl Value) {
        self.family(kind, name, help).sample(&[], value);
    }

    /// A family of histograms of latencies, each with its labels.
    pub(super) fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = ([(&'a str, &'a str); 2], &'a Latencies)>,
    ) {
        self.describe("histogram", name, help);
        for (labels, latencies) in samples {
            let labels_text = labels_text(&labels);
            let text = &mut self.text;
            for (bound_us, count) in latencies.octaves() {
                let bound = bound_us as f64 / 1e6;
                line(text, &format!("{name}_bucket{{{labels_text},le=\"{bound:?}\"}}"), count);
            }
            let count = latencies.count();
            line(text, &format!("{name}_bucket{{{labels_text},le=\"+Inf\"}}"), count);
            line(text, &format!("{name}_count{{{labels_text}}}"), count);
            line(text, &format!("{name}_sum{{{labels_text}}}"), latencies.sum_seconds());
        }
    }

    fn describe(&mut self, word: &str, name: &str, help: &str) {
        self.text += &format!("# TYPE {name} {word}\n");
        let units = ["seconds", "bytes", "ratio"];
        let unit = name.rsplit('_').next().filter(|last| units.contains(last));
        if let Some(unit) = unit {
            self.text += &format!("# UNIT {name} {unit}\n");
        }
        self.text += &format!("# HELP {name} {}\n", escaped(help));
    }

    /// The whole page.
    pub(super) fn finish(mut self) -> String {
        self.text += "# EOF\n";
        self.text
    }
}

impl Family<'_> {
    /// Writes a sample.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Value) {
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        let name = self.name;
        let name = match labels {
            [] => format!("{name}{suffix}"),
            labels => format!("{name}{suffix}{{{}}}", labels_text(labels)),
        };
        line(self.text, &name, value);
    }
}

fn line(text: &mut String, name: &str, value: impl Value) {
    *text += name;
    text.push(' ');
    value.write(text);
    text.push('\n');
}

fn labels_text(labels: &[(&str, &str)]) -> String {
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    labels.join(",")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A sample's value.
pub(super) trait Value {
    /// Appends it.
    fn write(&self, text: &mut String);
}

impl Value for u64 {
    fn write(&self, text: &mut String) {
        // Writing to a text does not fail.
        let _ = write!(text, "{self}");
    }
}

impl Value for usize {
    fn write(&self, text: &mut String) {
        (*self as u64).write(text);
    }
}

impl Value for bool {
    fn write(&self, text: &mut String) {
        u64::from(*self).write(text);
    }
}

impl Value for f64 {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use siltstone_nbd::Histogram;

    use super::*;

    #[test]
    fn families_have_a_type_a_unit_and_help_and_labels_are_escaped() {
        let mut page = Page::default();
        page.single(Kind::Gauge, "a_bytes", "How much.", 7u64);
        let mut family = page.family(Kind::Counter, "things", "Things\nof a \"kind\".");
        family.sample(&[("volume", "a\"b\\c\nd"), ("operation", "read")], 0.5);
        let expected = "# TYPE a_bytes gauge\n# UNIT a_bytes bytes\n# HELP a_bytes How much.\na_bytes 7\n\
            # TYPE things counter\n# HELP things Things\\nof a \\\"kind\\\".\n\
            things_total{volume=\"a\\\"b\\\\c\\nd\",operation=\"read\"} 0.5\n# EOF\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn a_histogram_counts_up_to_all() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        histogram.record(Duration::from_secs(100));
        let latencies = histogram.latencies();
        let mut page = Page::default();
        let labels = [("volume", "v"), ("operation", "read")];
        page.histograms("t_seconds", "Times.", [(labels, &latencies)].into_iter());
        let text = page.finish();
        for line in [
            "t_seconds_bucket{volume=\"v\",operation=\"read\",le=\"2e-6\"} 0\n",
            "t_seconds_bucket{volume=\"v\",operation=\"read\",le=\"4e-6\"} 1\n",
            "t_seconds_bucket{volume=\"v\",operation=\"read\",le=\"+Inf\"} 2\n",
            "t_seconds_count{volume=\"v\",operation=\"read\"} 2\n",
            "t_seconds_sum{volume=\"v\",operation=\"read\"} 100.000003\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
