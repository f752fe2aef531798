//! `quorated`: the command line of the node daemon.
//!
//! Exit codes: 0 it ended as it was told, 1 a fault, 2 usage or configuration.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use quorate_node::config::{Config, ConfigError, ENV_PREFIX, RawConfig, RawList, RawPeers};
use quorate_node::node::{self, NodeError};
use quorate_node::restore::command::{BackupVerifyArgs, RestoreArgs};
use quorate_node::telemetry::{self, Format};
use quorate_node::verify;

/// Writing is many small allocations on several threads; the system's allocator took an eighth of the time of applying.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A node of a Quorate cluster: a replicated SQL database.
#[derive(Parser)]
#[command(name = "quorated", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a voter of a new or existing cluster (--peers), or a log-shipped replica (--replica-of).
    Start(Box<StartArgs>),
    /// After a lost quorum: makes the directory of a stopped survivor that of the first voter of a new epoch.
    Recover(RecoverArgs),
    /// Proves a closed node's directory: recomputes checksums, hash chains and digests, and changes nothing.
    Verify(VerifyArgs),
    /// Makes a data directory of a backup: the first voter of a new cluster.
    Restore(RestoreArgs),
    /// Proves that a backup is good: restores it into a scratch directory and compares.
    BackupVerify(BackupVerifyArgs),
}

/// Exit codes: 0 proved, 1 damaged, 2 it could not be looked at.
#[derive(Args)]
struct VerifyArgs {
    /// The data directory; its node must not run.
    directory: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where the engine is copied to while it is read [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Leave the engine out.
    #[arg(long)]
    log_only: bool,
}

fn verify(args: VerifyArgs) -> ExitCode {
    let options = verify::Options {
        directory: args.directory,
        scratch: args.scratch,
        log_only: args.log_only,
        ..verify::Options::default()
    };
    let verified = match verify::run(&options) {
        Ok(verified) => verified,
        Err(error) => {
            eprintln!("quorated: {error}");
            return ExitCode::from(2);
        }
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&verified).map(|json| json + "\n"),
        false => Ok(verified.to_string()),
    };
    // A closed stdout is nobody's problem.
    let _ = std::io::stdout().write_all(text.unwrap_or_default().as_bytes());
    if verified.proved { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `quorated recover`.
#[derive(Args)]
struct RecoverArgs {
    /// The survivor's data directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// Every setting can also stand in the file (`replica_of = "..."`) or the environment (`QUORATED_REPLICA_OF`).
#[derive(Args)]
struct StartArgs {
    /// This node's number; never reused in a cluster.
    #[arg(long, value_name = "NUMBER")]
    id: Option<u64>,
    /// Data directory [default: quorate-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address for clients and peers [default: this node's in --peers, else 127.0.0.1:7411].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address for /metrics, /status and /health.
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Address under which others reach this node, where it is not the one it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Every voter, this node included; one alone makes a cluster of one.
    #[arg(long, value_name = "ID=HOST:PORT,...")]
    peers: Option<String>,
    /// Be a read-only replica; any of these nodes leads to the master.
    #[arg(long, value_name = "HOST:PORT,...")]
    replica_of: Option<String>,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether the configuration is valid, and end.
    #[arg(long)]
    check_config: bool,
    /// What orders the entries of a new cluster: raft or paxos. Every voter gives the same [default: raft].
    #[arg(long, value_name = "NAME")]
    replicator: Option<String>,
    /// Print the configuration in effect, and end.
    #[arg(long)]
    print_config: bool,
    /// Listen beyond this machine although there is no authentication yet.
    #[arg(long)]
    insecure: bool,
    /// Stop, as on SIGTERM, when standard input ends: whoever started this node holds it, and takes it along.
    #[arg(long)]
    until_stdin_closes: bool,
    /// What to log: error, warn, info, debug, trace, or a filter.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// text or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Engine cache in MiB [default: 256].
    #[arg(long, value_name = "MIB")]
    cache_mb: Option<u64>,
    /// Shortest time without a leader's sign of life before another is elected [default: 400].
    #[arg(long, value_name = "MS")]
    election_ms: Option<u64>,
    /// How often a leader gives a sign of life [default: 50].
    #[arg(long, value_name = "MS")]
    heartbeat_ms: Option<u64>,
    /// Free space below which writes are refused, in MiB [default: 256].
    #[arg(long, value_name = "MIB")]
    disk_reserve_mb: Option<u64>,
    /// For tests: a part of this node hangs while a file of its name is in this directory.
    #[arg(long, value_name = "DIR", hide = true)]
    test_hooks: Option<PathBuf>,
    /// Size of a log segment, in MiB [default: 64].
    #[arg(long, value_name = "MIB")]
    segment_mb: Option<u64>,
    /// The log grows at least so far before it is trimmed, in MiB [default: 64].
    #[arg(long, value_name = "MIB")]
    base_min_mb: Option<u64>,
    /// How much of the log is kept for a reader that is behind, in MiB [default: 1024].
    #[arg(long, value_name = "MIB")]
    retention_mb: Option<u64>,
}

impl StartArgs {
    fn flags(&self) -> RawConfig {
        RawConfig {
            id: self.id,
            data: self.data.clone(),
            listen: self.listen.clone(),
            http: self.http.clone(),
            advertise: self.advertise.clone(),
            replica_of: self.replica_of.clone().map(RawList::Text),
            replicator: self.replicator.clone(),
            insecure: self.insecure.then_some(true),
            log: self.log.clone(),
            log_format: self.log_format.clone(),
            cache_mb: self.cache_mb,
            election_ms: self.election_ms,
            heartbeat_ms: self.heartbeat_ms,
            disk_reserve_mb: self.disk_reserve_mb,
            segment_mb: self.segment_mb,
            base_min_mb: self.base_min_mb,
            retention_mb: self.retention_mb,
            peers: self.peers.clone().map(RawPeers::Text),
        }
    }

    /// File < environment < flags.
    fn resolve(&self) -> Result<Config, ConfigError> {
        let file = self.config.clone().or_else(|| std::env::var_os(format!("{ENV_PREFIX}CONFIG")).map(PathBuf::from));
        let file = match file {
            None => RawConfig::default(),
            Some(path) => {
                let name = path.display().to_string();
                let text =
                    std::fs::read_to_string(&path).map_err(|e| ConfigError(format!("cannot read {name}: {e}")))?;
                RawConfig::from_toml(&text, &name)?
            }
        };
        let env = RawConfig::from_env(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )?;
        let config = Config::try_from(file.overlay(env).overlay(self.flags()))?;
        Ok(Config { test_hooks: self.test_hooks.clone(), ..config })
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Start(args) => start(&args),
        Command::Verify(args) => verify(args),
        Command::Restore(args) => ExitCode::from(args.run()),
        Command::BackupVerify(args) => ExitCode::from(args.run()),
        Command::Recover(args) => recover(&args),
    }
}

fn start(args: &StartArgs) -> ExitCode {
    let config = match args.resolve() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("quorated: {error}");
            return ExitCode::from(2);
        }
    };
    if args.print_config {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    if args.check_config {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let format = if config.log_json { Format::Json } else { Format::Text };
    if let Err(error) = telemetry::init(&config.log, format) {
        eprintln!("quorated: {error}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(quorate_node::sql::STACK_BYTES)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quorated: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.until_stdin_closes {
        stop_with_stdin();
    }
    let ended = runtime.block_on(node::run(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(NodeError::Restart(why)) => restart(&why),
        Err(error) => {
            eprintln!("quorated: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is there and what will be done.
fn recover(args: &RecoverArgs) -> ExitCode {
    match quorate_node::recover::recover(&args.dir, args.dry_run) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("quorated: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Turns the end of standard input into SIGTERM, on a thread that does nothing else.
fn stop_with_stdin() {
    let watch = std::thread::Builder::new().name("stdin".into()).spawn(|| {
        // What arrives does not matter, nor how it ends.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    });
    if let Err(error) = watch {
        tracing::warn!(%error, "cannot watch standard input; this node ends only by a signal");
    }
}

/// Begins again in the same process: what could not be repaired while running is repaired at a start.
fn restart(why: &str) -> ExitCode {
    use std::os::unix::process::CommandExt;
    tracing::info!(%why, "begins again");
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("quorated: cannot begin again: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Returns only if it fails.
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    eprintln!("quorated: cannot begin again: {error}");
    ExitCode::FAILURE
}
