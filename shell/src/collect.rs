//! The cluster's picture for `quorate status`: asked of any node that is up, drawn even when none is.
//!
//! Invariants: exactly one picture per document or line; a host that was asked and did not answer is named; stdout has
//! the picture, standard error the reasons; the exit code is the verdict's.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_shared::client::{Client, ClientError};
use quorate_shared::status::{ClusterStatus, NodeStatus, Problem, SCHEMA, Verdict};
use quorate_shared::url::Address;
use quorate_shared::value::Value;

use crate::args::StatusArgs;
use crate::config::Options;
use crate::output::Output;
use crate::render::error::Paint;
use crate::render::status::status_table;
use crate::session::{Interrupts, client_config};

/// Waiting for a picture, connecting included, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for one picture; on failure one that says who was asked.
pub struct Collector {
    options: Options,
    client: Option<Client>,
    /// The last picture: its nodes are asked too, and stay in the picture when nobody answers any more.
    last: Option<ClusterStatus>,
}

impl Collector {
    /// A collector that asks these hosts, and whomever they know.
    pub fn new(options: &Options) -> Collector {
        let mut options = options.clone();
        options.timeout = options.timeout.or(Some(PATIENCE));
        // A picture is of the cluster: no database or setting must keep a session from opening.
        options.database = None;
        options.settings.clear();
        Collector { options, client: None, last: None }
    }

    /// The next picture.
    pub async fn next(&mut self) -> ClusterStatus {
        let patience = self.options.timeout.unwrap_or(PATIENCE);
        match tokio::time::timeout(patience, self.ask()).await {
            Ok(Ok(status)) => {
                self.remember(&status);
                status
            }
            Ok(Err(error)) => {
                self.client = None;
                self.nobody(&error)
            }
            Err(_) => {
                self.client = None;
                let tried =
                    self.options.hosts.iter().map(|h| (h.to_string(), "no answer in time".to_owned())).collect();
                self.nobody(&ClientError::NoConnection { tried })
            }
        }
    }

    /// Whoever is in the picture can be asked for the next one.
    fn remember(&mut self, status: &ClusterStatus) {
        let known = status.nodes.iter().filter_map(|n| n.addr.parse::<Address>().ok());
        let new: Vec<Address> = known.filter(|a| !self.options.hosts.contains(a)).collect();
        self.options.hosts.extend(new);
        self.last = Some(status.clone());
    }

    async fn ask(&mut self) -> Result<ClusterStatus, ClientError> {
        if self.client.is_none() {
            self.client = Some(Client::connect(client_config(&self.options)).await?);
        }
        match &mut self.client {
            Some(client) => client.status().await,
            None => Err(ClientError::Unsendable("not connected".to_owned())),
        }
    }

    /// The picture when nobody answers: those who were asked, and why it is not known how they are.
    fn nobody(&self, error: &ClientError) -> ClusterStatus {
        let taken_at = now();
        let tried: Vec<(String, String)> = match error {
            ClientError::NoConnection { tried } if !tried.is_empty() => tried.clone(),
            other => self.options.hosts.iter().map(|h| (h.to_string(), other.to_string())).collect(),
        };
        let problem = |(address, why): &(String, String)| {
            let (name, hint) = match why.strip_prefix("OtherVersion: ") {
                Some(why) => ("VersionSkew", format!("a node answers at {address}, but {why}")),
                None => {
                    ("NodeUnreachable", format!("check that a node runs at {address} and can be reached from here"))
                }
            };
            let (name, subject, since) = (name.to_owned(), address.clone(), taken_at.clone());
            Problem { name, severity: Verdict::Critical, subject, since, hint }
        };
        let gone = |id: &str, addr: &str, kind| NodeStatus {
            id: id.to_owned(),
            addr: addr.to_owned(),
            kind,
            error: Some(tried.iter().find(|(a, _)| a == addr).map_or("not asked", |(_, why)| why).to_owned()),
            ..NodeStatus::default()
        };
        let seen = self.last.as_ref().map(|s| s.nodes.as_slice()).unwrap_or_default();
        let strangers = tried.iter().filter(|(address, _)| !seen.iter().any(|n| n.addr == *address));
        let nodes = seen.iter().map(|n| gone(&n.id, &n.addr, n.kind));
        ClusterStatus {
            schema: SCHEMA,
            cluster: self.last.as_ref().and_then(|s| s.cluster.clone()),
            verdict: Verdict::Unknown,
            nodes: nodes.chain(strangers.map(|(address, _)| gone("", address, None))).collect(),
            problems: tried.iter().map(problem).collect(),
            taken_at,
            ..ClusterStatus::default()
        }
    }
}

/// `quorate status`; its exit code.
pub async fn status(options: &Options, args: &StatusArgs, paint: Paint) -> u8 {
    let mut collector = Collector::new(options);
    let mut output = Output::stdout();
    let paint = if output.is_terminal() { paint } else { Paint::default() };
    let Some(every) = args.watch else {
        let status = collector.next().await;
        return match write(&mut output, &status, args.json, false, paint) {
            Ok(()) => status.verdict.exit_code(),
            Err(e) => cannot_write(&e),
        };
    };
    // A stream of pictures goes on while the cluster breaks: who does not answer is told soon.
    collector.options.timeout = options.timeout.or(Some(every.clamp(Duration::from_secs(1), PATIENCE)));
    let mut interrupts = Interrupts::listen();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut verdict = Verdict::Unknown;
    loop {
        let status = tokio::select! {
            status = async { ticks.tick().await; collector.next().await } => status,
            () = interrupts.next() => return verdict.exit_code(),
        };
        verdict = status.verdict;
        if let Err(e) = write(&mut output, &status, args.json, true, paint) {
            return cannot_write(&e);
        }
        if output.is_gone() {
            return verdict.exit_code();
        }
    }
}

fn cannot_write(error: &io::Error) -> u8 {
    eprintln!("error: cannot write the picture: {error}");
    Verdict::Unknown.exit_code()
}

fn write(output: &mut Output, status: &ClusterStatus, json: bool, again: bool, paint: Paint) -> io::Result<()> {
    match (json, again) {
        (true, false) => serde_json::to_writer_pretty(&mut *output, status)?,
        // One line each, so that whoever reads can tell them apart.
        (true, true) => serde_json::to_writer(&mut *output, status)?,
        (false, _) => output.write_all(status_table(status, paint).as_bytes())?,
    }
    if json || again {
        output.write_all(b"\n")?;
    }
    output.flush()
}

/// Now, RFC 3339 with milliseconds.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time_text(since.as_millis() as u64)
}

/// Milliseconds since 1970, as RFC 3339 with milliseconds.
pub fn time_text(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(0);
    let text = Value::Timestamp(seconds.saturating_mul(1_000_000)).to_string();
    format!("{}.{:03}Z", text.replace(' ', "T"), ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FileConfig;

    fn options(port: u16) -> Options {
        Options {
            hosts: vec![Address::new("127.0.0.1", port)],
            user: "me".to_owned(),
            database: None,
            settings: Vec::new(),
            timeout: Some(Duration::from_secs(2)),
            read_only: false,
            file: FileConfig::default(),
        }
    }

    #[tokio::test]
    async fn with_nobody_there_the_picture_names_who_was_asked() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let status = Collector::new(&options(port)).next().await;
        assert_eq!(status.verdict, Verdict::Unknown);
        assert_eq!(status.schema, SCHEMA);
        assert_eq!(status.nodes.len(), 1);
        assert_eq!(status.nodes[0].addr, format!("127.0.0.1:{port}"));
        assert!(status.nodes[0].error.is_some() && !status.nodes[0].reachable);
        assert_eq!(status.nodes[0].kind, None, "nobody could tell");
        assert_eq!(status.problems[0].name, "NodeUnreachable");
        let mut collector = Collector::new(&options(port));
        let node =
            |id: &str, addr: &str| NodeStatus { id: id.to_owned(), addr: addr.to_owned(), ..NodeStatus::default() };
        let nodes = vec![node("n1", &format!("127.0.0.1:{port}")), node("n2", "127.0.0.1:1")];
        collector.remember(&ClusterStatus { nodes, ..ClusterStatus::default() });
        let later = collector.next().await;
        let ids: Vec<_> = later.nodes.iter().map(|n| n.id.as_str()).collect();
        assert_eq!(ids, ["n1", "n2"], "nodes seen before stay in the picture");
        assert!(later.nodes.iter().all(|n| n.error.is_some()));
        assert_eq!(status.taken_at.len(), "2026-01-31T12:34:56.789Z".len());
    }
}
