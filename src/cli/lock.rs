//! `leasehold lock`: one command under one lock, with no daemon; and the supervisor of that.

use std::{
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    cli::{Outcome, directories, parse_span, print, print_json},
    config::spec::LOCAL,
    driver,
    exit::ExitCode,
    http::Directories,
    id::FleetName,
    keeper, locks,
    time::Span,
};

/// A program that is not there; what shells, env(1) and timeout(1) end with.
const NOT_FOUND: u8 = 127;
/// One that is there and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

#[derive(Debug, Args)]
#[command(
    override_usage = "leasehold lock [OPTIONS] <NAME> -- <CMD>...\n       leasehold lock [--slots <SLOTS>] [--json] --print-path <NAME>"
)]
#[command(after_help = "Examples:
  leasehold lock backup --no-wait -- pg_dumpall -f /srv/all.sql
  leasehold lock -n 3 encode --timeout 10m -- ffmpeg -i in.mkv out.webm
  leasehold lock --cluster migrate -- /srv/app/bin/migrate

The lock is that of a fleet's `singleton = { scope = \"node\", lock = NAME }`, of every daemon of this user; flock(1) respects it on the printed \
path. With --cluster it is that of `scope = \"cluster\"`: when etcd is not heard of any more, the command is ended before anybody else can have \
it.

The command finds LEASEHOLD_LOCK, LEASEHOLD_LOCK_FD, LEASEHOLD_FENCE and LEASEHOLD_PAGE_FD in its environment, and what it leaves running is \
killed when it ends, or when this process does.

Exit codes: the command's own; 128+n if signal n ended it, or ended the waiting (130: ^C); 126 not executable, 127 not found, 2 usage; \
-E (69) if the lock was not had.")]
pub(super) struct LockArgs {
    /// The lock: 1 to 64 letters, digits, `-`, `_` or `.`
    #[arg(value_parser = parse_name)]
    name: FleetName,
    /// So many may hold it at once; all who use it must say the same number
    #[arg(short = 'n', long, value_name = "SLOTS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    slots: u32,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = parse_span, conflicts_with = "no_wait")]
    timeout: Option<Span>,
    /// Give up at once if somebody has it
    #[arg(long)]
    no_wait: bool,
    /// What to end with when the lock was not had
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = 69)]
    exit_code: u8,
    /// The lock of this name of the whole cluster, by the [etcd] of a configuration: one machine has it, and no longer than its lease lasts
    #[arg(long)]
    cluster: bool,
    /// With --cluster: where [etcd] stands [default: ./leasehold.toml, then /etc/leasehold/leasehold.toml]
    #[arg(short, long, value_name = "FILE", requires = "cluster")]
    config: Option<PathBuf>,
    /// With --cluster: run although what the command starts may outlive us if we are killed; needed where we are neither root nor PID 1
    #[arg(long, requires = "cluster")]
    weak: bool,
    /// Make no cgroup: hold the command's processes together by process group and by scanning /proc
    #[arg(long)]
    no_cgroup: bool,
    /// Print the lock's file, one line a slot, and run nothing
    #[arg(long, conflicts_with = "cluster")]
    print_path: bool,
    /// Print JSON
    #[arg(long, requires = "print_path")]
    json: bool,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        value_name = "CMD",
        required_unless_present = "print_path"
    )]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct TendArgs {
    #[arg(value_parser = parse_name)]
    name: FleetName,
    #[arg(long)]
    slots: u32,
    #[arg(long)]
    patience_ns: Option<u64>,
    #[arg(long)]
    exit_code: u8,
    #[arg(long)]
    cluster: Option<PathBuf>,
    #[arg(long)]
    weak: bool,
}

fn parse_name(text: &str) -> Result<FleetName, String> {
    text.parse::<FleetName>().map_err(|bad| {
        let like = text.replace(
            |c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c),
            "-",
        );
        match like.parse::<FleetName>() {
            Ok(like) => format!("{bad}; {like} would do"),
            Err(_) => bad.to_string(),
        }
    })
}

/// Where a lock is, as programs read it.
#[derive(serde::Serialize)]
struct Place<'a> {
    name: &'a str,
    slots: u32,
    paths: &'a [PathBuf],
}

/// Becomes the keeper of one command; its exit code.
pub(super) fn lock(args: &LockArgs) -> u8 {
    if args.print_path {
        return super::number(print_path(args).map(ExitCode::number));
    }
    let command = match find(args) {
        Ok(command) => command,
        Err((code, why)) => {
            eprintln!("leasehold: {why}");
            return code;
        }
    };
    let cluster = match args.cluster {
        true => directories::configuration(args.config.clone()).map(Some),
        false => Ok(None),
    };
    let cluster = match cluster {
        Ok(path) => path,
        Err(failure) => {
            eprintln!("leasehold: {}", failure.why);
            return args.exit_code;
        }
    };
    let patience = match args.timeout {
        _ if args.no_wait => Some(Span::ZERO),
        timeout => timeout.filter(|span| !span.is_forever()),
    };
    let mut line = vec![
        "leasehold".to_owned(),
        "lock-supervisor".to_owned(),
        format!("--slots={}", args.slots),
        format!("--exit-code={}", args.exit_code),
    ];
    line.extend(patience.map(|span| format!("--patience-ns={}", span.as_nanos())));
    line.extend(cluster.map(|path| format!("--cluster={}", path.display())));
    line.extend(args.weak.then(|| "--weak".to_owned()));
    line.push(args.name.to_string());
    let line = line.into_iter().filter_map(|word| CString::new(word).ok());
    keeper::run_errand(command, line.collect(), args.no_cgroup).unwrap_or_else(|error| {
        let cause = std::error::Error::source(&error)
            .map_or_else(String::new, |source| format!(": {source}"));
        eprintln!("leasehold: failed to {error}{cause}");
        args.exit_code
    })
}

fn print_path(args: &LockArgs) -> Outcome {
    let paths: Vec<PathBuf> = (0..args.slots)
        .map(|slot| locks::default_path(LOCAL, args.name.as_str(), slot))
        .collect();
    if args.json {
        return print_json(&Place {
            name: args.name.as_str(),
            slots: args.slots,
            paths: &paths,
        });
    }
    print(
        &paths
            .iter()
            .map(|path| format!("{}\n", path.display()))
            .collect::<String>(),
    )
}

/// What the keeper of one command starts.
pub(super) fn tend(args: TendArgs) -> u8 {
    let nowhere = Directories {
        run: PathBuf::new(),
        state: PathBuf::new(),
        log: PathBuf::new(),
    };
    driver::run(driver::Settings {
        config: PathBuf::new(),
        directories: nowhere,
        quiet: true,
        echo: false,
        systemd: false,
        errand: Some(driver::Errand {
            lock: args.name,
            slots: args.slots,
            patience: args.patience_ns.map(Span::nanos),
            code: args.exit_code,
            cluster: args.cluster.map(|config| driver::ClusterErrand {
                config,
                weak: args.weak,
            }),
        }),
    })
}

/// Looks the command up as execvp(3) does, before anything is waited for.
fn find(args: &LockArgs) -> Result<keeper::Command, (u8, String)> {
    let words = &args.command;
    let nul = |word: &OsString| CString::new(word.as_bytes());
    let argv: Result<Vec<CString>, _> = words.iter().map(nul).collect();
    let argv = argv.map_err(|_| (ExitCode::Usage.number(), "CMD holds a NUL byte".to_owned()))?;
    let name = words.first().map(OsString::as_os_str).unwrap_or_default();
    let shown = name.to_string_lossy();
    let program = if name.as_bytes().contains(&b'/') {
        PathBuf::from(name)
    } else {
        in_path(name).ok_or_else(|| {
            let why = format!("{shown}: no such program in $PATH; give its path, or mend $PATH");
            (NOT_FOUND, why)
        })?
    };
    let failed = match std::fs::metadata(&program) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Some((NOT_EXECUTABLE, e.to_string()))
        }
        Err(e) => Some((NOT_FOUND, e.to_string())),
        Ok(meta) if meta.is_dir() => Some((NOT_EXECUTABLE, "is a directory".to_owned())),
        Ok(_) if !may_execute(&program) => Some((
            NOT_EXECUTABLE,
            "is not executable; chmod +x would make it so".to_owned(),
        )),
        Ok(_) => None,
    };
    if let Some((code, why)) = failed {
        return Err((code, format!("{shown}: {why}")));
    }
    let program = CString::new(program.as_os_str().as_bytes());
    let program = program.map_err(|_| (NOT_FOUND, format!("{shown}: $PATH holds a NUL byte")))?;
    Ok(keeper::Command {
        program,
        argv,
        otherwise: args.exit_code,
    })
}

/// The first file of that name that may be executed; else the first of that name.
fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let files: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .filter(|file| !name.is_empty() && file.is_file())
        .collect();
    let good = files.iter().find(|file| may_execute(file));
    good.or(files.first()).cloned()
}

fn may_execute(file: &Path) -> bool {
    rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}
