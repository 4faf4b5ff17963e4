//! Where things are: by flag, as systemd says, or by who we are.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{cli::Failure, exit::ExitCode, http::Directories};

/// Longest path of a unix socket (unix(7): 108 bytes with its NUL).
const SOCKET_PATH_MAX: usize = 107;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    // systemd separates several directories by a colon; the first is ours.
    let first = value.to_str()?.split(':').next()?.to_owned();
    (!first.is_empty()).then(|| PathBuf::from(first))
}

fn home() -> PathBuf {
    variable("HOME").unwrap_or_else(|| PathBuf::from("/"))
}

fn run_default() -> PathBuf {
    match variable("XDG_RUNTIME_DIR") {
        _ if is_root() => PathBuf::from("/run/leasehold"),
        Some(dir) => dir.join("leasehold"),
        None => PathBuf::from(format!(
            "/tmp/leasehold-{}",
            rustix::process::geteuid().as_raw()
        )),
    }
}

/// The three directories of a daemon to be started, made if need be.
pub(super) fn prepare(
    run: Option<PathBuf>,
    state: Option<PathBuf>,
    log: Option<PathBuf>,
) -> Result<Directories, Failure> {
    let run = run
        .or_else(|| variable("RUNTIME_DIRECTORY"))
        .unwrap_or_else(run_default);
    let state = state
        .or_else(|| variable("STATE_DIRECTORY"))
        .unwrap_or_else(|| match variable("XDG_STATE_HOME") {
            _ if is_root() => PathBuf::from("/var/lib/leasehold"),
            Some(dir) => dir.join("leasehold"),
            None => home().join(".local/state/leasehold"),
        });
    let log = log
        .or_else(|| variable("LOGS_DIRECTORY"))
        .unwrap_or_else(|| {
            if is_root() {
                PathBuf::from("/var/log/leasehold")
            } else {
                state.join("log")
            }
        });
    // Relative paths would mean another place after a change of directory.
    let [run, state, log] = [
        ("run", run, 0o755),
        ("state", state, 0o700),
        ("log", log, 0o750),
    ]
    .map(|(what, path, mode)| {
        std::path::absolute(&path)
            .map_err(|e| trouble(what, &path, &e))
            .and_then(|path| make(what, &path, mode).map(|()| path))
    });
    let directories = Directories {
        run: run?,
        state: state?,
        log: log?,
    };
    let socket = directories.run.join("control.sock");
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        let why = format!(
            "{} is too long for a unix socket ({SOCKET_PATH_MAX} bytes); choose a shorter --run-dir",
            socket.display()
        );
        return Err(Failure::new(ExitCode::Usage, why));
    }
    Ok(directories)
}

fn make(what: &str, path: &Path, mode: u32) -> Result<(), Failure> {
    // What lies below a directory that everybody may write to must be ours and closed.
    let private = path.parent() == Some(Path::new("/tmp"));
    let mode = if private { 0o700 } else { mode };
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path);
    made.map_err(|e| match e.kind() {
        // What the kernel says of a file in the way: "File exists".
        io::ErrorKind::AlreadyExists => trouble(what, path, &io::ErrorKind::NotADirectory.into()),
        _ => trouble(what, path, &e),
    })?;
    let meta = fs::symlink_metadata(path).map_err(|e| trouble(what, path, &e))?;
    if private
        && (meta.uid() != rustix::process::geteuid().as_raw()
            || meta.mode() & 0o077 != 0
            || meta.is_symlink())
    {
        let why = format!(
            "{} is not a directory of ours alone; remove it, or choose another with --{what}-dir",
            path.display()
        );
        return Err(Failure::new(ExitCode::Permission, why));
    }
    writable(what, path)
}

/// Said now, by name, rather than later by the first thing that fails.
fn writable(what: &str, path: &Path) -> Result<(), Failure> {
    rustix::fs::access(
        path,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .map_err(|e| trouble(what, path, &e.into()))
}

fn trouble(what: &str, path: &Path, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::PermissionDenied {
        ExitCode::Permission
    } else {
        ExitCode::Failed
    };
    Failure::new(
        code,
        format!(
            "cannot use {} as the {what} directory: {error}; choose another with --{what}-dir",
            path.display()
        ),
    )
}

/// The control socket that a client talks to.
pub(super) fn control_socket(given: Option<&Path>, run_dir: Option<&Path>) -> PathBuf {
    // A directory on the command line is nearer than a socket in the environment.
    if let Some(path) = run_dir
        .map(|dir| dir.join("control.sock"))
        .or_else(|| given.map(Path::to_owned))
    {
        return path;
    }
    let own = variable("RUNTIME_DIRECTORY")
        .unwrap_or_else(run_default)
        .join("control.sock");
    let system = PathBuf::from("/run/leasehold/control.sock");
    if !own.exists() && system.exists() {
        system
    } else {
        own
    }
}

/// Where output is found without a daemon.
pub(super) fn log_default() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/log/leasehold");
    }
    variable("XDG_STATE_HOME")
        .map_or_else(
            || home().join(".local/state/leasehold"),
            |dir| dir.join("leasehold"),
        )
        .join("log")
}

/// The supervisor reads the configuration, and reads it again at each reload: what can be read once, by this process, will not do.
/// A file that is not there at all is the configuration's own fault, and reported with the others.
pub(super) fn must_last(path: &Path) -> Result<(), Failure> {
    let Ok(meta) = fs::metadata(path) else {
        return Ok(());
    };
    if meta.is_file() {
        return Ok(());
    }
    let shown = path.display();
    let why = if meta.is_dir() {
        format!("{shown} is a directory; name a file in it with -c")
    } else {
        format!(
            "{shown} is not a regular file, and the daemon must read its configuration again at each reload; write it to a file and name that with -c"
        )
    };
    Err(Failure::new(ExitCode::Config, why))
}

/// `./leasehold.toml`, then `/etc/leasehold/leasehold.toml`.
pub(super) fn configuration(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    if let Some(path) = given {
        return Ok(absolute(path));
    }
    let places = ["leasehold.toml", "/etc/leasehold/leasehold.toml"].map(PathBuf::from);
    let found = places.iter().find(|path| path.exists()).cloned();
    found.map(absolute).ok_or_else(|| {
        let why = "no configuration: neither ./leasehold.toml nor /etc/leasehold/leasehold.toml is there; name one with -c";
        Failure::new(ExitCode::Config, why)
    })
}
