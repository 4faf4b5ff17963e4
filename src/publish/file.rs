//! A rendered file gets into its place by rename(2), so that its readers see all of it or none, and a watcher of moves (Envoy) notices.
//!
//! Checkers such as `nginx -t` read what their main file includes, and not what we would like them to look at. So the new file goes into
//! its place first, and what was there before is kept beside it, as `.NAME.leasehold-old`, until the check has passed: a name that no
//! `*.conf` finds. Nobody is told of a file whose check has not passed. A supervisor that dies in between leaves both, and the next one
//! knows by the number of the last good content which of them is which.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Semaphore;

use crate::{
    engine::publish::{FileJob, Written},
    id::Revision,
    publish::render::render,
};

/// So many files are worked on at once: those on a file system that hangs do not take all threads from everybody.
const AT_ONCE: usize = 32;

/// The newest request for a path, held while one is carried out.
type Turn = Arc<Mutex<u64>>;

/// All published files.
#[derive(Clone)]
pub struct Files {
    turns: Arc<Mutex<BTreeMap<String, Turn>>>,
    seats: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            turns: Arc::default(),
            seats: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Files {
    /// Does something that may wait for a disk, on a thread that nobody else waits for.
    pub fn work(&self, work: impl FnOnce(&Self) + Send + 'static) {
        let files = self.clone();
        tokio::spawn(async move {
            let Ok(seat) = Arc::clone(&files.seats).acquire_owned().await else {
                return;
            };
            tokio::task::spawn_blocking(move || {
                work(&files);
                drop(seat);
            });
        });
    }

    fn turn(&self, path: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(path.to_owned()).or_default())
    }

    /// Renders and puts into its place what is not there already.
    pub fn write(&self, ticket: u64, job: &FileJob) -> Result<Written, String> {
        let text = render(job)?;
        let turn = self.turn(&job.path);
        let mut newest = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket < *newest {
            return Err("a newer list has overtaken it".to_owned());
        }
        *newest = ticket;
        put(Path::new(&job.path), text.as_bytes(), job.aside, job.good)
            .map_err(|error| format!("cannot write {}: {error}", job.path))
    }

    /// Puts back what was there before the last write; nothing, if nothing was.
    pub fn restore(&self, ticket: u64, path: &str) -> Result<(), String> {
        let turn = self.turn(path);
        let mut newest = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket < *newest {
            return Ok(());
        }
        *newest = ticket;
        let target = real(Path::new(path));
        let restored = match fs::rename(old(&target), &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => gone(&target),
            done => done,
        };
        restored
            .and_then(|()| sync_directory(&target))
            .map_err(|error| format!("cannot put back what was at {path} before: {error}"))
    }

    /// What was there before is not needed any more. Should it stay, it is replaced by the next one.
    pub fn settle(&self, path: &str) {
        let turn = self.turn(path);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = fs::remove_file(old(&real(Path::new(path))));
    }
}

/// Where a link leads: its target is replaced, and not the link.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// `.NAME.ending` beside a file.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

fn old(path: &Path) -> PathBuf {
    beside(path, ".leasehold-old")
}

fn gone(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

fn number(content: &[u8]) -> u64 {
    Revision::of(content).0
}

fn put(path: &Path, content: &[u8], aside: bool, good: Option<u64>) -> io::Result<Written> {
    let path = real(path);
    let before = match fs::read(&path) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let written = Written {
        content: number(content),
        changed: before.as_deref() != Some(content),
    };
    if !written.changed {
        return Ok(written);
    }
    let fresh = beside(&path, ".leasehold-new");
    let replace = || -> io::Result<()> {
        let mut out = File::create(&fresh)?;
        if let Ok(metadata) = fs::metadata(&path) {
            out.set_permissions(metadata.permissions())?;
        }
        out.write_all(content)?;
        out.sync_all()?;
        if let Some(before) = before.as_deref().filter(|_| aside) {
            put_aside(&path, before, good)?;
        }
        fs::rename(&fresh, &path)?;
        sync_directory(&path)
    };
    replace().inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok(written)
}

/// Keeps what is there, unless it never passed its check and something that did is kept already. A link costs no room on a full disk.
fn put_aside(path: &Path, before: &[u8], good: Option<u64>) -> io::Result<()> {
    let kept = old(path);
    if good != Some(number(before)) && kept.exists() {
        return Ok(());
    }
    gone(&kept)?;
    fs::hard_link(path, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_failed_its_check_is_replaced_by_the_last_that_passed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        let text = path.display().to_string();
        let files = Files::default();
        let read = || fs::read_to_string(&path).unwrap();
        fs::write(&path, "by hand").unwrap();
        assert!(put(&path, b"one", true, None).unwrap().changed);
        // Its supervisor died before the check was through; the next one has another list.
        assert!(put(&path, b"two", true, None).unwrap().changed);
        files.restore(1, &text).unwrap();
        assert_eq!(read(), "by hand");
        let good = put(&path, b"three", true, None).unwrap();
        files.settle(&text);
        assert_eq!(names(dir.path()), ["web.conf"]);
        assert!(!put(&path, b"three", true, None).unwrap().changed);
        put(&path, b"four", true, Some(good.content)).unwrap();
        put(&path, b"five", true, Some(good.content)).unwrap();
        files.restore(2, &text).unwrap();
        assert_eq!(read(), "three");
        assert_eq!(names(dir.path()), ["web.conf"]);
    }

    #[test]
    fn where_nothing_was_nothing_is_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        put(&path, b"one", true, None).unwrap();
        Files::default()
            .restore(1, &path.display().to_string())
            .unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn an_older_request_comes_too_late() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("web.conf").display().to_string();
        let files = Files::default();
        files.restore(5, &text).unwrap();
        fs::write(&text, "newer").unwrap();
        files.restore(4, &text).unwrap();
        assert_eq!(fs::read_to_string(&text).unwrap(), "newer");
    }

    #[test]
    fn a_link_stays_and_a_mode_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&path, "a").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        put(&link, b"b", false, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
