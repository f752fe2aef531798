//! Whether the engine's files may be believed at a start.
//!
//! sled reuses space in place and skips damage when it recovers: after a power cut it can open without an error and hold
//! newer and older pages side by side. So it is trusted only within the boot that wrote it (then nothing was lost but
//! what sled had not yet handed to the system), or if it was closed cleanly, everything synced, the mark last. In every
//! other case, also after an error of the engine, its directory is moved aside and the replicas are rebuilt from base
//! and log.
//!
//! What is closed cleanly is also sealed, see `seal`.
//!
//! The mark is one small file beside the directory, replaced whole: `quorate engine 1`, `boot <id>`, `state
//! <open|clean|failed reason>`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use super::seal::Broken;
use super::{SledEngine, seal};
use crate::engine::Engine;
use crate::error::Fatal;

const DIRECTORY: &str = "engine";
const MARK: &str = "engine.trust";
const ASIDE: &str = "engine.untrusted";
const FIRST_LINE: &str = "quorate engine 1";

/// An engine that may be believed.
pub struct Opened {
    /// The engine.
    pub engine: SledEngine,
    /// Why it begins empty although there was one before (`EngineRebuilt`): its state comes from the log.
    pub rebuilt: Option<String>,
    /// It was not closed cleanly: the scrub should run.
    pub unclean: bool,
}

/// What the mark says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Open,
    Clean,
    Failed(String),
}

/// The kernel's id of this boot.
pub fn boot_id() -> Result<String, Fatal> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(path).map_err(|e| Fatal::new(format!("read {path}"), e))?;
    Ok(id.trim().to_owned())
}

/// Opens `data/engine` if it may be trusted under this boot, else a new one in its place.
pub fn open_trusted(data: &Path, boot: &str, cache_bytes: u64) -> Result<Opened, Fatal> {
    let dir = data.join(DIRECTORY);
    let mut rebuilt = judge(data, boot)?;
    if rebuilt.is_some() {
        move_aside(data)?;
    }
    let unclean = dir.exists() && !matches!(read_mark(data)?, Some((_, State::Clean)));
    write_mark(data, boot, &State::Open)?;
    seal::remove(data).map_err(|e| Fatal::new("remove the engine's seal", e))?;
    let engine = match SledEngine::open(&dir, cache_bytes) {
        Ok(engine) => engine,
        Err(e) if rebuilt.is_none() && dir.exists() => {
            rebuilt = Some(format!("it could not be opened: {}", e.cause));
            move_aside(data)?;
            SledEngine::open(&dir, cache_bytes)?
        }
        Err(e) => return Err(e),
    };
    Ok(Opened { engine, unclean: unclean && rebuilt.is_none(), rebuilt })
}

/// Syncs everything and marks the engine as closed cleanly. All trees must have been dropped or be idle from here on.
pub fn close(data: &Path, boot: &str, engine: SledEngine) -> Result<(), Fatal> {
    engine.flush()?;
    drop(engine);
    let dir = data.join(DIRECTORY);
    sync_all(&dir).map_err(|e| Fatal::new(format!("sync {}", dir.display()), e))?;
    seal::write(data, &dir).map_err(|e| Fatal::new(format!("seal {}", dir.display()), e))?;
    write_mark(data, boot, &State::Clean)
}

/// Notes that the engine failed: the next start rebuilds it.
pub fn distrust(data: &Path, boot: &str, reason: &str) -> Result<(), Fatal> {
    write_mark(data, boot, &State::Failed(reason.replace('\n', " ")))
}

/// Whether everything was closed cleanly, the log included, and nothing has been opened since.
pub fn is_closed(data: &Path) -> bool {
    matches!(read_mark(data), Ok(Some((_, State::Clean))))
}

/// Why the engine is to be rebuilt at the next start, if that was noted.
pub fn distrusted(data: &Path) -> Option<String> {
    match read_mark(data) {
        Ok(Some((_, State::Failed(why)))) => Some(why),
        _ => None,
    }
}

/// Files of a cleanly closed engine that are not as they were.
pub fn check_seal(data: &Path) -> Vec<Broken> {
    match is_closed(data) {
        true => seal::check(data, &data.join(DIRECTORY), u64::MAX),
        false => Vec::new(),
    }
}

/// The first broken file of a small engine. A broken seal alone does not count: what it was for may be whole.
fn broken_seal(data: &Path, dir: &Path) -> Option<String> {
    let broken = seal::check(data, dir, seal::OPEN_BYTES_MAX).into_iter().find(|b| dir.join(&b.file).exists())?;
    let at = broken.offset.map(|at| format!(" at byte {at}")).unwrap_or_default();
    Some(format!("{}: {}{at}", broken.what, broken.file))
}

/// Why the engine's files must not be used; `None` if they may or if there are none and never were.
fn judge(data: &Path, boot: &str) -> Result<Option<String>, Fatal> {
    let dir = data.join(DIRECTORY);
    let mark = read_mark(data)?;
    Ok(match (dir.exists(), mark) {
        (false, None) => None,
        (false, Some(_)) => Some("its files are missing".into()),
        (true, None) => Some("it has no mark of the boot that wrote it".into()),
        (true, Some((_, State::Failed(why)))) => Some(format!("it failed: {why}")),
        (true, Some((_, State::Clean))) => broken_seal(data, &dir),
        (true, Some((written, State::Open))) if written == boot => None,
        (true, Some(_)) => Some("it was not closed before the machine was restarted".into()),
    })
}

fn read_mark(data: &Path) -> Result<Option<(String, State)>, Fatal> {
    let path = data.join(MARK);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(e) => return Err(Fatal::new(format!("read {}", path.display()), e)),
    };
    Ok(parse_mark(&text))
}

fn parse_mark(text: &str) -> Option<(String, State)> {
    let mut lines = text.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let boot = lines.next()?.strip_prefix("boot ")?.to_owned();
    let state = match lines.next()?.strip_prefix("state ")? {
        "open" => State::Open,
        "clean" => State::Clean,
        other => State::Failed(other.strip_prefix("failed ")?.to_owned()),
    };
    Some((boot, state))
}

fn write_mark(data: &Path, boot: &str, state: &State) -> Result<(), Fatal> {
    let state = match state {
        State::Open => "open".to_owned(),
        State::Clean => "clean".to_owned(),
        State::Failed(why) => format!("failed {why}"),
    };
    let path = data.join(MARK);
    let write = || -> io::Result<()> {
        fs::create_dir_all(data)?;
        let unfinished = path.with_extension("trust.new");
        let mut file = File::create(&unfinished)?;
        file.write_all(format!("{FIRST_LINE}\nboot {boot}\nstate {state}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(data)?.sync_all()
    };
    write().map_err(|e| Fatal::new(format!("write {}", path.display()), e))
}

/// Keeps the newest untrusted directory for whoever wants to look at it; older ones go.
fn move_aside(data: &Path) -> Result<(), Fatal> {
    let (dir, aside): (PathBuf, PathBuf) = (data.join(DIRECTORY), data.join(ASIDE));
    let work = || -> io::Result<()> {
        if !dir.exists() {
            return Ok(());
        }
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(&dir, &aside)?;
        File::open(data)?.sync_all()
    };
    work().map_err(|e| Fatal::new(format!("move {} aside", dir.display()), e))
}

fn sync_all(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            sync_all(&item.path())?;
        } else {
            File::open(item.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::engine::Batch;

    const CACHE: u64 = 8 << 20;

    fn put(engine: &SledEngine, value: &'static str) {
        let mut batch = Batch::default();
        batch.writes.insert(Bytes::from_static(b"k"), Some(Bytes::from_static(value.as_bytes())));
        engine.tree("t").unwrap().write(batch).unwrap();
    }

    fn get(engine: &SledEngine) -> Option<String> {
        let value = engine.tree("t").unwrap().get(b"k").unwrap()?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn trust_follows_the_boot_and_the_clean_mark() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let opened = open_trusted(data, "boot-a", CACHE).unwrap();
        assert!(opened.rebuilt.is_none() && !opened.unclean);
        put(&opened.engine, "1");
        drop(opened);
        // Same boot, not closed: trusted, but to be scrubbed.
        let opened = open_trusted(data, "boot-a", CACHE).unwrap();
        assert!(opened.rebuilt.is_none() && opened.unclean);
        assert_eq!(get(&opened.engine), Some("1".into()));
        close(data, "boot-a", opened.engine).unwrap();
        // Another boot, closed: trusted.
        let opened = open_trusted(data, "boot-b", CACHE).unwrap();
        assert!(opened.rebuilt.is_none() && !opened.unclean);
        assert_eq!(get(&opened.engine), Some("1".into()));
        drop(opened);
        // Another boot, not closed: rebuilt.
        let opened = open_trusted(data, "boot-c", CACHE).unwrap();
        assert!(opened.rebuilt.is_some_and(|why| why.contains("restarted")));
        assert_eq!(get(&opened.engine), None);
        assert!(data.join(ASIDE).exists());
        drop(opened.engine);
        distrust(data, "boot-c", "input/output\nerror").unwrap();
        let opened = open_trusted(data, "boot-c", CACHE).unwrap();
        assert_eq!(opened.rebuilt, Some("it failed: input/output error".into()));
        drop(opened.engine);
        fs::remove_file(data.join(MARK)).unwrap();
        assert!(open_trusted(data, "boot-c", CACHE).unwrap().rebuilt.is_some());
    }

    #[test]
    fn files_that_do_not_open_are_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let opened = open_trusted(data, "boot", CACHE).unwrap();
        put(&opened.engine, "1");
        close(data, "boot", opened.engine).unwrap();
        fs::remove_file(data.join(DIRECTORY).join("db")).unwrap();
        fs::create_dir(data.join(DIRECTORY).join("db")).unwrap();
        let opened = open_trusted(data, "boot", CACHE).unwrap();
        assert!(opened.rebuilt.is_some());
        assert_eq!(get(&opened.engine), None);
    }

    #[test]
    fn golden_mark() {
        let dir = tempfile::tempdir().unwrap();
        write_mark(dir.path(), "b-1", &State::Failed("why not".into())).unwrap();
        let text = fs::read_to_string(dir.path().join(MARK)).unwrap();
        assert_eq!(text, "quorate engine 1\nboot b-1\nstate failed why not\n");
        assert_eq!(parse_mark(&text), Some(("b-1".into(), State::Failed("why not".into()))));
        assert_eq!(parse_mark("quorate engine 2\nboot b\nstate clean\n"), None);
        assert!(!boot_id().unwrap().is_empty());
    }
}
