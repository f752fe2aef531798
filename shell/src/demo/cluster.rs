//! The demo's processes: where they listen, how they start, how they end.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use quorate_shared::client::{Client, ClientConfig, Policy};
use quorate_shared::status::Verdict;
use quorate_shared::url::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Voters of the demo; one replica comes on top.
const VOTERS: usize = 3;
/// How long a node may take to drain before it is killed.
const DRAIN: Duration = Duration::from_secs(8);

/// What a kept data directory remembers.
#[derive(Serialize, Deserialize, Default)]
struct Kept {
    /// The sample database is complete.
    loaded: bool,
    /// Ports of the last run, taken again where they are free: client and HTTP port of each node.
    ports: Vec<(u16, u16)>,
}

struct Node {
    id: usize,
    port: u16,
    http: u16,
    data: PathBuf,
    child: Child,
}

/// A running cluster. Dropping it ends every node (their standard input closes).
pub struct Cluster {
    nodes: Vec<Node>,
    data: PathBuf,
    kept: Kept,
    /// Removed at the end.
    temporary: Option<TempDir>,
}

/// The node program: beside this one, else wherever the system finds it.
fn node_program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("quorated")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "quorated".into())
}

/// A free loopback port; the old one if it is free.
fn free_port(old: Option<u16>) -> anyhow::Result<(u16, TcpListener)> {
    let listener = old
        .and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .map_or_else(|| TcpListener::bind(("127.0.0.1", 0)), Ok)
        .context("find a free loopback port")?;
    Ok((listener.local_addr()?.port(), listener))
}

impl Cluster {
    /// Starts every node.
    pub fn start(data: Option<PathBuf>) -> anyhow::Result<Cluster> {
        let temporary = match &data {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("quorate-demo-").tempdir().context("make a data directory")?),
        };
        let data = data.unwrap_or_else(|| temporary.as_ref().map(|t| t.path().to_owned()).unwrap_or_default());
        fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))?;
        let mut kept: Kept = match fs::read(data.join("demo.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("read demo.json of the data directory")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).context("read demo.json of the data directory"),
        };
        // All ports are held until all are chosen, so that no two are the same.
        let mut held = Vec::new();
        let mut ports = Vec::new();
        for at in 0..=VOTERS {
            let old = kept.ports.get(at).copied();
            let (port, first) = free_port(old.map(|p| p.0))?;
            let (http, second) = free_port(old.map(|p| p.1))?;
            held.extend([first, second]);
            ports.push((port, http));
        }
        drop(held);
        kept.ports = ports;
        let mut cluster = Cluster { nodes: Vec::new(), data, kept, temporary };
        cluster.save()?;
        for at in 0..=VOTERS {
            cluster.spawn(at)?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, at: usize) -> anyhow::Result<()> {
        let program = node_program();
        let (port, http) = self.kept.ports[at];
        let id = at + 1;
        let data = self.data.join(format!("n{id}"));
        let log = File::options().create(true).append(true).open(self.data.join(format!("n{id}.log")))?;
        let mut command = Command::new(&program);
        command.arg("start").args(["--id", &id.to_string()]).arg("--data").arg(&data);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--http", &format!("127.0.0.1:{http}")]);
        let voters = &self.kept.ports[..VOTERS];
        if at < VOTERS {
            let peers: Vec<_> =
                voters.iter().enumerate().map(|(n, p)| format!("{}=127.0.0.1:{}", n + 1, p.0)).collect();
            command.args(["--peers", &peers.join(",")]);
        } else {
            let masters: Vec<_> = voters.iter().map(|p| format!("127.0.0.1:{}", p.0)).collect();
            command.args(["--replica-of", &masters.join(",")]);
        }
        command.arg("--until-stdin-closes");
        // A group of its own: Ctrl-C in the terminal is for this process, which then stops the nodes in order.
        command.process_group(0);
        let child = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(false)
            .spawn()
            .with_context(|| format!("start {} (it is built beside quorate by `cargo build`)", program.display()))?;
        self.nodes.push(Node { id, port, http, data, child });
        Ok(())
    }

    fn save(&self) -> anyhow::Result<()> {
        let path = self.data.join("demo.json");
        fs::write(&path, serde_json::to_vec(&self.kept)?).with_context(|| format!("write {}", path.display()))
    }

    /// Where everything is.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where to look when something went wrong.
    pub fn logs(&self) -> String {
        let mut text = String::from("the demo's nodes did not come up");
        for node in &self.nodes {
            let log = fs::read_to_string(self.data.join(format!("n{}.log", node.id))).unwrap_or_default();
            if let Some(last) = log.lines().last() {
                text.push_str(&format!("\n  n{}: {last}", node.id));
            }
        }
        text
    }

    /// The sample database is complete.
    pub fn loaded(&self) -> bool {
        self.kept.loaded
    }

    /// Remembers that it is.
    pub fn set_loaded(&mut self) -> anyhow::Result<()> {
        self.kept.loaded = true;
        self.save()
    }

    /// The voters' addresses.
    pub fn voters(&self) -> Vec<Address> {
        self.nodes.iter().take(VOTERS).map(|n| Address::new("127.0.0.1", n.port)).collect()
    }

    /// How to connect to the voters.
    pub fn client(&self, database: Option<&str>) -> ClientConfig {
        super::client_config(self.voters(), database)
    }

    /// Every node, as `--json` prints it.
    pub fn describe(&self) -> Vec<Json> {
        let describe = |node: &Node| {
            json!({
                "id": format!("n{}", node.id),
                "addr": format!("127.0.0.1:{}", node.port),
                "http": format!("127.0.0.1:{}", node.http),
                "pid": node.child.id(),
                "data": node.data,
                "kind": if node.id <= VOTERS { "voter" } else { "replica" },
            })
        };
        self.nodes.iter().map(describe).collect()
    }

    /// Waits until every node answers and nothing is wrong.
    pub async fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let config = ClientConfig {
            policy: Policy::Stay,
            connect_timeout: Duration::from_millis(500),
            reconnect_timeout: Duration::ZERO,
            deadline: Duration::from_secs(2),
            ..self.client(None)
        };
        let mut client: Option<Client> = None;
        let mut last = "no node answers".to_owned();
        loop {
            for node in &mut self.nodes {
                if let Some(status) = node.child.try_wait()? {
                    bail!("n{} ended while starting: {status}", node.id);
                }
            }
            if client.is_none() {
                client = Client::connect(config.clone()).await.ok();
            }
            if let Some(connected) = &mut client {
                match connected.status().await {
                    Ok(picture) => {
                        let up = picture.nodes.iter().filter(|n| n.reachable).count();
                        if picture.verdict == Verdict::Ok && picture.master.is_some() && up == VOTERS + 1 {
                            return Ok(());
                        }
                        let problems: Vec<_> =
                            picture.problems.iter().map(|p| format!("{} {}", p.name, p.subject)).collect();
                        last = format!("{up} of {} nodes up; {}", VOTERS + 1, problems.join(", "));
                    }
                    Err(error) => {
                        last = error.to_string();
                        client = None;
                    }
                }
            }
            if Instant::now() > until {
                bail!("the cluster was not ready after {} s: {last}", limit.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks every node to drain, waits, kills what remains. The replica first, then the voters.
    pub async fn stop(mut self) {
        for node in self.nodes.iter().rev() {
            let pid = node.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
            if let Some(pid) = pid {
                // An error means that it has ended already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let until = Instant::now() + DRAIN;
        for node in &mut self.nodes {
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, node.child.wait()).await.is_err() {
                // It ends by the signal whatever this says.
                let _ = node.child.kill().await;
            }
        }
        drop(self.temporary.take());
    }
}
