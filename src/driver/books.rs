//! Jobs' books on disk: `state_dir/cron/NAME.json`, replaced as a whole, synced before anybody relies on it. A claim is refused if what
//! is there does not allow it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::book::{Book, Run},
    id::FleetName,
};

/// A file.
#[derive(Debug, Serialize, Deserialize)]
struct Page {
    /// Version of this file.
    leasehold: u32,
    /// The keeper under which it was written (`LEASEHOLD_RUN`): an heir of its supervisor may repeat a claim, nobody else may.
    run: String,
    book: Book,
}

/// Why a book cannot be had.
#[derive(Debug, thiserror::Error)]
enum BookError {
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} is damaged ({source})")]
    Damaged {
        path: String,
        source: serde_json::Error,
    },
    #[error("{path} was written by another version ({version})")]
    Version { path: String, version: u32 },
    #[error("{path} says that it was claimed before")]
    Claimed { path: String },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BookError {
    let path = path.display().to_string();
    move |source| BookError::Io { what, path, source }
}

fn file(state_dir: &Path, fleet: &FleetName) -> PathBuf {
    state_dir.join("cron").join(format!("{fleet}.json"))
}

/// Reads a job's book; none if it has none yet. What cannot be understood is put aside, under a name that says so.
pub(super) fn read(state_dir: &Path, fleet: &FleetName) -> Result<Option<Box<Book>>, String> {
    match page(&file(state_dir, fleet)) {
        Ok(page) => Ok(page.map(|page| Box::new(page.book))),
        Err(error @ (BookError::Damaged { .. } | BookError::Version { .. })) => {
            let path = file(state_dir, fleet);
            let aside = path.with_extension("json.damaged");
            let moved = match fs::rename(&path, &aside) {
                Ok(()) => format!("kept as {}", aside.display()),
                Err(e) => format!("and cannot be put aside: {e}"),
            };
            Err(format!("{error}, {moved}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn page(path: &Path) -> Result<Option<Page>, BookError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("read", path)(e)),
    };
    let shown = || path.display().to_string();
    let page: Page = serde_json::from_slice(&bytes).map_err(|source| BookError::Damaged {
        path: shown(),
        source,
    })?;
    if page.leasehold != 1 {
        let (path, version) = (shown(), page.leasehold);
        return Err(BookError::Version { path, version });
    }
    Ok(Some(page))
}

/// Writes a job's book beside the old one, syncs, renames, and syncs the directory. With a claim, only if the old one allows that.
pub(super) fn keep(
    state_dir: &Path,
    fleet: &FleetName,
    run: &str,
    book: &Book,
    claim: Option<&Run>,
) -> Result<(), String> {
    try_keep(state_dir, fleet, run, book, claim).map_err(|error| error.to_string())
}

fn try_keep(
    state_dir: &Path,
    fleet: &FleetName,
    run: &str,
    book: &Book,
    claim: Option<&Run>,
) -> Result<(), BookError> {
    let path = file(state_dir, fleet);
    if let Some(claim) = claim
        && let Some(old) = page(&path)?
    {
        let open = old.book.open();
        let is_ours = old.run == run && open.is_some_and(|open| open.scheduled == claim.scheduled);
        if !is_ours && !old.book.allows(claim) {
            let path = path.display().to_string();
            return Err(BookError::Claimed { path });
        }
    }
    let page = Page {
        leasehold: 1,
        run: run.to_owned(),
        book: book.clone(),
    };
    let dir = state_dir.join("cron");
    let fresh = dir.join(format!("{fleet}.json.new"));
    let text = serde_json::to_vec_pretty(&page).expect("a book has only string keys");
    let write = || -> io::Result<()> {
        if !dir.is_dir() {
            fs::create_dir_all(&dir)?;
            File::open(state_dir)?.sync_all()?;
        }
        let mut out = File::create(&fresh)?;
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(&dir)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&fresh);
        io_error("write", &path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Stamp;

    fn claim(at: i64) -> Run {
        Run {
            scheduled: Stamp(at),
            manual: false,
            attempt: 1,
            started: Stamp(at + 1),
        }
    }

    /// A book in which this run is claimed, as the engine would write it.
    fn claimed(at: i64) -> Book {
        let text = format!(
            r#"{{"cursor":"{0}","had":[["{1}","{0}"]],"open":{2},"history":[]}}"#,
            Stamp(at),
            Stamp(at - 60_000),
            serde_json::to_string(&claim(at)).unwrap()
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_claim_is_made_once_whoever_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let job: FleetName = "job".parse().unwrap();
        let keep = |run, at| keep(dir.path(), &job, run, &claimed(at), Some(&claim(at)));
        assert_eq!(read(dir.path(), &job).unwrap(), None);
        keep("a", 120_000).unwrap();
        keep("a", 120_000).expect("an heir repeats what its predecessor began");
        let why = keep("b", 120_000).unwrap_err();
        assert!(why.contains("claimed before"), "{why}");
        let read = read(dir.path(), &job).unwrap().unwrap();
        assert_eq!(*read, claimed(120_000));
        keep("b", 180_000).unwrap();
        assert!(keep("a", 180_000).is_err());
    }

    #[test]
    fn a_damaged_book_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let job: FleetName = "job".parse().unwrap();
        keep(dir.path(), &job, "a", &claimed(60_000), None).unwrap();
        fs::write(file(dir.path(), &job), "{").unwrap();
        let why = read(dir.path(), &job).unwrap_err();
        assert!(why.contains("damaged"), "{why}");
        assert_eq!(read(dir.path(), &job).unwrap(), None);
        assert!(dir.path().join("cron/job.json.damaged").is_file());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let job: FleetName = "job".parse().unwrap();
        fs::write(dir.path().join("cron"), "a file").unwrap();
        let kept = keep(dir.path(), &job, "a", &claimed(60_000), None);
        assert!(kept.unwrap_err().contains("job.json"));
    }
}
