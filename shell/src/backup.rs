//! `quorate backup`: the archive of a cluster's log, written until it is stopped; and the commands that need `quorated`.
//!
//! One connection per shard streams the log, a third one tells the cluster how far the archive is. What came is synced
//! with every sign of life of the node (about twice a second); only what is synced is reported. The manifest is replaced
//! about once a second and whenever a file is finished.
//!
//! Invariants: an archive goes on only where the node's log has the same hash; a lost node or cluster is waited for, a
//! disk that cannot be written ends the archive with an error.

mod archive;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_shared::archive::manifest::{Manifest, ShardFiles, time_text};
use quorate_shared::archive::{ArchivePart, ArchiveReport};
use quorate_shared::client::{Client, ClientError, Policy};
use quorate_shared::error::Code;
use quorate_shared::ids::{ClusterId, ShardId, Timestamp};
use serde_json::{Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};

use self::archive::Archiver;
use crate::args::streams::{BackupArgs, BackupCommand, RestoreArgs};
use crate::config::Options;
use crate::exit::Exit;
use crate::output::Output;
use crate::render::error::Paint;
use crate::session::{client_config, tell_moves};

/// The shards of a cluster.
const SHARDS: [ShardId; 2] = [ShardId::META, ShardId::DATA];
/// How often the manifest is written and the cluster is told.
const REPORT: Duration = Duration::from_secs(1);
/// Pause before a cluster that was lost is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// `quorate backup` and what is below it.
pub async fn run(options: &Options, args: &BackupArgs, paint: Paint) -> Result<u8> {
    if let Some(BackupCommand::Verify(verify)) = &args.command {
        let mut line: Vec<OsString> = vec!["backup-verify".into(), "--from".into(), verify.from.clone().into()];
        line.extend(verify.json.then(|| "--json".into()));
        return node_program(&line);
    }
    if let Some(id) = args.forget {
        connect(options, paint).await?.forget_archive(id).await?;
        eprintln!("the cluster has forgotten backup {id:016x}; its files are as they were");
        return Ok(Exit::Done.code());
    }
    let Some(to) = &args.to else { bail!("--to says where the backup is to go") };
    backup(options, to, args, paint).await.map(Exit::code)
}

/// `quorate restore`.
pub fn restore(args: &RestoreArgs) -> Result<u8> {
    let mut line: Vec<OsString> =
        vec!["restore".into(), "--from".into(), args.from.clone().into(), "--into".into(), args.into.clone().into()];
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            line.extend([name.into(), value.into()]);
        }
    };
    add("--to-time", args.to_time.clone());
    add("--to-index", args.to_index.clone());
    add("--id", args.id.map(|id| id.to_string()));
    line.extend(args.json.then(|| "--json".into()));
    node_program(&line)
}

/// Runs the node program beside this one, else wherever the system finds it; its exit code.
fn node_program(line: &[OsString]) -> Result<u8> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("quorated")));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("quorated"));
    let status = Command::new(&program)
        .args(line)
        .status()
        .with_context(|| format!("cannot run {}, which does this", program.display()))?;
    // Without a code it was killed.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failed.code()))
}

async fn connect(options: &Options, paint: Paint) -> Result<Client> {
    let mut options = options.clone();
    // A backup is of the cluster: no database or setting must keep a session from opening.
    options.database = None;
    options.settings.clear();
    let mut config = client_config(&options);
    config.policy = Policy::Anywhere;
    let mut client = Client::connect(config).await?;
    tell_moves(&mut client, paint);
    Ok(client)
}

fn cluster_of(client: &Client) -> Result<ClusterId> {
    client.welcome().and_then(|welcome| welcome.cluster).context("the node belongs to no cluster yet; try again")
}

async fn backup(options: &Options, to: &Path, args: &BackupArgs, paint: Paint) -> Result<Exit> {
    let mut control = connect(options, paint).await?;
    let archiver = Archiver::open(to, cluster_of(&control)?)?;
    let id = archiver.id();
    let archiver = Rc::new(RefCell::new(archiver));
    eprintln!("backup {id:016x} into {}{}", to.display(), if args.once { "" } else { ", until Ctrl-C" });
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shards = async {
        let all = SHARDS.map(|shard| follow(options, shard, args.once, &archiver, paint));
        futures::future::try_join_all(all).await.map(drop)
    };
    let result = tokio::select! {
        result = shards => result,
        result = report(&mut control, &archiver, args.once) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    // Whatever happened, what there is gets its end.
    let ended = archiver.borrow_mut().end();
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    result?;
    ended?;
    let archiver = archiver.borrow();
    let incomplete = SHARDS.into_iter().filter(|shard| !archiver.has(*shard)).map(|shard| shard.to_string());
    let incomplete: Vec<String> = incomplete.collect();
    if !incomplete.is_empty() {
        bail!("stopped before anything of {} was there; run the same command to go on", incomplete.join(", "));
    }
    eprintln!("ended: {}", archiver.progress());
    if args.json {
        let mut out = Output::stdout();
        serde_json::to_writer_pretty(&mut out, &document(archiver.manifest()))?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(Exit::Done)
}

/// Whether a cluster may serve later what it does not serve now.
fn waits(error: &ClientError) -> bool {
    match error {
        ClientError::NoConnection { .. } => true,
        ClientError::Server(error) => matches!(error.code, Code::Retry | Code::Busy | Code::Redirect),
        _ => false,
    }
}

/// A backup for programs: `schema: 1`. Ids and hashes are hex, shards go by their names, times are RFC 3339.
fn document(manifest: &Manifest) -> Json {
    let time = |ms: u64| (ms > 0).then(|| time_text(ms));
    let shard = |files: &ShardFiles| {
        let base = &files.base;
        let last = files.open.as_ref().map(|open| open.last).or(files.files.last().map(|file| file.last));
        let log = files.files.iter().map(|file| {
            json!({
                "file": file.file,
                "after": file.after,
                "last": file.last,
                "chain": file.chain,
                "first_time": time(Timestamp::from_raw(file.first_time).ms()),
                "last_time": time(Timestamp::from_raw(file.last_time).ms()),
                "bytes": file.bytes,
                "blake3": file.blake3,
            })
        });
        json!({
            "shard": files.id().to_string(),
            "epoch": base.epoch,
            "epoch_id": format!("{:016x}", base.epoch_id),
            "after": base.index,
            "chain": base.chain,
            "time": time(base.timestamp().ms()),
            "snapshot": base.snapshot,
            "last": last.unwrap_or(base.index),
            "until": time(files.until_ms),
            "files": log.collect::<Vec<_>>(),
        })
    };
    json!({
        "schema": 1,
        "id": format!("{:016x}", manifest.id),
        "cluster": manifest.cluster,
        "started": manifest.started,
        "updated": manifest.updated,
        "ended": manifest.ended,
        "shards": manifest.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

/// Archives one shard until that is complete; a cluster that is lost is waited for.
async fn follow(
    options: &Options,
    shard: ShardId,
    once: bool,
    archiver: &Rc<RefCell<Archiver>>,
    paint: Paint,
) -> Result<()> {
    let mut client = connect(options, paint).await?;
    let after = archiver.borrow_mut().begin(shard)?;
    let mut stream = client.archive(shard, after, once);
    loop {
        match stream.next().await {
            Ok(ArchivePart::End) => return archiver.borrow_mut().finish(shard),
            Ok(part) => archiver.borrow_mut().take(shard, part)?,
            Err(error) if !once && waits(&error) => {
                eprintln!("{shard}: {error}; it is tried again");
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error).with_context(|| format!("the archive of {shard} cannot go on")),
        }
    }
}

/// Writes the manifest and tells the cluster, again and again.
async fn report(control: &mut Client, archiver: &Rc<RefCell<Archiver>>, once: bool) -> Result<()> {
    let mut ticks = tokio::time::interval(REPORT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let shown = std::io::stderr().is_terminal();
    let mut told = String::new();
    loop {
        ticks.tick().await;
        let report: Option<ArchiveReport> = {
            let mut archiver = archiver.borrow_mut();
            archiver.write_manifest()?;
            if shown {
                eprint!("\r\x1b[K{}", archiver.progress());
            }
            archiver.report()
        };
        let Some(report) = report.filter(|_| !once) else { continue };
        match control.archived(report).await {
            Ok(()) => told.clear(),
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    eprintln!("the cluster cannot be told how far the backup is: {text}");
                    told = text;
                }
            }
        }
    }
}
