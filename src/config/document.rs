//! Files and tables with their places; typed access that collects every fault instead of stopping at the first.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    config::{
        Surroundings,
        fault::{Fault, Faults, Source, nearest},
        units,
    },
    time::Span,
};

/// Where something stands: file number and bytes.
pub(super) type Place = (usize, Range<usize>);

/// A table of one file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    file: usize,
    span: Range<usize>,
    entries: BTreeMap<String, (Range<usize>, Value)>,
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
    fn describe(&self) -> String {
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
}

impl<'a> Reader<'a> {
    pub(super) fn new(around: &'a dyn Surroundings) -> Self {
        Self {
            around,
            sources: RefCell::default(),
            faults: RefCell::default(),
        }
    }

    /// Everything wrong so far, by file and place.
    pub(super) fn into_faults(self) -> Faults {
        let mut list = self.faults.into_inner();
        list.sort_by_key(|fault| {
            fault
                .place
                .as_ref()
                .map_or((usize::MAX, 0), |(file, span)| (*file, span.start))
        });
        list.dedup();
        Faults {
            sources: self.sources.into_inner(),
            list,
        }
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

    /// Reads a file and everything it includes; the main file first.
    pub(super) fn read_all(&self, path: &Path) -> Vec<Table> {
        let Some(main) = self.read_file(path, None) else {
            return Vec::new();
        };
        let base = path.parent().unwrap_or(Path::new(""));
        let mut tables = vec![main.clone()];
        let section = Section::new(self, "", vec![main]);
        for (pattern, place) in section.strings("include").unwrap_or_default() {
            for file in self.included(base, &pattern, &place) {
                tables.extend(self.read_file(&file, Some(&place)));
            }
        }
        tables
    }

    fn included(&self, base: &Path, pattern: &str, place: &Place) -> Vec<PathBuf> {
        let full = base.join(pattern);
        let (dir, name) = (
            full.parent().unwrap_or(base),
            full.file_name().unwrap_or_default().to_string_lossy(),
        );
        if !name.contains('*') {
            return vec![full.clone()];
        }
        self.around.matching(dir, &name).unwrap_or_else(|error| {
            // An empty conf.d is normal; a missing one is what a fresh machine has.
            if error.kind() != std::io::ErrorKind::NotFound {
                let message = format!("include: cannot list {}: {error}", dir.display());
                self.fault(
                    "E002",
                    Some(place.clone()),
                    message,
                    "this pattern",
                    "make the directory readable".to_owned(),
                );
            }
            Vec::new()
        })
    }

    fn read_file(&self, path: &Path, included_at: Option<&Place>) -> Option<Table> {
        let shown = path.display().to_string();
        let text = match self.around.read(path) {
            Ok(text) => text,
            Err(error) => {
                let help = match error.kind() {
                    std::io::ErrorKind::NotFound => "create it, or name another file with -c",
                    std::io::ErrorKind::PermissionDenied => "make it readable for this user",
                    _ => "the file must be UTF-8 text",
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
        for error in &errors {
            let place = Some((file, error.span().unwrap_or_else(|| whole.clone())));
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
    fn expand(&self, text: &str, place: &Place, base: &Path) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix('$') {
                out.push('$');
                rest = tail;
            } else if !rest.starts_with('{') {
                // A shell's own `$1` in a command is none of our business.
                out.push('$');
            } else if let Some((inner, tail)) = rest[1..].split_once('}') {
                out.push_str(&self.lookup(inner, place, base));
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
            }
        }
        out + rest
    }

    fn lookup(&self, inner: &str, place: &Place, base: &Path) -> String {
        if let Some(path) = inner.strip_prefix("file:") {
            return self.around.read(&base.join(path)).map_or_else(
                |error| {
                    let message = format!("cannot read {path} for ${{{inner}}}: {error}");
                    self.fault(
                        "E021",
                        Some(place.clone()),
                        message,
                        "in this value",
                        "create the file".to_owned(),
                    );
                    String::new()
                },
                |text| text.trim_end_matches('\n').to_owned(),
            );
        }
        let (name, default) = inner
            .split_once(":-")
            .map_or((inner, None), |(name, default)| (name, Some(default)));
        self.around
            .variable(name)
            .or_else(|| default.map(str::to_owned))
            .unwrap_or_else(|| {
                let message = format!("the environment variable {name} is not set");
                self.fault(
                    "E022",
                    Some(place.clone()),
                    message,
                    "needed here",
                    format!("set it, or give a default: ${{{name}:-value}}"),
                );
                String::new()
            })
    }
}

/// A table as seen through its layers: its own keys first, then those of `[defaults]`.
pub(super) struct Section<'r, 'a> {
    pub(super) reader: &'r Reader<'a>,
    /// `fleet.web.stop`, for messages.
    pub(super) path: String,
    layers: Vec<Table>,
    /// Layers whose unknown keys are reported here; defaults are reported once, by themselves.
    own: usize,
    known: RefCell<BTreeSet<&'static str>>,
    base: PathBuf,
}

impl<'r, 'a> Section<'r, 'a> {
    pub(super) fn new(reader: &'r Reader<'a>, path: &str, layers: Vec<Table>) -> Self {
        let own = layers.len();
        Self {
            reader,
            path: path.to_owned(),
            layers,
            own,
            known: RefCell::default(),
            base: PathBuf::new(),
        }
    }

    /// The same with `defaults` below it.
    pub(super) fn over(mut self, defaults: Option<&Table>) -> Self {
        self.layers.extend(defaults.cloned());
        self
    }

    /// Relative paths count from here.
    pub(super) fn based(mut self, base: &Path) -> Self {
        base.clone_into(&mut self.base);
        self
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Does nobody say anything about it?
    pub(super) fn is_absent(&self) -> bool {
        self.layers.is_empty()
    }

    /// Where the table itself stands.
    pub(super) fn place(&self) -> Option<Place> {
        self.layers
            .first()
            .map(|table| (table.file, table.span.clone()))
    }

    /// The key as people would type it.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn value(&self, key: &'static str) -> Option<&Value> {
        self.known.borrow_mut().insert(key);
        self.layers
            .iter()
            .find_map(|table| table.entries.get(key))
            .map(|(_, value)| value)
    }

    /// Does this table itself, not its defaults, say something?
    pub(super) fn has_own(&self, key: &str) -> bool {
        self.layers
            .iter()
            .take(self.own)
            .any(|table| table.entries.contains_key(key))
    }

    pub(super) fn fault(&self, code: &'static str, key: &'static str, message: String, help: &str) {
        let place = self
            .layers
            .iter()
            .find_map(|table| table.entries.get(key))
            .map(|(_, value)| value.place.clone());
        self.reader.fault(
            code,
            place.or_else(|| self.place()),
            message,
            "",
            help.to_owned(),
        );
    }

    fn wrong_type(&self, key: &str, value: &Value, wanted: &str) {
        let message = format!("{} must be {wanted}", self.name(key));
        let label = format!("found {}", value.describe());
        self.reader.fault(
            "E030",
            Some(value.place.clone()),
            message,
            &label,
            format!("give {wanted}"),
        );
    }

    /// A string with its variables put in.
    pub(super) fn string(&self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        match &value.kind {
            Kind::String(text) => Some(self.checked(text, value)),
            _ => {
                self.wrong_type(key, value, "a string");
                None
            }
        }
    }

    fn checked(&self, text: &str, value: &Value) -> String {
        if text.contains('\0') {
            let message = "a NUL byte cannot reach a program".to_owned();
            self.reader.fault(
                "E031",
                Some(value.place.clone()),
                message,
                "in this string",
                "remove it".to_owned(),
            );
            return String::new();
        }
        self.reader.expand(text, &value.place, &self.base)
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        match value.kind {
            Kind::Bool(b) => Some(b),
            _ => {
                self.wrong_type(key, value, "true or false");
                None
            }
        }
    }

    /// An integer within bounds.
    pub(super) fn integer(&self, key: &'static str, low: i64, high: i64) -> Option<i64> {
        let value = self.value(key)?;
        match value.kind {
            Kind::Integer(n) if (low..=high).contains(&n) => Some(n),
            _ => {
                self.wrong_type(key, value, &format!("an integer from {low} to {high}"));
                None
            }
        }
    }

    /// A string that `parse` understands.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let parsed = match &value.kind {
            Kind::String(text) => parse(&self.checked(text, value)),
            _ => None,
        };
        if parsed.is_none() {
            self.wrong_type(key, value, wanted);
        }
        parsed
    }

    pub(super) fn span(&self, key: &'static str) -> Option<Span> {
        self.parsed(key, units::SPAN_FORM, units::span)
    }

    pub(super) fn size(&self, key: &'static str) -> Option<u64> {
        self.parsed(key, units::SIZE_FORM, units::size)
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.parsed(key, &format!("one of {}", list.join(", ")), |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, meaning)| *meaning)
        })
    }

    /// An array of strings with their places; a lone string is an array of one.
    pub(super) fn strings(&self, key: &'static str) -> Option<Vec<(String, Place)>> {
        let value = self.value(key)?;
        let items = match &value.kind {
            Kind::Array(items) => items.as_slice(),
            Kind::String(_) => std::slice::from_ref(value),
            _ => {
                self.wrong_type(key, value, "an array of strings");
                return None;
            }
        };
        let mut strings = Vec::new();
        for item in items {
            match &item.kind {
                Kind::String(text) => strings.push((self.checked(text, item), item.place.clone())),
                _ => self.wrong_type(key, item, "an array of strings"),
            }
        }
        Some(strings)
    }

    /// The sub-table `key`, through all layers that have one; absent ones give a section that answers nothing.
    pub(super) fn section(&self, key: &'static str) -> Section<'r, 'a> {
        self.known.borrow_mut().insert(key);
        let mut layers = Vec::new();
        let mut own = 0;
        for (depth, table) in self.layers.iter().enumerate() {
            match table.entries.get(key).map(|(_, value)| value) {
                Some(Value {
                    kind: Kind::Table(inner),
                    ..
                }) => {
                    layers.push(inner.clone());
                    own += usize::from(depth < self.own);
                }
                Some(value) => self.wrong_type(key, value, "a table"),
                None => {}
            }
        }
        let path = self.name(key);
        Section {
            reader: self.reader,
            path,
            layers,
            own,
            known: RefCell::default(),
            base: self.base.clone(),
        }
    }

    /// All entries that are not known keys, for tables whose keys are names: `(name, its place, value)`; own layers win.
    pub(super) fn entries(&self) -> Vec<(String, Place, Value)> {
        let mut all: BTreeMap<String, (Place, Value)> = BTreeMap::new();
        for table in self.layers.iter().rev() {
            for (key, (span, value)) in &table.entries {
                all.insert(key.clone(), ((table.file, span.clone()), value.clone()));
            }
        }
        all.into_iter()
            .map(|(key, (place, value))| (key, place, value))
            .collect()
    }

    /// A string entry of [`Section::entries`].
    pub(super) fn entry_string(&self, key: &str, value: &Value) -> Option<String> {
        match &value.kind {
            Kind::String(text) => Some(self.checked(text, value)),
            Kind::Integer(n) => Some(n.to_string()),
            Kind::Bool(b) => Some(b.to_string()),
            Kind::Array(_) | Kind::Table(_) | Kind::Other(_) => {
                self.wrong_type(key, value, "a string");
                None
            }
        }
    }

    /// A table entry of [`Section::entries`], as a section of its own.
    pub(super) fn entry_section(&self, key: &str, value: &Value) -> Option<Section<'r, 'a>> {
        match &value.kind {
            Kind::Table(table) => Some(
                Section::new(self.reader, &self.name(key), vec![table.clone()]).based(&self.base),
            ),
            _ => {
                self.wrong_type(key, value, "a table");
                None
            }
        }
    }

    /// The single layer, for use as somebody's defaults.
    pub(super) fn table(&self) -> Option<Table> {
        self.layers.first().cloned()
    }

    /// Reports own keys that nobody asked for. Call it last.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for table in self.layers.iter().take(self.own) {
            for (key, (span, _)) in &table.entries {
                if known.contains(key.as_str()) {
                    continue;
                }
                let help = nearest(key, known.iter().copied()).map_or_else(
                    || {
                        format!(
                            "known keys: {}",
                            known.iter().copied().collect::<Vec<_>>().join(", ")
                        )
                    },
                    |near| format!("did you mean `{near}`?"),
                );
                let place = (table.file, span.clone());
                self.reader.fault(
                    "E040",
                    Some(place),
                    format!("unknown key `{}`", self.name(key)),
                    "nobody reads this",
                    help,
                );
            }
        }
    }
}
