//! `leasehold logs`: workers' output from its files, with or without a daemon.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::fs::inotify;

use crate::{
    cli::{Failure, Outcome, Reach, client::Client, directories, journalctl::Sinks},
    config::spec::Sink,
    engine::command::matches,
    exit::ExitCode,
    http::view::StatusView,
    sys::poll::{EventFlags, Poll},
};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Fleets or workers: names, `name/slot`, patterns [default: all]
    names: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    /// Print so many past lines of each worker
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// Where the files are [default: as the daemon says]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
}

/// One worker's file, read up to here.
struct Followed {
    name: String,
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
}

pub(super) fn logs(args: &LogsArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let daemon = client.status();
    let dir = match (&args.log_dir, &daemon) {
        (Some(dir), _) => dir.clone(),
        (None, Ok(view)) => view.directories.log.clone(),
        (None, Err(_)) => directories::log_default(),
    };
    // Who names a directory wants what is in it, whatever is configured now.
    let sinks = match (&daemon, &args.log_dir) {
        (Ok(_), None) => Sinks::ask(&client)?,
        (Ok(_), Some(_)) | (Err(_), _) => Sinks::default(),
    };
    let find = || -> Result<Vec<(String, PathBuf)>, Failure> {
        let mut files = find(&dir, &args.names)?;
        files.retain(|(id, _)| sinks.of(id) != Sink::Journal);
        Ok(files)
    };
    let mut files = find()?;
    check_names(args, &files, &daemon, &sinks, &dir)?;
    if let Ok(view) = &daemon {
        let workers = view.fleets.iter().flat_map(|fleet| &fleet.workers);
        let workers: Vec<String> = workers.map(|worker| worker.id.clone()).collect();
        let command = sinks.command(&args.names, &workers, args.lines, args.follow);
        let where_it_is = command.map(|command| format!("output is in the journal: {command}"));
        match where_it_is {
            Some(why) if files.is_empty() => return Err(Failure::new(ExitCode::Failed, why)),
            Some(why) => eprintln!("leasehold: other {why}"),
            None => {}
        }
    }
    match &daemon {
        Err(failure) if files.is_empty() && !args.follow => {
            let why = format!("{}; and {} holds no output", failure.why, dir.display());
            return Err(Failure::new(failure.code, why));
        }
        // Who names the directory and wants no more than what is there does not need a daemon.
        Err(failure) if args.log_dir.is_none() || args.follow => {
            eprintln!(
                "leasehold: {}; this is what {} holds",
                failure.why,
                dir.display()
            );
        }
        Ok(_) if files.is_empty() && !args.follow => {
            let why = format!("{} holds no output yet", dir.display());
            return Err(Failure::new(ExitCode::UnknownName, why));
        }
        Ok(_) | Err(_) => {}
    }
    // Watched before read: what comes in between is not missed.
    let watch = args.follow.then(|| Watcher::new(&dir)).transpose()?;
    let prefix = args.names.len() != 1 || files.len() != 1;
    for (name, path) in &files {
        let text = last_lines(path, args.lines);
        if !show(name, &text, prefix) {
            return Ok(ExitCode::Ok);
        }
    }
    let Some(mut watch) = watch else {
        return Ok(ExitCode::Ok);
    };
    let mut followed: BTreeMap<PathBuf, Followed> = BTreeMap::new();
    for (name, path) in files.drain(..) {
        let file = File::open(&path).ok().map(|mut file| {
            let _ = file.seek(SeekFrom::End(0));
            file
        });
        followed.insert(
            path.clone(),
            Followed {
                name,
                path,
                file,
                pending: Vec::new(),
            },
        );
    }
    loop {
        watch.wait(&dir)?;
        for (name, path) in find()? {
            followed.entry(path.clone()).or_insert(Followed {
                name,
                path,
                file: None,
                pending: Vec::new(),
            });
        }
        for one in followed.values_mut() {
            if !one.advance(prefix) {
                return Ok(ExitCode::Ok);
            }
        }
    }
}

/// A name that means nothing is an error, rather than silence.
fn check_names(
    args: &LogsArgs,
    files: &[(String, PathBuf)],
    daemon: &Result<StatusView, Failure>,
    sinks: &Sinks,
    dir: &Path,
) -> Result<(), Failure> {
    let selects = |name: &str, id: &str| {
        let fleet = id.split('/').next().unwrap_or_default();
        matches(name, fleet) || matches(name, id.trim_end_matches('!'))
    };
    let silent = args
        .names
        .iter()
        .filter(|name| !files.iter().any(|(id, _)| selects(name, id)));
    for name in silent {
        let fleet = name.split('/').next().unwrap_or_default();
        let none = format!("{} holds no output of {name}", dir.display());
        let failure = match daemon {
            Ok(view) if !view.fleets.iter().any(|known| matches(fleet, &known.name)) => {
                Failure::new(
                    ExitCode::UnknownName,
                    format!("nothing is called `{name}`; `leasehold status` lists what there is"),
                )
            }
            Ok(_) if sinks.have(fleet, Sink::Journal) => continue,
            Ok(_) if sinks.have(fleet, Sink::None) => Failure::new(
                ExitCode::UnknownName,
                format!("what {fleet} writes is kept nowhere (log.sink = \"none\")"),
            ),
            // Its first line may be what is waited for.
            Ok(_) if args.follow => continue,
            Ok(_) => Failure::new(ExitCode::UnknownName, none),
            Err(failure) => Failure::new(failure.code, format!("{}; and {none}", failure.why)),
        };
        return Err(failure);
    }
    Ok(())
}

impl Followed {
    /// Prints what is new; a file that was rotated is read to its end first. False when nobody reads us any more.
    fn advance(&mut self, prefix: bool) -> bool {
        loop {
            let Some(file) = &mut self.file else {
                match File::open(&self.path) {
                    Ok(file) => self.file = Some(file),
                    Err(_) => return true,
                }
                continue;
            };
            let _ = file.read_to_end(&mut self.pending);
            let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
            let rotated =
                file.metadata().ok().map(inode) != fs::metadata(&self.path).ok().map(inode);
            let end = memchr::memrchr(b'\n', &self.pending).map_or(0, |at| at + 1);
            let whole: Vec<u8> = self.pending.drain(..end).collect();
            if !whole.is_empty() && !show(&self.name, &whole, prefix) {
                return false;
            }
            if !rotated {
                return true;
            }
            self.file = None;
        }
    }
}

/// `(web/3, path)` of every current log file that is selected.
fn find(dir: &Path, names: &[String]) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut found = Vec::new();
    let fleets = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => {
            let code = if e.kind() == std::io::ErrorKind::PermissionDenied {
                ExitCode::Permission
            } else {
                ExitCode::Failed
            };
            return Err(Failure::new(
                code,
                format!("cannot read {}: {e}", dir.display()),
            ));
        }
    };
    for fleet in fleets.flatten() {
        let fleet_name = fleet.file_name().to_string_lossy().into_owned();
        for entry in fs::read_dir(fleet.path()).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(stem) = file.strip_suffix(".log") else {
                continue;
            };
            let slot = stem.strip_suffix(".stderr").unwrap_or(stem);
            let id = format!("{fleet_name}/{slot}");
            if names.is_empty()
                || names
                    .iter()
                    .any(|name| matches(name, &fleet_name) || matches(name, &id))
            {
                let mark = if stem == slot { "" } else { "!" };
                found.push((format!("{id}{mark}"), entry.path()));
            }
        }
    }
    found.sort_by_key(|(name, _)| {
        let (fleet, slot) = name
            .trim_end_matches('!')
            .split_once('/')
            .unwrap_or((name, ""));
        (
            fleet.to_owned(),
            slot.parse::<u32>().unwrap_or(u32::MAX),
            name.clone(),
        )
    });
    Ok(found)
}

/// The last `count` lines, out of the rotated file too if the current one is short.
fn last_lines(path: &Path, count: usize) -> Vec<u8> {
    let mut text = tail(path, count);
    let have = memchr::memchr_iter(b'\n', &text).count();
    if have < count {
        let mut older = tail(Path::new(&format!("{}.1", path.display())), count - have);
        older.append(&mut text);
        text = older;
    }
    text
}

/// The last `count` lines of one file, read backwards in pieces.
fn tail(path: &Path, count: usize) -> Vec<u8> {
    let Ok(mut file) = File::open(path) else {
        return Vec::new();
    };
    let mut at = file.seek(SeekFrom::End(0)).unwrap_or(0);
    let mut text: Vec<u8> = Vec::new();
    while at > 0 && memchr::memchr_iter(b'\n', &text).count() <= count {
        let step = at.min(64 * 1024);
        at -= step;
        let mut piece = vec![0; step as usize];
        if file
            .seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut piece))
            .is_err()
        {
            break;
        }
        piece.append(&mut text);
        text = piece;
    }
    let ends: Vec<usize> = memchr::memchr_iter(b'\n', &text).collect();
    let unfinished = usize::from(!text.is_empty() && !text.ends_with(b"\n"));
    let lines = ends.len() + unfinished;
    if lines > count {
        let cut = ends.get(lines - count - 1).map_or(0, |end| end + 1);
        text.drain(..cut);
    }
    text
}

/// Prints whole lines; false when the reader is gone.
fn show(name: &str, text: &[u8], prefix: bool) -> bool {
    let mut out = std::io::stdout().lock();
    if !prefix {
        return out.write_all(text).and_then(|()| out.flush()).is_ok();
    }
    let mut lines = Vec::with_capacity(text.len() + 64);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b" | ");
        lines.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        lines.push(b'\n');
    }
    out.write_all(&lines).and_then(|()| out.flush()).is_ok()
}

/// Wakes when anything below the log directory changes.
struct Watcher {
    inotify: rustix::fd::OwnedFd,
    poll: Poll,
}

impl Watcher {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| {
            Failure::new(
                ExitCode::Failed,
                format!("cannot watch {}: {e}", dir.display()),
            )
        };
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        let poll = Poll::new().map_err(failed)?;
        poll.add(&inotify, 0, EventFlags::IN).map_err(failed)?;
        let watcher = Self { inotify, poll };
        watcher.add_all(dir);
        Ok(watcher)
    }

    /// New fleets come with new directories; adding one twice changes nothing.
    fn add_all(&self, dir: &Path) {
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        let below = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir());
        for path in std::iter::once(dir.to_owned()).chain(below) {
            let _ = inotify::add_watch(self.inotify.as_fd(), &path, flags);
        }
    }

    fn wait(&mut self, dir: &Path) -> Result<(), Failure> {
        let failed = |e: std::io::Error| {
            Failure::new(
                ExitCode::Failed,
                format!("cannot watch {}: {e}", dir.display()),
            )
        };
        self.poll.wait(None).map_err(failed)?;
        let mut sink = [0; 4_096];
        while rustix::io::read(&self.inotify, &mut sink).is_ok_and(|n| n > 0) {}
        self.add_all(dir);
        Ok(())
    }
}
