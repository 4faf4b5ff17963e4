//! The main file and those it includes.

use std::path::{Path, PathBuf};

use crate::config::{
    document::{Place, Reader, Table},
    section::Section,
};

/// Reads a file and everything it includes; the main file first.
pub(super) fn read_all(reader: &Reader<'_>, path: &Path) -> Vec<Table> {
    let Some(main) = reader.read_file(path, None) else {
        return Vec::new();
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let mut tables = vec![main.clone()];
    let section = Section::new(reader, "", Some(main)).based(base);
    for (pattern, place) in section.strings("include").unwrap_or_default() {
        for file in included(reader, base, &pattern, &place) {
            tables.extend(reader.read_file(&file, Some(&place)));
        }
    }
    tables
}

fn included(reader: &Reader<'_>, base: &Path, pattern: &str, place: &Place) -> Vec<PathBuf> {
    let full = base.join(pattern);
    let (dir, name) = (
        full.parent().unwrap_or(base),
        full.file_name().unwrap_or_default().to_string_lossy(),
    );
    let stars = pattern.matches('*').count();
    if stars == 0 {
        return vec![full.clone()];
    }
    if stars > 1 || !name.contains('*') {
        reader.fault(
            "E005",
            Some(place.clone()),
            format!("include: {pattern:?} has more than one `*`, or one in a directory's name"),
            "this pattern",
            "name each directory: include = [\"conf.d/*.toml\", \"more.d/*.toml\"]".to_owned(),
        );
        return Vec::new();
    }
    reader.around.matching(dir, &name).unwrap_or_else(|error| {
        // An empty conf.d is normal; a missing one is what a fresh machine has.
        if error.kind() != std::io::ErrorKind::NotFound {
            reader.fault(
                "E002",
                Some(place.clone()),
                format!("include: cannot list {}: {error}", dir.display()),
                "this pattern",
                "make the directory readable".to_owned(),
            );
        }
        Vec::new()
    })
}
