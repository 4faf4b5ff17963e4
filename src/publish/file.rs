//! A rendered file gets into its place by rename(2), so that its readers see all of it or none, and a watcher of moves (Envoy) notices.
//!
//! Checkers such as `nginx -t` read what their main file includes, and not what we would like them to look at. So the new file goes into
//! its place first, and what was there before is kept beside it, as `.NAME.leasehold-old`, until the check has passed: a name that no
//! `*.conf` finds. Nobody is told of a file whose check has not passed. A supervisor that dies in between leaves both, and the next one
//! knows by the number of the last good content which of them is which. What an earlier daemon kept is of no use: nobody knows any more
//! whether its check passed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::{MetadataExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Semaphore;

use crate::{
    engine::publish::{Aside, FileJob, Undo, Written},
    id::Revision,
    publish::render::render,
};

/// So many files are worked on at once: those on a file system that hangs do not take all threads from everybody.
const AT_ONCE: usize = 32;

/// More links from one to the next are a circle, as the kernel has it.
const LINKS_MAX: usize = 40;

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
        put(Path::new(&job.path), text.as_bytes(), job.aside)
            .map_err(|error| format!("cannot write {}: {error}", job.path))
    }

    /// Makes what was there before the last write of it again.
    pub fn restore(&self, ticket: u64, path: &str, undo: Undo) -> Result<(), String> {
        let turn = self.turn(path);
        let mut newest = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket < *newest {
            return Ok(());
        }
        *newest = ticket;
        let restore = || {
            let target = real(Path::new(path))?;
            match undo {
                Undo::Remove => gone(&target)?,
                Undo::PutBack => fs::rename(old(&target), &target)?,
            }
            sync_directory(&target)
        };
        restore().map_err(|error| format!("cannot put back what was at {path} before: {error}"))
    }

    /// What was there before is not needed any more. Should it stay, it is replaced by the next one.
    pub fn settle(&self, ticket: u64, path: &str) {
        let turn = self.turn(path);
        let newest = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket < *newest {
            return;
        }
        let _ = real(Path::new(path)).and_then(|target| gone(&old(&target)));
    }
}

/// Where a link leads, be something there or not: its target is replaced, and not the link.
fn real(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(to) => path = path.with_file_name("").join(to),
            Err(error) if is_no_link(&error) => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("it is a link to itself"))
}

fn is_no_link(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
    )
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

fn put(path: &Path, content: &[u8], aside: Option<Aside>) -> io::Result<Written> {
    let path = real(path)?;
    if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::other("what is there is no regular file"));
    }
    let before = match fs::read(&path) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_deref() == Some(content) {
        let undo = aside.map_or(Ok(None), |aside| undo_of_another(&path, content, aside))?;
        return Ok(Written {
            content: number(content),
            changed: false,
            undo,
        });
    }
    let fresh = beside(&path, ".leasehold-new");
    let replace = || -> io::Result<Option<Undo>> {
        gone(&fresh)?;
        let mut out = File::create_new(&fresh)?;
        if let Ok(metadata) = fs::metadata(&path) {
            give(&out, &metadata)?;
            out.set_permissions(metadata.permissions())?;
        }
        out.write_all(content)?;
        out.sync_all()?;
        let undo = match aside {
            Some(aside) => Some(put_aside(&path, before.as_deref(), aside)?),
            None => None,
        };
        fs::rename(&fresh, &path)?;
        sync_directory(&path)?;
        Ok(undo)
    };
    let undo = replace().inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok(Written {
        content: number(content),
        changed: true,
        undo,
    })
}

/// Makes it the same owner's and group's, as far as we may: its readers are to read it as before.
fn give(file: &File, before: &Metadata) -> io::Result<()> {
    let (owner, group) = (before.uid(), before.gid());
    let refused = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
        done => done.map(|()| false),
    };
    if refused(fchown(file, Some(owner), Some(group)))? {
        refused(fchown(file, None, Some(group)))?;
    }
    Ok(())
}

/// Keeps what is there, unless it never passed its check and something that did is kept already. A link costs no room on a full disk.
fn put_aside(path: &Path, before: Option<&[u8]>, aside: Aside) -> io::Result<Undo> {
    let Some(before) = before else {
        gone(&old(path))?;
        return Ok(Undo::Remove);
    };
    if aside.good == Some(number(before)) || !keeps(path, aside)? {
        gone(&old(path))?;
        fs::hard_link(path, old(path))?;
    }
    Ok(Undo::PutBack)
}

/// It was put there by a supervisor that died before its check was through, or by nobody of ours. Then it is not ours to take away.
fn undo_of_another(path: &Path, content: &[u8], aside: Aside) -> io::Result<Option<Undo>> {
    if aside.good != Some(number(content)) && keeps(path, aside)? {
        return Ok(Some(Undo::PutBack));
    }
    gone(&old(path))?;
    Ok(None)
}

/// Is what is kept beside it what a failed check is to bring back?
fn keeps(path: &Path, aside: Aside) -> io::Result<bool> {
    if !aside.ours {
        return Ok(false);
    }
    match fs::read(old(path)) {
        Ok(kept) => Ok(aside.good.is_none_or(|good| good == number(&kept))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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

    /// By a daemon that has written it before.
    fn ours(good: Option<u64>) -> Option<Aside> {
        Some(Aside { good, ours: true })
    }

    /// By one that has just begun.
    const FIRST: Option<Aside> = Some(Aside {
        good: None,
        ours: false,
    });

    #[test]
    fn what_failed_its_check_is_replaced_by_the_last_that_passed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        let text = path.display().to_string();
        let files = Files::default();
        let read = || fs::read_to_string(&path).unwrap();
        fs::write(&path, "by hand").unwrap();
        assert!(put(&path, b"one", FIRST).unwrap().changed);
        // Its supervisor died before the check was through; the next one has the same list, and then another.
        let same = put(&path, b"one", ours(None)).unwrap();
        assert_eq!((same.changed, same.undo), (false, Some(Undo::PutBack)));
        let two = put(&path, b"two", ours(None)).unwrap();
        assert_eq!((two.changed, two.undo), (true, Some(Undo::PutBack)));
        files.restore(1, &text, Undo::PutBack).unwrap();
        assert_eq!(read(), "by hand");
        let good = put(&path, b"three", ours(None)).unwrap();
        files.settle(1, &text);
        assert_eq!(names(dir.path()), ["web.conf"]);
        assert!(!put(&path, b"three", ours(None)).unwrap().changed);
        put(&path, b"four", ours(Some(good.content))).unwrap();
        put(&path, b"five", ours(Some(good.content))).unwrap();
        files.restore(2, &text, Undo::PutBack).unwrap();
        assert_eq!(read(), "three");
        assert_eq!(names(dir.path()), ["web.conf"]);
    }

    #[test]
    fn where_nothing_was_nothing_is_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        let written = put(&path, b"one", FIRST).unwrap();
        assert_eq!(written.undo, Some(Undo::Remove));
        Files::default()
            .restore(1, &path.display().to_string(), Undo::Remove)
            .unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_was_there_before_is_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        fs::write(&path, "one").unwrap();
        let written = put(&path, b"one", FIRST).unwrap();
        assert_eq!((written.changed, written.undo), (false, None));
    }

    #[test]
    fn what_an_earlier_daemon_kept_is_not_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.conf");
        let text = path.display().to_string();
        let files = Files::default();
        for (there, next) in [("one", "one"), ("one", "two")] {
            fs::write(&path, there).unwrap();
            fs::write(old(&path), "zero").unwrap();
            let written = put(&path, next.as_bytes(), FIRST).unwrap();
            if let Some(undo) = written.undo {
                files.restore(1, &text, undo).unwrap();
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), "one");
            assert_eq!(names(dir.path()), ["web.conf"]);
        }
        // Nor is anything but the last that passed its check.
        fs::write(&path, "by hand").unwrap();
        fs::write(old(&path), "zero").unwrap();
        put(&path, b"two", ours(Some(number(b"one")))).unwrap();
        files.restore(2, &text, Undo::PutBack).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "by hand");
    }

    #[test]
    fn an_older_request_comes_too_late() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("web.conf").display().to_string();
        let files = Files::default();
        files.restore(5, &text, Undo::Remove).unwrap();
        fs::write(&text, "newer").unwrap();
        files.restore(4, &text, Undo::Remove).unwrap();
        assert_eq!(fs::read_to_string(&text).unwrap(), "newer");
        fs::write(old(Path::new(&text)), "put aside by a newer one").unwrap();
        files.settle(4, &text);
        assert!(old(Path::new(&text)).exists());
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        // Somebody who opened it would wait for a writer.
        let pipe = dir.path().join("pipe");
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, mode, 0).unwrap();
        for path in [dir.path(), &pipe, Path::new("/dev/null")] {
            let error = put(path, b"one", FIRST).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
        assert_eq!(names(dir.path()), ["pipe"]);
    }

    #[test]
    fn a_link_to_nothing_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (there, here) = (dir.path().join("there"), dir.path().join("here"));
        fs::create_dir(&there).unwrap();
        fs::create_dir(&here).unwrap();
        let link = here.join("link");
        std::os::unix::fs::symlink("../there/real", &link).unwrap();
        let written = put(&link, b"one", FIRST).unwrap();
        assert_eq!(written.undo, Some(Undo::Remove));
        assert_eq!(fs::read_to_string(there.join("real")).unwrap(), "one");
        let text = link.display().to_string();
        Files::default().restore(1, &text, Undo::Remove).unwrap();
        assert_eq!(
            (names(&there), names(&here)),
            (vec![], vec!["link".to_owned()])
        );
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("link", &link).unwrap();
        put(&link, b"one", FIRST).unwrap_err();
    }

    #[test]
    fn a_link_stays_and_a_mode_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&path, "a").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        put(&link, b"b", None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Only root may give a file away.
        if fchown(File::open(&path).unwrap(), Some(7), Some(8)).is_ok() {
            put(&link, b"c", None).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
        }
    }
}
