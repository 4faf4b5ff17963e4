//! Columns that fit the terminal.

use std::os::fd::AsFd;

/// Rows of cells under a heading, padded by column; the last column is cut at `width`.
pub(super) fn render(heading: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if let Some(widest) = widths.get_mut(column) {
                *widest = (*widest).max(cell.chars().count());
            }
        }
    }
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == row.len() {
                line.push_str(cell);
            } else {
                line.push_str(&format!(
                    "{cell:<width$}  ",
                    width = widths.get(column).copied().unwrap_or(0)
                ));
            }
        }
        text.push_str(&cut(line.trim_end(), width));
        text.push('\n');
    }
    text
}

/// A line that is no wider than that.
pub(super) fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width && width > 1 => {
            let kept: String = line.chars().take(width - 1).collect();
            format!("{kept}…")
        }
        _ => line.to_owned(),
    }
}

/// RFC 3339 to the second.
pub(super) fn seconds(at: &str) -> String {
    let whole = at.split('.').next().unwrap_or(at);
    format!("{}Z", whole.trim_end_matches('Z'))
}

/// The terminal's width, if `out` is one.
pub(super) fn width_of(out: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(out).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pads_and_cuts() {
        let rows = [
            vec!["web/0".to_owned(), "running".to_owned()],
            vec!["a-long-name/0".to_owned(), "a very long remark".to_owned()],
        ];
        assert_eq!(
            render(&["NAME", "STATE"], &rows, Some(24)),
            "NAME           STATE\nweb/0          running\na-long-name/0  a very l…\n"
        );
    }
}
