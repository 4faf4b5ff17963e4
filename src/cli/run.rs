//! `leasehold run`: becomes the keeper; and the supervisor that the keeper starts.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::PathBuf};

use clap::Args;

use crate::{
    cli::directories,
    driver,
    exit::ExitCode,
    http::Directories,
    keeper::{self, KeeperError},
    sys::lock::LockError,
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration [default: ./leasehold.toml, then /etc/leasehold/leasehold.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Control socket and instance lock [default: $RUNTIME_DIRECTORY, /run/leasehold, $XDG_RUNTIME_DIR/leasehold]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Holds, sizes and jobs' books, which outlive everything [default: $STATE_DIRECTORY, /var/lib/leasehold, ~/.local/state/leasehold]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Workers' output [default: $LOGS_DIRECTORY, /var/log/leasehold, the state directory's log]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Print neither events nor workers' output
    #[arg(short, long)]
    quiet: bool,
    /// Print workers' output even when stdout is not a terminal
    #[arg(long, conflicts_with = "quiet")]
    echo: bool,
    /// Make no cgroups: hold workers together by process group and by scanning /proc
    #[arg(long)]
    no_cgroup: bool,
}

#[derive(Debug, Args)]
pub(super) struct SupervisorArgs {
    #[arg(long)]
    config: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    state_dir: PathBuf,
    #[arg(long)]
    log_dir: PathBuf,
    #[arg(long)]
    quiet: bool,
    #[arg(long)]
    echo: bool,
    #[arg(long)]
    systemd: bool,
}

/// Becomes the keeper until everything is stopped.
pub(super) fn run(args: RunArgs) -> u8 {
    let prepared = directories::configuration(args.config.clone()).and_then(|config| {
        directories::must_last(&config)?;
        let directories = directories::prepare(args.run_dir, args.state_dir, args.log_dir)?;
        Ok((config, directories))
    });
    let (config, directories) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            eprintln!("leasehold: {}", failure.why);
            return failure.code.number();
        }
    };
    let mut line: Vec<Vec<u8>> = vec![b"leasehold".to_vec(), b"supervisor".to_vec()];
    let paths = [
        ("--config", &config),
        ("--run-dir", &directories.run),
        ("--state-dir", &directories.state),
        ("--log-dir", &directories.log),
    ];
    for (flag, path) in paths {
        line.extend([
            flag.as_bytes().to_vec(),
            path.as_os_str().as_bytes().to_vec(),
        ]);
    }
    let flags = [
        ("--quiet", args.quiet),
        ("--echo", args.echo),
        ("--systemd", std::env::var_os("NOTIFY_SOCKET").is_some()),
    ];
    line.extend(
        flags
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(flag, _)| flag.as_bytes().to_vec()),
    );
    let supervisor_args = line
        .into_iter()
        .filter_map(|word| CString::new(word).ok())
        .collect();
    match keeper::run(keeper::Settings {
        run_dir: directories.run,
        state_dir: directories.state,
        log_dir: directories.log,
        supervisor_args,
        no_cgroup: args.no_cgroup,
    }) {
        Ok(code) => code,
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |source| format!(": {source}"));
            eprintln!("leasehold: failed to {error}{cause}");
            match error {
                KeeperError::Lock(LockError::Held { .. }) => ExitCode::Conflict.number(),
                KeeperError::Lock(LockError::Io { .. })
                | KeeperError::Leftovers(_)
                | KeeperError::Kernel { .. } => ExitCode::Failed.number(),
            }
        }
    }
}

/// What the keeper starts.
pub(super) fn supervise(args: SupervisorArgs) -> u8 {
    let directories = Directories {
        run: args.run_dir,
        state: args.state_dir,
        log: args.log_dir,
    };
    driver::run(driver::Settings {
        config: args.config,
        directories,
        quiet: args.quiet,
        echo: args.echo,
        systemd: args.systemd,
        errand: None,
    })
}
