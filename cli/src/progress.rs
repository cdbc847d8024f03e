//! Progress bars on stderr, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str =
    "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const STREAM: &str = "{spinner} {binary_bytes}, {binary_bytes_per_sec}";

/// A bar over a number of bytes, if that is known.
pub(crate) fn bytes(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => ProgressBar::new(total).with_style(style(BYTES)),
        None => ProgressBar::no_length().with_style(style(STREAM)),
    }
}

/// A line of text that changes.
pub(crate) fn text() -> ProgressBar {
    ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        bytes(Some(1));
        bytes(None);
        text();
    }
}
