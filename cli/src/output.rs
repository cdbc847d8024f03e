//! What commands print on standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::errors::CliError;

/// Prints text. A reader that has left (`siltstone stat | head -1`) has seen what it wanted.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| CliError::file("write to", "standard output", error)),
    }
}

/// A value as JSON, to be printed.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| CliError::file("write to", "standard output", error))?;
    Ok(text + "\n")
}

/// A value as JSON in one line.
pub(crate) fn to_json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| CliError::file("write to", "standard output", error))?;
    Ok(text + "\n")
}

/// Lines up the columns of a table, two spaces apart.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["NAME".into(), "SIZE".into()], vec!["größe".into(), "1 GiB".into()]];
        assert_eq!(table(&rows), "NAME   SIZE\ngröße  1 GiB\n");
    }
}
