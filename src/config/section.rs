//! A table as its readers see it: its own keys over inherited ones, typed; every fault is collected, none stops the reading.
//!
//! Read every key of a table before anything is decided: [`Section::finish`] calls a key unknown that nobody asked for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{
    config::{
        document::{Kind, Place, Reader, Table, Value},
        fault::nearest,
        forms::{self, Form},
    },
    time::Span,
};

/// A table of one file, and what people call it: `fleet.web.stop`, `defaults.stop`.
struct Layer {
    path: String,
    table: Table,
}

/// Where the value in force comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Own,
    Inherited,
}

/// One entry of a table whose keys are names.
pub(super) struct Entry {
    pub(super) name: String,
    /// `fleet.web.env.NAME`.
    pub(super) path: String,
    /// Where the name stands.
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A table seen through its layers: its own keys first, then those of `[defaults]`.
pub(super) struct Section<'r, 'a> {
    pub(super) reader: &'r Reader<'a>,
    /// `fleet.web.stop`, for messages about the whole.
    pub(super) path: String,
    layers: Vec<Layer>,
    /// So many layers are the table itself.
    own: usize,
    /// So many layers have their unknown keys reported here.
    spelled: usize,
    known: RefCell<BTreeSet<&'static str>>,
    /// Keys that have had a fault of their own: known, but not recommended.
    refused: RefCell<BTreeSet<&'static str>>,
    base: PathBuf,
}

impl<'r, 'a> Section<'r, 'a> {
    /// A table without defaults; without a table, a section that answers nothing.
    pub(super) fn new(reader: &'r Reader<'a>, path: &str, table: Option<Table>) -> Self {
        let layers: Vec<Layer> = table
            .into_iter()
            .map(|table| Layer {
                path: path.to_owned(),
                table,
            })
            .collect();
        Self {
            reader,
            path: path.to_owned(),
            own: layers.len(),
            spelled: layers.len(),
            layers,
            known: RefCell::default(),
            refused: RefCell::default(),
            base: PathBuf::new(),
        }
    }

    /// The same with `defaults` below it. Which keys may stand there is not checked here.
    pub(super) fn over(mut self, defaults: Option<&Table>) -> Self {
        self.layers.extend(defaults.map(|table| Layer {
            path: "defaults".to_owned(),
            table: table.clone(),
        }));
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
            .map(|layer| (layer.table.file, layer.table.span.clone()))
    }

    fn find(&self, key: &str) -> Option<(&Layer, &Value)> {
        self.layers.iter().find_map(|layer| {
            let (_, value) = layer.table.entries.get(key)?;
            Some((layer, value))
        })
    }

    /// The table that the value in force stands in, as people call it.
    pub(super) fn table_of(&self, key: &str) -> &str {
        self.find(key)
            .map_or(&self.path, |(layer, _)| layer.path.as_str())
    }

    /// The key as people would type it, where it stands: `defaults.stop.timeout` if it is inherited.
    pub(super) fn name(&self, key: &str) -> String {
        join(self.table_of(key), key)
    }

    pub(super) fn value(&self, key: &'static str) -> Option<&Value> {
        self.known.borrow_mut().insert(key);
        self.find(key).map(|(_, value)| value)
    }

    /// A key that has a fault of its own wherever it stands: known, but not recommended to anybody.
    pub(super) fn refused(&self, key: &'static str) -> Option<&Value> {
        self.refused.borrow_mut().insert(key);
        self.find(key).map(|(_, value)| value)
    }

    /// Does this table itself, or what it inherits, say it?
    pub(super) fn origin(&self, key: &str) -> Option<Origin> {
        let at = self
            .layers
            .iter()
            .position(|layer| layer.table.entries.contains_key(key))?;
        Some(if at < self.own {
            Origin::Own
        } else {
            Origin::Inherited
        })
    }

    /// The one of these keys to point at when they do not fit together: one that the table has itself, if there is one.
    pub(super) fn culprit(&self, keys: &[&'static str]) -> &'static str {
        let first = |origin| {
            keys.iter()
                .find(|key| self.origin(key) == Some(origin))
                .copied()
        };
        first(Origin::Own)
            .or_else(|| first(Origin::Inherited))
            .unwrap_or(keys[0])
    }

    /// Where the value of a key stands, or else the table.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        self.find(key)
            .map(|(_, value)| value.place.clone())
            .or_else(|| self.place())
    }

    pub(super) fn fault(&self, code: &'static str, key: &str, message: String, help: &str) {
        let place = self.place_of(key);
        self.reader.fault(code, place, message, "", help.to_owned());
    }

    fn wrong_type(&self, path: &str, value: &Value, wanted: &str, better: Option<String>) {
        self.reader.fault(
            "E030",
            Some(value.place.clone()),
            format!("{path} must be {wanted}"),
            &format!("found {}", value.describe()),
            better.unwrap_or_else(|| format!("give {wanted}")),
        );
    }

    /// What was typed, without the quotes of a string; none for arrays and tables.
    fn typed(&self, value: &Value) -> Option<String> {
        match &value.kind {
            Kind::String(text) => Some(text.clone()),
            Kind::Array(_) | Kind::Table(_) => None,
            Kind::Integer(_) | Kind::Bool(_) | Kind::Other(_) => self.reader.typed(&value.place),
        }
    }

    /// A string with its variables put in. One that cannot be filled in is empty: it has had its fault.
    pub(super) fn string(&self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        match &value.kind {
            Kind::String(text) => Some(self.checked(text, value).unwrap_or_default()),
            _ => {
                let better = self
                    .typed(value)
                    .map(|typed| format!("write {key} = {typed:?}"));
                self.wrong_type(&self.name(key), value, "a string", better);
                None
            }
        }
    }

    fn checked(&self, text: &str, value: &Value) -> Option<String> {
        if text.contains('\0') {
            self.reader.fault(
                "E031",
                Some(value.place.clone()),
                "a NUL byte cannot reach a program".to_owned(),
                "in this string",
                "remove it".to_owned(),
            );
            return None;
        }
        self.reader.expand(text, &value.place, &self.base)
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if let Kind::Bool(b) = value.kind {
            return Some(b);
        }
        let meant = match self
            .typed(value)
            .unwrap_or_default()
            .to_lowercase()
            .as_str()
        {
            "yes" | "true" | "on" | "1" => Some(true),
            "no" | "false" | "off" | "0" => Some(false),
            _ => None,
        };
        let better = meant.map(|b| format!("write {key} = {b}"));
        self.wrong_type(&self.name(key), value, "true or false", better);
        None
    }

    /// An integer within bounds; `i64::MAX` is no bound.
    pub(super) fn integer(&self, key: &'static str, low: i64, high: i64) -> Option<i64> {
        let value = self.value(key)?;
        let fits = |n: &i64| (low..=high).contains(n);
        if let Kind::Integer(n) = value.kind
            && fits(&n)
        {
            return Some(n);
        }
        let wanted = if high == i64::MAX {
            format!("an integer of {low} or more")
        } else {
            format!("an integer from {low} to {high}")
        };
        let meant = self.typed(value).and_then(|text| text.trim().parse().ok());
        let better = meant
            .filter(fits)
            .map(|n: i64| format!("write {key} = {n}"));
        self.wrong_type(&self.name(key), value, &wanted, better);
        None
    }

    /// A string of some form.
    pub(super) fn parsed<T>(&self, key: &'static str, form: &Form<T>) -> Option<T> {
        let value = self.value(key)?;
        if let Kind::String(text) = &value.kind {
            let text = self.checked(text, value)?;
            if let Some(parsed) = (form.parse)(&text) {
                return Some(parsed);
            }
        }
        let better = self
            .typed(value)
            .and_then(|typed| form.guess(&typed))
            .map(|meant| format!("write {key} = {meant:?}"));
        self.wrong_type(&self.name(key), value, form.wanted, better);
        None
    }

    pub(super) fn span(&self, key: &'static str) -> Option<Span> {
        self.parsed(key, &forms::SPAN)
    }

    pub(super) fn size(&self, key: &'static str) -> Option<u64> {
        self.parsed(key, &forms::SIZE)
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Option<T> {
        let value = self.value(key)?;
        if let Kind::String(text) = &value.kind {
            let text = self.checked(text, value)?;
            if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
                return Some(*meaning);
            }
        }
        let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let typed = self.typed(value).unwrap_or_default();
        let typed = typed.to_lowercase().replace('_', "-");
        let better = nearest(&typed, words.iter().map(|(word, _)| *word))
            .map(|near| format!("did you mean {near:?}?"));
        let wanted = format!("one of {}", list.join(", "));
        self.wrong_type(&self.name(key), value, &wanted, better);
        None
    }

    /// An array of strings with their places; a lone string is an array of one.
    pub(super) fn strings(&self, key: &'static str) -> Option<Vec<(String, Place)>> {
        let value = self.value(key)?;
        let items = match &value.kind {
            Kind::Array(items) => items.as_slice(),
            Kind::String(_) => std::slice::from_ref(value),
            _ => {
                self.wrong_type(&self.name(key), value, "an array of strings", None);
                return None;
            }
        };
        let mut strings = Vec::new();
        for item in items {
            match &item.kind {
                Kind::String(text) => {
                    let text = self.checked(text, item).unwrap_or_default();
                    strings.push((text, item.place.clone()));
                }
                _ => {
                    let better = self.typed(item).map(|typed| format!("write {typed:?}"));
                    self.wrong_type(&self.name(key), item, "an array of strings", better);
                }
            }
        }
        Some(strings)
    }

    /// The sub-table `key`, through all layers that have one; absent ones give a section that answers nothing.
    pub(super) fn section(&self, key: &'static str) -> Section<'r, 'a> {
        for layer in &self.layers {
            let Some((_, value)) = layer.table.entries.get(key) else {
                continue;
            };
            if !matches!(value.kind, Kind::Table(_)) {
                let better = Some(format!("write {key} = {{ KEY = VALUE }}"));
                self.wrong_type(&join(&layer.path, key), value, "a table", better);
            }
        }
        self.tables(key)
    }

    /// As [`Section::section`], for keys that may be something else than a table, too.
    pub(super) fn tables(&self, key: &'static str) -> Section<'r, 'a> {
        self.known.borrow_mut().insert(key);
        let mut inner = Section::new(self.reader, &join(&self.path, key), None).based(&self.base);
        for (depth, layer) in self.layers.iter().enumerate() {
            if let Some((_, value)) = layer.table.entries.get(key)
                && let Kind::Table(table) = &value.kind
            {
                inner.layers.push(Layer {
                    path: join(&layer.path, key),
                    table: table.clone(),
                });
                inner.own += usize::from(depth < self.own);
            }
        }
        inner.spelled = inner.layers.len();
        inner
    }

    /// The tables of an array of tables, in their order; a lone table is an array of one.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'r, 'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let items = match &value.kind {
            Kind::Array(items) => items.as_slice(),
            _ => std::slice::from_ref(value),
        };
        let name = self.name(key);
        let mut all = Vec::new();
        for item in items {
            match &item.kind {
                Kind::Table(table) => {
                    let inner = Section::new(self.reader, &name, Some(table.clone()));
                    all.push(inner.based(&self.base));
                }
                _ => {
                    let better = Some(format!("write [[{name}]]"));
                    self.wrong_type(&name, item, "an array of tables", better);
                }
            }
        }
        all
    }

    /// All entries of a table whose keys are names, in their order; own ones win.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let mut all: BTreeMap<&str, Entry> = BTreeMap::new();
        for layer in self.layers.iter().rev() {
            for (name, (span, value)) in &layer.table.entries {
                let entry = Entry {
                    name: name.clone(),
                    path: join(&layer.path, name),
                    place: (layer.table.file, span.clone()),
                    value: value.clone(),
                };
                all.insert(name, entry);
            }
        }
        all.into_values().collect()
    }

    /// An entry as a string; numbers and booleans are taken as they are typed.
    pub(super) fn entry_string(&self, entry: &Entry) -> Option<String> {
        match &entry.value.kind {
            Kind::String(text) => self.checked(text, &entry.value),
            Kind::Integer(n) => Some(n.to_string()),
            Kind::Bool(b) => Some(b.to_string()),
            Kind::Array(_) | Kind::Table(_) | Kind::Other(_) => {
                let better = self
                    .typed(&entry.value)
                    .map(|typed| format!("write {} = {typed:?}", entry.name));
                self.wrong_type(&entry.path, &entry.value, "a string", better);
                None
            }
        }
    }

    /// An entry that is a table, as a section of its own.
    pub(super) fn entry_section(&self, entry: &Entry) -> Option<Section<'r, 'a>> {
        if let Kind::Table(table) = &entry.value.kind {
            let inner = Section::new(self.reader, &entry.path, Some(table.clone()));
            return Some(inner.based(&self.base));
        }
        let better = Some(format!("write [{}]", entry.path));
        self.wrong_type(&entry.path, &entry.value, "a table", better);
        None
    }

    /// The table itself, for use as somebody's defaults.
    pub(super) fn table(&self) -> Option<Table> {
        self.layers.first().map(|layer| layer.table.clone())
    }

    /// Reports keys that nobody asked for. Call it last.
    pub(super) fn finish(&self) {
        let (known, refused) = (self.known.borrow(), self.refused.borrow());
        for layer in &self.layers[..self.spelled] {
            for (key, (span, _)) in &layer.table.entries {
                if known.contains(key.as_str()) || refused.contains(key.as_str()) {
                    continue;
                }
                let list: Vec<&str> = known.iter().copied().collect();
                let help = nearest(key, list.iter().copied()).map_or_else(
                    || format!("known keys: {}", list.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                self.reader.fault(
                    "E040",
                    Some((layer.table.file, span.clone())),
                    format!("unknown key `{}`", join(&layer.path, key)),
                    "nobody reads this",
                    help,
                );
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
