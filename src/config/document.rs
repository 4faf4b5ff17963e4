//! Files as trees with places, and the list of everything that is wrong with them. What a value means is not known here.

use std::{cell::RefCell, collections::BTreeMap, ops::Range, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::{
    Surroundings,
    fault::{Fault, Faults, Source},
};

/// Where something stands: file number and bytes.
pub(super) type Place = (usize, Range<usize>);

/// A table of one file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) file: usize,
    pub(super) span: Range<usize>,
    /// By key: where the key stands, and its value.
    pub(super) entries: BTreeMap<String, (Range<usize>, Value)>,
}

/// A value of one file.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) place: Place,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    String(String),
    Integer(i64),
    Bool(bool),
    Array(Vec<Value>),
    Table(Table),
    /// Floats, dates and integers beyond 64 bits: nothing here wants one.
    Other(&'static str),
}

impl Value {
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::String(text) => format!("the string {text:?}"),
            Kind::Integer(n) => format!("the integer {n}"),
            Kind::Bool(b) => format!("the boolean {b}"),
            Kind::Array(_) => "an array".to_owned(),
            Kind::Table(_) => "a table".to_owned(),
            Kind::Other(kind) => format!("a {kind}"),
        }
    }
}

impl Table {
    fn from_toml(file: usize, span: Range<usize>, table: &DeTable<'_>) -> Self {
        let entries = table.iter().map(|(key, value)| {
            (
                key.get_ref().clone().into_owned(),
                (key.span(), Value::from_toml(file, value)),
            )
        });
        Self {
            file,
            span,
            entries: entries.collect(),
        }
    }
}

impl Value {
    fn from_toml(file: usize, value: &Spanned<DeValue<'_>>) -> Self {
        let kind = match value.get_ref() {
            DeValue::String(text) => Kind::String(text.clone().into_owned()),
            DeValue::Integer(n) => {
                let digits = n.as_str().replace('_', "");
                i64::from_str_radix(&digits, n.radix()).map_or(
                    Kind::Other("number that does not fit in 64 bits"),
                    Kind::Integer,
                )
            }
            DeValue::Boolean(b) => Kind::Bool(*b),
            DeValue::Array(items) => Kind::Array(
                items
                    .iter()
                    .map(|item| Self::from_toml(file, item))
                    .collect(),
            ),
            DeValue::Table(table) => Kind::Table(Table::from_toml(file, value.span(), table)),
            DeValue::Float(_) => Kind::Other("float"),
            DeValue::Datetime(_) => Kind::Other("date"),
        };
        Self {
            place: (file, value.span()),
            kind,
        }
    }
}

/// Files read so far, and what is wrong in them.
pub(super) struct Reader<'a> {
    pub(super) around: &'a dyn Surroundings,
    sources: RefCell<Vec<Source>>,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(around: &'a dyn Surroundings) -> Self {
        Self {
            around,
            sources: RefCell::default(),
            faults: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Everything wrong so far, and everything that is only unwise; each by file and place, what several fleets inherit once.
    pub(super) fn into_findings(self) -> (Faults, Faults) {
        let sources = self.sources.into_inner();
        let sorted = |list: RefCell<Vec<Fault>>| Faults {
            sources: sources.clone(),
            list: Self::sorted(list.into_inner()),
        };
        (sorted(self.faults), sorted(self.warnings))
    }

    fn sorted(mut all: Vec<Fault>) -> Vec<Fault> {
        let start = |fault: &Fault| {
            fault
                .place
                .as_ref()
                .map_or((usize::MAX, 0), |(file, span)| (*file, span.start))
        };
        all.sort_by_key(start);
        let mut list: Vec<Fault> = Vec::new();
        for fault in all {
            let said = list
                .iter()
                .rev()
                .take_while(|other| start(other) == start(&fault))
                .any(|other| *other == fault);
            if !said {
                list.push(fault);
            }
        }
        list
    }

    /// Is nothing wrong so far?
    pub(super) fn is_clean(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    /// The path of a file, as shown.
    pub(super) fn path_of(&self, file: usize) -> String {
        self.sources
            .borrow()
            .get(file)
            .map(|source| source.path.clone())
            .unwrap_or_default()
    }

    /// What was typed at a place.
    pub(super) fn typed(&self, (file, span): &Place) -> Option<String> {
        let sources = self.sources.borrow();
        sources
            .get(*file)?
            .text
            .get(span.clone())
            .map(str::to_owned)
    }

    pub(super) fn fault(
        &self,
        code: &'static str,
        place: Option<Place>,
        message: String,
        label: &str,
        help: String,
    ) {
        self.faults.borrow_mut().push(Fault {
            code,
            message,
            place,
            label: label.to_owned(),
            help,
        });
    }

    /// What works, and may not be what was meant.
    pub(super) fn warn(
        &self,
        code: &'static str,
        place: Option<Place>,
        message: String,
        help: String,
    ) {
        self.warnings.borrow_mut().push(Fault {
            code,
            message,
            place,
            label: String::new(),
            help,
        });
    }

    /// Reads one file; `included_at` is none for the main one.
    pub(super) fn read_file(&self, path: &Path, included_at: Option<&Place>) -> Option<Table> {
        let shown = path.display().to_string();
        let text = match self.around.read(path) {
            Ok(text) => text,
            Err(error) => {
                let help = match error.kind() {
                    std::io::ErrorKind::NotFound if included_at.is_some() => {
                        "create it, or correct the path"
                    }
                    std::io::ErrorKind::NotFound => "create it, or name another file with -c",
                    std::io::ErrorKind::PermissionDenied => "make it readable for this user",
                    std::io::ErrorKind::IsADirectory => "name a file in it",
                    std::io::ErrorKind::InvalidData => "the file must be UTF-8 text",
                    _ => "it must be a file that can be read",
                };
                self.fault(
                    "E001",
                    included_at.cloned(),
                    format!("cannot read {shown}: {error}"),
                    "included here",
                    help.to_owned(),
                );
                return None;
            }
        };
        let file = self.sources.borrow().len();
        self.sources.borrow_mut().push(Source {
            path: shown,
            text: text.clone(),
        });
        let (table, errors) = DeTable::parse_recoverable(&text);
        let whole = 0..text.chars().next().map_or(0, char::len_utf8);
        let mut last = None;
        for error in &errors {
            let span = error.span().unwrap_or_else(|| whole.clone());
            // A second error at the same place is what the parser stumbled into after the first.
            if last.replace(span.start) == Some(span.start) {
                continue;
            }
            let place = Some((file, span));
            let message = error.message().trim().replace('\n', "; ");
            self.fault(
                "E010",
                place,
                format!("not TOML: {message}"),
                "here",
                "see https://toml.io for the syntax".to_owned(),
            );
        }
        errors
            .is_empty()
            .then(|| Table::from_toml(file, whole, table.get_ref()))
    }

    /// `${VAR}`, `${VAR:-default}`, `${file:PATH}`, `$$`. In values only, after parsing: nothing here can add structure.
    /// None, with a fault, if something cannot be filled in.
    pub(super) fn expand(&self, text: &str, place: &Place, base: &Path) -> Option<String> {
        let mut out = Some(String::new());
        let mut put = |piece: Option<&str>| match (&mut out, piece) {
            (Some(out), Some(piece)) => out.push_str(piece),
            _ => out = None,
        };
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            put(Some(&rest[..at]));
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix('$') {
                put(Some("$"));
                rest = tail;
            } else if !rest.starts_with('{') {
                // A shell's own `$1` in a command is none of our business.
                put(Some("$"));
            } else if let Some((inner, tail)) = rest[1..].split_once('}') {
                put(self.lookup(inner, place, base).as_deref());
                rest = tail;
            } else {
                let help = "close it: ${NAME}; or write $$ for a dollar sign".to_owned();
                self.fault(
                    "E020",
                    Some(place.clone()),
                    format!("`${{` without `}}` in {text:?}"),
                    "in this value",
                    help,
                );
                put(None);
            }
        }
        put(Some(rest));
        out
    }

    fn lookup(&self, inner: &str, place: &Place, base: &Path) -> Option<String> {
        let fault = |code, message, label, help| {
            self.fault(code, Some(place.clone()), message, label, help);
        };
        if let Some(path) = inner.strip_prefix("file:") {
            return match self.around.read(&base.join(path)) {
                Ok(text) => Some(text.trim_end_matches('\n').to_owned()),
                Err(error) => {
                    let message = format!("cannot read {path} for ${{{inner}}}: {error}");
                    fault(
                        "E021",
                        message,
                        "in this value",
                        "create the file".to_owned(),
                    );
                    None
                }
            };
        }
        let (name, default) = inner
            .split_once(":-")
            .map_or((inner, None), |(name, default)| (name, Some(default)));
        let value = self.around.variable(name);
        let value = value.or_else(|| default.map(str::to_owned));
        if value.is_none() {
            let message = format!("the environment variable {name} is not set");
            let help = format!("set it, or give a default: ${{{name}:-value}}");
            fault("E022", message, "needed here", help);
        }
        value
    }
}
