//! Commands and the placeholders in texts: `["program", "{{ slot }}"]`.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
};

use crate::config::{
    document::{Kind, Place, Reader},
    fault::nearest,
    section::Section,
};

/// Names that `{{ … }}` may hold in commands, environments and probe addresses.
const NAMES: [&str; 4] = ["fleet", "slot", "node", "port"];

/// Checks the placeholders of one fleet.
pub(super) struct Placeholders<'r, 'a> {
    reader: &'r Reader<'a>,
    /// `fleet.web`.
    fleet: String,
    has_ports: bool,
    /// That ports are missing is said at the first text that wants one.
    said: Cell<bool>,
}

impl<'r, 'a> Placeholders<'r, 'a> {
    pub(super) fn of(section: &Section<'r, 'a>) -> Self {
        Self {
            reader: section.reader,
            fleet: section.path.clone(),
            has_ports: section.value("port_range").is_some(),
            said: Cell::new(false),
        }
    }

    pub(super) fn check(&self, text: &str, place: &Place) {
        let mut rest = text;
        while let Some((_, tail)) = rest.split_once("{{") {
            let Some((name, tail)) = tail.split_once("}}") else {
                self.fault(
                    "E125",
                    place,
                    format!("`{{{{` without `}}}}` in {text:?}"),
                    format!("close it: {}", spoken(NAMES)),
                );
                return;
            };
            self.check_name(name.trim(), text, place);
            rest = tail;
        }
    }

    fn check_name(&self, name: &str, text: &str, place: &Place) {
        if !NAMES.contains(&name) {
            let help = nearest(name, NAMES).map_or_else(
                || format!("there are {}", spoken(NAMES)),
                |near| format!("did you mean {}?", spoken([near])),
            );
            let message = format!("unknown placeholder {} in {text:?}", spoken([name]));
            self.fault("E124", place, message, help);
        } else if name == "port" && !self.has_ports && !self.said.replace(true) {
            let message = format!("{} uses {{{{ port }}}} without a port_range", self.fleet);
            let help = "add port_range = \"18000-18063\"".to_owned();
            self.fault("E197", place, message, help);
        }
    }

    fn fault(&self, code: &'static str, place: &Place, message: String, help: String) {
        self.reader
            .fault(code, Some(place.clone()), message, "in this text", help);
    }
}

/// `{{ fleet }}, {{ slot }}`.
fn spoken<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<String> = names
        .into_iter()
        .map(|name| format!("{{{{ {name} }}}}"))
        .collect();
    all.join(", ")
}

/// Where one fleet's programs are found.
pub(super) struct Programs<'p, 'r, 'a> {
    pub(super) placeholders: &'p Placeholders<'r, 'a>,
    /// PATH as the worker will have it.
    pub(super) search: String,
    /// Relative paths count from here: the working directory, as execve(2) after chdir(2) will have it; without one, the configuration's.
    pub(super) dir: PathBuf,
}

impl Programs<'_, '_, '_> {
    /// `["program", "argument", …]` and the path to execute: found as a shell would find it, but now, so that `check` can say that it is missing.
    pub(super) fn command(
        &self,
        section: &Section<'_, '_>,
        key: &'static str,
    ) -> Option<(String, Vec<String>)> {
        let Some(value) = section.value(key) else {
            section.reader.fault(
                "E120",
                section.place(),
                format!("{} has no `{key}`", section.path),
                "",
                format!("add {key} = [\"/path/to/program\", \"argument\"]"),
            );
            return None;
        };
        if let Kind::String(text) = &value.kind {
            let words: Vec<String> = text
                .split_whitespace()
                .map(|word| format!("{word:?}"))
                .collect();
            let message = format!(
                "{} must be an array: there is no shell to split it",
                section.name(key)
            );
            let help = format!("write {key} = [{}]", words.join(", "));
            section.fault("E121", key, message, &help);
            return None;
        }
        let words = section.strings(key)?;
        let Some((program, place)) = words.first().filter(|(program, _)| !program.is_empty())
        else {
            let message = format!("{} is empty", section.name(key));
            section.fault("E122", key, message, "its first word is the program");
            return None;
        };
        for (word, place) in &words {
            self.placeholders.check(word, place);
        }
        let found = self.find(section.reader, program);
        if found.is_none() {
            let (message, help) = self.not_found(program);
            section
                .reader
                .fault("E123", Some(place.clone()), message, "this program", help);
        }
        let path = found.unwrap_or_default();
        Some((path, words.into_iter().map(|(word, _)| word).collect()))
    }

    fn find(&self, reader: &Reader<'_>, program: &str) -> Option<String> {
        let around = reader.around;
        if program.contains('/') {
            let path = self.dir.join(program);
            return around
                .is_executable(&path)
                .then(|| path.display().to_string());
        }
        let directories = self.search.split(':').filter(|dir| dir.starts_with('/'));
        directories
            .map(|dir| format!("{dir}/{program}"))
            .find(|path| around.is_executable(Path::new(path)))
    }

    /// Message and help.
    fn not_found(&self, program: &str) -> (String, String) {
        if !program.contains('/') {
            return (
                format!("`{program}` is in no directory of PATH"),
                format!("give its full path; PATH is {}", self.search),
            );
        }
        let help = "correct the path, or make the file executable (chmod +x)".to_owned();
        let message = if program.starts_with('/') {
            format!("{program} is not an executable file")
        } else {
            let dir = match self.dir.display().to_string() {
                here if here.is_empty() => ".".to_owned(),
                dir => dir,
            };
            format!("{program} is not an executable file in the directory {dir}")
        };
        (message, help)
    }
}
