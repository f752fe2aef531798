//! `quorate demo`: a whole cluster on this machine, with data and a light load, to look at.
//!
//! Three voters and one log-shipped replica run as child `quorated` processes on free loopback ports. Their standard
//! input is a pipe held by this process: when it ends, however it ends, they end. A node that dies is not restarted
//! behind the user's back.

mod cluster;
mod shop;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use quorate_shared::client::{Client, ClientConfig};
use quorate_shared::url::Address;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Exit;
use crate::tui::run as tui;
use cluster::Cluster;

/// How to start.
pub struct Options {
    /// Keep the data here and start from it again; `None`: a temporary directory, removed at the end.
    pub data: Option<PathBuf>,
    /// Writes per second.
    pub load: u32,
    /// Print how to connect and run until a signal, instead of the TUI.
    pub no_tui: bool,
    /// With `no_tui`: print one JSON line instead of text.
    pub json: bool,
    /// Colours may be used.
    pub color: bool,
}

/// Runs the demo; the exit code.
pub async fn run(options: Options) -> anyhow::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut cluster = Cluster::start(options.data)?;
    let started = tokio::select! {
        result = prepare(&mut cluster) => result,
        _ = interrupt.recv() => return give_up(cluster).await,
        _ = terminate.recv() => return give_up(cluster).await,
    };
    if let Err(error) = started {
        let logs = cluster.logs();
        cluster.stop().await;
        return Err(error.context(logs));
    }
    let load = tokio::spawn(keep_loading(cluster.client(Some(shop::DATABASE)), options.load));
    let connect = format!("quorate -h {} -d {}", cluster.voters()[0], shop::DATABASE);
    let code = if options.no_tui {
        print_connection(&cluster, options.json, &connect);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        0
    } else {
        let client = cluster.client(Some(shop::DATABASE));
        tui::run(tui::Options { client, connect_hint: connect, color: options.color }).await?
    };
    load.abort();
    cluster.stop().await;
    Ok(code)
}

/// Whoever started it does not want it any more.
async fn give_up(cluster: Cluster) -> anyhow::Result<u8> {
    cluster.stop().await;
    eprintln!("interrupted while starting; every node has stopped");
    Ok(Exit::Interrupted.code())
}

/// Waits for the cluster and loads the shop if it is not there.
async fn prepare(cluster: &mut Cluster) -> anyhow::Result<()> {
    eprintln!("starting three voters and a replica in {}", cluster.data().display());
    cluster.wait_ready(Duration::from_secs(60)).await?;
    if cluster.loaded() {
        return Ok(());
    }
    eprintln!("loading the sample database");
    let mut client = Client::connect(cluster.client(None)).await.context("connect to the cluster")?;
    let database = shop::DATABASE;
    let begin = [
        format!("DROP DATABASE IF EXISTS {database}"),
        format!("CREATE DATABASE {database}"),
        format!("USE {database}"),
    ];
    for sql in begin.into_iter().chain(shop::statements()) {
        let shown: String = sql.chars().take(60).collect();
        client.run(sql, Vec::new()).await.with_context(|| format!("load the sample database ({shown} …)"))?;
    }
    cluster.set_loaded()
}

fn print_connection(cluster: &Cluster, as_json: bool, connect: &str) {
    if as_json {
        let hosts = cluster.voters().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let url = format!("quorate://{hosts}/{}", shop::DATABASE);
        println!("{}", json!({ "url": url, "nodes": cluster.describe() }));
        return;
    }
    println!("The cluster is ready. Connect with:\n\n    {connect}\n    quorate top -h {}\n", cluster.voters()[0]);
    for node in cluster.describe() {
        let field = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
        println!(
            "{:4} {:8} {:22} http {:22} pid {}",
            field("id"),
            field("kind"),
            field("addr"),
            field("http"),
            node["pid"]
        );
    }
    println!("\nCtrl-C stops every node.");
}

/// Writes `per_second` times a second, for ever; what fails is tried with the next write.
async fn keep_loading(config: ClientConfig, per_second: u32) {
    if per_second == 0 {
        return std::future::pending().await;
    }
    let mut timer = tokio::time::interval(Duration::from_secs(1) / per_second);
    // After an outage it goes on at its pace, it does not catch up.
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut client: Option<Client> = None;
    let mut count = 0u64;
    loop {
        timer.tick().await;
        if client.is_none() {
            client = Client::connect(config.clone()).await.ok();
        }
        let Some(connected) = &mut client else { continue };
        count += 1;
        if connected.run(shop::write(count), Vec::new()).await.is_err() {
            client = None;
        }
    }
}

/// A configuration for clients of these hosts.
fn client_config(hosts: Vec<Address>, database: Option<&str>) -> ClientConfig {
    ClientConfig {
        database: database.map(str::to_owned),
        user: std::env::var("USER").unwrap_or_default(),
        agent: concat!("quorate-demo/", env!("CARGO_PKG_VERSION")).into(),
        ..ClientConfig::new(hosts)
    }
}
