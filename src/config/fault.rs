//! What is wrong with a configuration: where, what was found, what would do. All of it at once.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, renderer::DecorStyle};
use serde::Serialize;

/// A file that was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path as shown.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Stable code (`E101`), for scripts and searches.
    pub code: &'static str,
    /// What is wrong, naming the thing.
    pub message: String,
    /// Where: file number and bytes.
    pub place: Option<(usize, Range<usize>)>,
    /// What stands there, in a word or two.
    pub label: String,
    /// What would do.
    pub help: String,
}

/// Everything that is wrong, with the files it is wrong in.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The files.
    pub sources: Vec<Source>,
    /// The faults, in the order of the files.
    pub list: Vec<Fault>,
}

/// A fault for programs.
#[derive(Debug, Serialize)]
pub struct FaultRow {
    /// Stable code.
    pub code: &'static str,
    /// File, if it is in one.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What would do.
    pub help: String,
}

impl Fault {
    /// Does it work all the same? The code of what does begins with a W.
    fn is_warning(&self) -> bool {
        self.code.starts_with('W')
    }
}

impl Faults {
    /// For programs.
    pub fn rows(&self) -> Vec<FaultRow> {
        self.list.iter().map(|fault| self.row(fault)).collect()
    }

    fn row(&self, fault: &Fault) -> FaultRow {
        let place = fault.place.as_ref().and_then(|(file, span)| {
            let source = self.sources.get(*file)?;
            let before = source.text.get(..span.start)?;
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            Some((source.path.clone(), line, column))
        });
        FaultRow {
            code: fault.code,
            file: place.as_ref().map(|(file, ..)| file.clone()),
            line: place.as_ref().map(|(_, line, _)| *line),
            column: place.as_ref().map(|(.., column)| *column),
            message: fault.message.clone(),
            help: fault.help.clone(),
        }
    }

    /// For people, as compilers show it.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let shown: Vec<String> = self
            .list
            .iter()
            .map(|fault| self.render_one(&renderer, fault))
            .collect();
        shown.join("\n\n") + "\n"
    }

    fn render_one(&self, renderer: &Renderer, fault: &Fault) -> String {
        let level = if fault.is_warning() {
            Level::WARNING
        } else {
            Level::ERROR
        };
        let title = level.primary_title(fault.message.as_str()).id(fault.code);
        let place = fault
            .place
            .as_ref()
            .and_then(|(file, span)| Some((self.sources.get(*file)?, span.clone())));
        let help = (!fault.help.is_empty()).then(|| Level::HELP.message(fault.help.as_str()));
        match place {
            Some((source, span)) => {
                let annotation = AnnotationKind::Primary
                    .span(span)
                    .label(fault.label.as_str());
                let snippet = Snippet::source(source.text.as_str())
                    .path(source.path.as_str())
                    .annotation(annotation);
                renderer.render(&[title.element(snippet).elements(help)])
            }
            None => renderer.render(&[annotate_snippets::Group::with_title(title).elements(help)]),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Faults {}

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near =
        |candidate: &&str| distance(word, candidate) <= 2.min(candidate.len().saturating_sub(1));
    candidates
        .into_iter()
        .filter(near)
        .min_by_key(|candidate| distance(word, candidate))
}

/// Levenshtein's distance, with a swap of neighbours counted once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(|i| (i..=i + b.len()).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_meant() {
        let keys = ["target", "timeout", "to"];
        assert_eq!(nearest("targt", keys), Some("target"));
        assert_eq!(nearest("tiemout", keys), Some("timeout"));
        assert_eq!(nearest("banana", keys), None);
    }
}
