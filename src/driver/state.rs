//! The operator's intent on disk: written and synced before a command is acknowledged, and never half.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::engine::Intent;

/// Why the intent could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error(
        "{path} is damaged ({source}); restore it or, to forget all holds and sizes, remove it"
    )]
    Damaged {
        /// Which.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

const INTENT: &str = "intent.json";

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(INTENT)
}

/// Reads it; a missing file is an empty intent.
pub(super) fn load(state_dir: &Path) -> Result<Intent, StateError> {
    let path = file(state_dir);
    let shown = path.display().to_string();
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged {
            path: shown,
            source,
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Intent::default()),
        Err(source) => Err(StateError::Read {
            path: shown,
            source,
        }),
    }
}

/// Writes it, whole or not at all.
pub(super) fn save(state_dir: &Path, intent: &Intent) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(intent).map_err(io::Error::other);
    let written = text.and_then(|text| keep(state_dir, INTENT, &text));
    written.map_err(|error| format!("cannot write {}: {error}", file(state_dir).display()))
}

/// Writes a file of the state directory beside the old one, syncs, renames, and syncs the directory.
pub(super) fn keep(state_dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let fresh = state_dir.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(state_dir)?;
        let mut out = File::create(&fresh)?;
        out.write_all(text)?;
        out.sync_all()?;
        fs::rename(&fresh, state_dir.join(name))?;
        File::open(state_dir)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), Intent::default());
        let mut intent = Intent::default();
        intent.fleets.insert(
            "web".parse().unwrap(),
            crate::engine::intent::Hold::default(),
        );
        save(dir.path(), &intent).unwrap();
        assert_eq!(load(dir.path()).unwrap(), intent);
        fs::write(file(dir.path()), "{").unwrap();
        assert!(
            load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("intent.json is damaged")
        );
    }
}
