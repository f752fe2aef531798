//! A cluster of real `quorated` processes on free loopback ports, started, killed, wiped and asked one by one.
//!
//! Nothing waits for a time: everything waits for a condition, with a limit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value as Json;

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A port that nobody has: below those that the system hands out for outgoing connections, a stretch per test process.
pub fn free_port() -> u16 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    loop {
        let turn = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = 10_000 + (std::process::id().wrapping_mul(61).wrapping_add(turn) % 22_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => panic!("{what}: not within {LIMIT:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A test's right to run clusters: beside those of other tests, or alone, where it is about time. A test that has it
/// already shares it with itself.
pub struct Turn {
    alone: bool,
}

/// Who has a turn, and how many wait to be alone: nobody else begins while one does.
#[derive(Default)]
struct Turns {
    running: usize,
    alone: bool,
    waiting: usize,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { running: 0, alone: false, waiting: 0 });
static TURN_ENDED: Condvar = Condvar::new();

impl Turn {
    pub fn take(alone: bool) -> Arc<Self> {
        thread_local! { static MINE: RefCell<Weak<Turn>> = RefCell::default(); }
        if let Some(mine) = MINE.with_borrow(Weak::upgrade) {
            assert!(mine.alone || !alone, "alone from the beginning, or not at all");
            return mine;
        }
        let mut turns = TURNS.lock().unwrap();
        turns.waiting += usize::from(alone);
        let blocked = |turns: &mut Turns| turns.alone || if alone { turns.running > 0 } else { turns.waiting > 0 };
        turns = TURN_ENDED.wait_while(turns, blocked).unwrap();
        turns.waiting -= usize::from(alone);
        turns.running += usize::from(!alone);
        turns.alone = alone;
        let turn = Arc::new(Self { alone });
        MINE.set(Arc::downgrade(&turn));
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = TURNS.lock().unwrap();
        match self.alone {
            true => turns.alone = false,
            false => turns.running -= 1,
        }
        drop(turns);
        TURN_ENDED.notify_all();
    }
}

/// One node: where it is and, while it runs, its process.
pub struct TestNode {
    pub id: u64,
    pub port: u16,
    pub http: u16,
    pub data: PathBuf,
    pub log: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl TestNode {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "n{} runs already", self.id);
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        // Another program for numbers: a release build.
        let program = std::env::var_os("QUORATE_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_quorated").into());
        let child = Command::new(program)
            .args(&self.args)
            .env_remove("QUORATED_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Changes a flag for the next start.
    pub fn set_flag(&mut self, name: &str, value: &str) {
        match self.args.iter().position(|a| a == name) {
            Some(at) => self.args[at + 1] = value.to_owned(),
            None => self.args.extend([name.to_owned(), value.to_owned()]),
        }
    }

    /// From the next start on it is somewhere else.
    pub fn moves(&mut self) {
        assert!(self.child.is_none());
        self.port = free_port();
        let address = self.address();
        self.set_flag("--listen", &address);
    }

    fn hook(&self, part: &str) -> PathBuf {
        self.log.with_extension("hooks").join(part)
    }

    /// A part of the node hangs from here on: `applier`, `log` or `scrub`; or its disk is `full`.
    pub fn hang(&self, part: &str) {
        std::fs::write(self.hook(part), []).unwrap();
    }

    /// It goes on.
    pub fn unhang(&self, part: &str) {
        std::fs::remove_file(self.hook(part)).unwrap();
    }

    fn signal(&self, signal: Signal) -> u32 {
        let child = self.child.as_ref().unwrap().id();
        rustix::process::kill_process(Pid::from_raw(child as i32).unwrap(), signal).unwrap();
        child
    }

    /// SIGSTOP: once this returns, not one of its threads runs.
    pub fn freeze(&self) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.signal(Signal::STOP)));
        eventually("it stands still", || {
            for task in std::fs::read_dir(&tasks).map_err(|e| e.to_string())? {
                let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
                let stat = stat.map_err(|e| e.to_string())?;
                if !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')) {
                    return Err(stat);
                }
            }
            Ok(())
        });
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Adds flags for the next start.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.args.extend(flags.iter().map(ToString::to_string));
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; gives the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = eventually("SIGTERM ends a node", || match child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err("still running".into()),
        });
        status.code()
    }

    pub fn wipe(&self) {
        assert!(self.child.is_none());
        std::fs::remove_dir_all(&self.data).unwrap();
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// GET over HTTP: status code and body.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        let code = text.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or("no status line")?;
        let body = text.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
        Ok((code, body))
    }

    pub fn status(&self) -> Result<Json, String> {
        let (_, body) = self.get("/status")?;
        // The body may be chunked; the JSON is between the outermost braces.
        let (start, end) = (body.find('{').ok_or("no JSON")?, body.rfind('}').ok_or("no JSON")?);
        serde_json::from_str(&body[start..=end]).map_err(|e| e.to_string())
    }

    pub fn healthy(&self) -> Result<(), String> {
        match self.get("/health")? {
            (200, _) => Ok(()),
            (_, body) => Err(body),
        }
    }
}

/// Voters, and replicas of them.
pub struct TestCluster {
    pub nodes: BTreeMap<u64, TestNode>,
    dir: tempfile::TempDir,
    _turn: Arc<Turn>,
}

impl TestCluster {
    /// `voters` voters and `replicas` replicas, none started. Voters are numbered from 1, replicas after them.
    pub fn new(voters: u64, replicas: u64) -> Self {
        let turn = Turn::take(false);
        let dir = tempfile::tempdir().unwrap();
        let ports: BTreeMap<u64, (u16, u16)> =
            (1..=voters + replicas).map(|id| (id, (free_port(), free_port()))).collect();
        let peers: Vec<String> = (1..=voters).map(|id| format!("{id}=127.0.0.1:{}", ports[&id].0)).collect();
        let of: Vec<String> = (1..=voters).map(|id| format!("127.0.0.1:{}", ports[&id].0)).collect();
        let nodes = ports
            .iter()
            .map(|(id, (port, http))| {
                let data = dir.path().join(format!("n{id}"));
                let mut args: Vec<String> =
                    ["start", "--log", "info", "--disk-reserve-mb", "16"].map(String::from).into();
                args.extend(["--id".into(), id.to_string(), "--data".into(), data.display().to_string()]);
                args.extend(["--listen".into(), format!("127.0.0.1:{port}")]);
                args.extend(["--http".into(), format!("127.0.0.1:{http}")]);
                args.extend(match *id <= voters {
                    true => ["--peers".into(), peers.join(",")],
                    false => ["--replica-of".into(), of.join(",")],
                });
                let log = dir.path().join(format!("n{id}.log"));
                let hooks = log.with_extension("hooks");
                std::fs::create_dir(&hooks).unwrap();
                args.extend(["--test-hooks".into(), hooks.display().to_string()]);
                (*id, TestNode { id: *id, port: *port, http: *http, data, log, args, child: None })
            })
            .collect();
        Self { nodes, dir, _turn: turn }
    }

    /// Starts all and waits until every node is healthy and they agree on a master.
    pub fn started(voters: u64, replicas: u64) -> Self {
        let mut cluster = Self::new(voters, replicas);
        cluster.start_all();
        cluster.wait_ready();
        cluster
    }

    pub fn start_all(&mut self) {
        self.nodes.values_mut().for_each(TestNode::start);
    }

    pub fn node(&mut self, id: u64) -> &mut TestNode {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn wait_ready(&self) {
        for node in self.nodes.values().filter(|n| n.child.is_some()) {
            eventually(&format!("n{} serves", node.id), || node.healthy());
        }
        self.master();
    }

    /// The id of the master, once a running node knows one that runs.
    pub fn master(&self) -> u64 {
        eventually("there is a master", || {
            for node in self.nodes.values().filter(|n| n.child.is_some()) {
                let status = node.status()?;
                let master = status["master"].as_str().and_then(|m| m.strip_prefix('n')?.parse().ok());
                if let Some(master) = master.filter(|id| self.nodes[id].child.is_some()) {
                    return Ok(master);
                }
            }
            Err("no running node knows a running master".into())
        })
    }

    /// The master, once it leads every shard: a cluster gathers its leaders there.
    pub fn settled(&self) -> u64 {
        eventually("one node leads everything", || {
            let master = self.master();
            let status = self.nodes[&master].status()?;
            let shards = status["shards"].as_array().ok_or("no shards")?;
            let name = format!("n{master}");
            if shards.iter().all(|shard| shard["leader"] == name.as_str()) {
                return Ok(master);
            }
            Err(format!("{} {}", status["problems"], status["shards"]))
        })
    }

    #[allow(dead_code)]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            node.kill();
            if std::thread::panicking() {
                let text = node.log_text();
                let tail: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("--- n{}", node.id);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// A client on its own small runtime, for tests that read like a script.
pub struct Sql {
    runtime: tokio::runtime::Runtime,
    client: quorate_shared::client::Client,
}

impl Sql {
    /// Connects to these nodes, in this order.
    pub fn connect(nodes: &[&TestNode], policy: quorate_shared::client::Policy) -> Self {
        let hosts: Vec<_> = nodes.iter().map(|n| quorate_shared::url::Address::new("127.0.0.1", n.port)).collect();
        Self::to(&hosts, policy)
    }

    fn to(hosts: &[quorate_shared::url::Address], policy: quorate_shared::client::Policy) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = eventually("a session opens", || {
            let mut config = quorate_shared::client::ClientConfig::new(hosts.to_vec());
            config.policy = policy;
            config.deadline = Duration::from_secs(20);
            runtime.block_on(quorate_shared::client::Client::connect(config)).map_err(|e| e.to_string())
        });
        Self { runtime, client }
    }

    /// Connects to a node that is not of a [`TestCluster`].
    pub fn at(port: u16) -> Self {
        Self::to(&[quorate_shared::url::Address::new("127.0.0.1", port)], quorate_shared::client::Policy::Stay)
    }

    /// Follows the leader wherever it goes.
    pub fn anywhere(cluster: &TestCluster) -> Self {
        let voters: Vec<&TestNode> = cluster.nodes.values().filter(|n| n.is_voter()).collect();
        Self::connect(&voters, quorate_shared::client::Policy::Follow)
    }

    /// Stays on one node.
    pub fn on(node: &TestNode) -> Self {
        Self::connect(&[node], quorate_shared::client::Policy::Stay)
    }

    pub fn run(&mut self, sql: &str) -> Result<quorate_shared::client::ResultSet, quorate_shared::client::ClientError> {
        self.runtime.block_on(self.client.run(sql, Vec::new()))
    }

    /// Runs what must work.
    pub fn must(&mut self, sql: &str) -> Vec<Vec<String>> {
        let result = self.run(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        result.rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
    }

    /// Does something to the cluster, or only plans it.
    pub fn admin(
        &mut self,
        action: quorate_shared::admin::AdminAction,
        dry_run: bool,
    ) -> Result<quorate_shared::client::AdminEnd, quorate_shared::client::ClientError> {
        self.runtime.block_on(self.client.admin(action, dry_run, |_| ()))
    }

    /// An action that must be done; its facts.
    pub fn act(&mut self, action: quorate_shared::admin::AdminAction) -> BTreeMap<String, String> {
        let name = format!("{action:?}");
        let end = self.admin(action, false).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        match end.outcome {
            Some(outcome) if outcome.done => outcome.facts.into_iter().collect(),
            outcome => panic!("{name}: {:?} {outcome:?}", end.plan),
        }
    }

    /// An action that must be refused; the refusals.
    pub fn refused(&mut self, action: quorate_shared::admin::AdminAction) -> String {
        let name = format!("{action:?}");
        let end = self.admin(action, false).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert!(end.refused() && end.outcome.is_none(), "{name} was not refused: {end:?}");
        end.plan.refusals.join("\n")
    }

    /// One number out of what must work.
    pub fn number(&mut self, sql: &str) -> i64 {
        let rows = self.must(sql);
        rows[0][0].parse().unwrap_or_else(|_| panic!("{sql}: {rows:?}"))
    }
}

impl TestNode {
    pub fn is_voter(&self) -> bool {
        self.args.iter().any(|a| a == "--peers")
    }

    /// What this node itself has applied of `s1`, compared with the leader's commit index.
    pub fn caught_up(&self, asked: &TestNode) -> Result<(), String> {
        let status = asked.status()?;
        let name = format!("n{}", self.id);
        let shards = status["shards"].as_array().ok_or("no shards")?;
        for shard in shards {
            let members = shard["members"].as_array().ok_or("no members")?;
            let member =
                members.iter().find(|m| m["node"] == name.as_str()).ok_or(format!("{name} is no member yet"))?;
            if member["lag_entries"] != 0 {
                return Err(format!("{} of {name}: {member}", shard["id"]));
            }
        }
        Ok(())
    }
}

/// Waits until nothing is wrong, and every node of these is one row, once, in each shard of the picture.
pub fn settles_with(asked: &TestNode, nodes: &[u64]) {
    let mut expected: Vec<String> = nodes.iter().map(|id| format!("n{id}")).collect();
    expected.sort();
    eventually("the picture is right", || {
        let picture = asked.status()?;
        for shard in picture["shards"].as_array().ok_or("no shards")? {
            let members = shard["members"].as_array().ok_or("no members")?;
            let mut names: Vec<_> = members.iter().filter_map(|m| m["node"].as_str()).collect();
            names.sort_unstable();
            if names != expected {
                return Err(format!("{}: {names:?}, not {expected:?}", shard["id"]));
            }
        }
        match picture["verdict"].as_str() {
            Some("ok") => Ok(()),
            _ => Err(picture["problems"].to_string()),
        }
    });
}

/// `quorate`, beside `quorated`; without it tests that need it are skipped, visibly.
pub fn shell() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_quorated")).with_file_name("quorate");
    if !path.exists() {
        eprintln!("SKIPPED: {} is missing; cargo test --workspace builds it", path.display());
        return None;
    }
    Some(path)
}

/// The shell, in an environment without anything of the user's.
pub fn quorate(arguments: &[&str]) -> Command {
    let mut command = Command::new(shell().unwrap());
    command.args(arguments).env_clear().env("HOME", "/nonexistent").env("USER", "tester");
    command.env("TMPDIR", std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// Runs the shell to its end.
pub fn run(arguments: &[&str]) -> std::process::Output {
    quorate(arguments).output().unwrap()
}

/// Signals a program.
pub fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// What a program wrote.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
