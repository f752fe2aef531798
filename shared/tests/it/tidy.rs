//! What neither compiler nor clippy checks about the repository: who may use what, how long files get, what must not be
//! left behind.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file; a file beyond it holds more than one concept.
const LINES_MAX: usize = 850;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable directory").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            walk(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source file: path from the workspace root, text.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut paths = Vec::new();
    for package in ["node", "shared", "shell"] {
        walk(&root.join(package), &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("UTF-8"))
    };
    paths.into_iter().map(read).collect()
}

fn complain(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(n, _)| n).collect();
    complain("files without a `//!` on top", &silent);
}

#[test]
fn no_file_holds_too_much() {
    let long = |(name, text): (String, String)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{name}: {lines} lines"))
    };
    complain("files that are too long", &sources().into_iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn each_outside_library_stays_in_its_place() {
    // Library, and the only paths (prefixes) that may name it.
    let places: &[(&str, &[&str])] = &[
        ("sled", &["node/core/src/engine/sled"]),
        ("raft", &["node/core/src/replica/raft"]),
        ("datafusion", &["node/src/sql"]),
        ("arrow", &["node/src/sql"]),
        ("pgwire", &["node/src/serve/pg"]),
        ("axum", &["node/src/serve/http"]),
        ("ratatui", &["shell/src/tui"]),
        ("rustyline", &["shell/src/repl"]),
        ("ed25519_dalek", &["shared/src/anchor.rs"]),
    ];
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (library, allowed) in places {
            let uses = text.lines().any(|line| {
                let line = line.trim_start();
                !line.starts_with("//")
                    && (line.starts_with(&format!("use {library}::"))
                        || line.contains(&format!(" {library}::"))
                        || line.contains(&format!("({library}::"))
                        || line.contains(&format!("<{library}::")))
                    && !line.contains(&format!("crate::engine::{library}"))
            });
            if uses && !allowed.iter().any(|prefix| name.starts_with(prefix)) {
                let own_test = name.starts_with("shared/tests/");
                if !own_test {
                    found.push(format!("{name} uses {library}"));
                }
            }
        }
    }
    complain("libraries outside their place", &found);
}

#[test]
fn packages_depend_only_downwards() {
    let manifest = |path: &str| fs::read_to_string(root().join(path)).expect("a manifest");
    let dependencies = |text: String| text.split("[dev-dependencies]").next().unwrap_or_default().to_owned();
    let core = dependencies(manifest("node/core/Cargo.toml"));
    for forbidden in ["tokio", "datafusion", "quorate-node", "\"client\""] {
        assert!(!core.contains(forbidden), "node/core must not depend on {forbidden}");
    }
    let shell = dependencies(manifest("shell/Cargo.toml"));
    for forbidden in ["quorate-core", "quorate-node", "datafusion"] {
        assert!(!shell.contains(forbidden), "shell must not depend on {forbidden}");
    }
    let shared = dependencies(manifest("shared/Cargo.toml"));
    for forbidden in ["quorate-core", "quorate-node", "datafusion", "sled"] {
        assert!(!shared.contains(forbidden), "shared must not depend on {forbidden}");
    }
}

#[test]
fn nothing_is_left_behind() {
    // In two pieces, so that this file does not find itself.
    let left = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["db", "g!("].concat(),
        ["#[ig", "nore"].concat(),
    ];
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if let Some(word) = left.iter().find(|word| line.contains(word.as_str())) {
                found.push(format!("{name}:{}: {word}", at + 1));
            }
        }
    }
    complain("left in the code", &found);
}
