//! The line shell on a real terminal, as a person sees it. tmux is the terminal; without it these tests say so and pass.
//!
//! Nothing sleeps for a result: each step waits until the screen shows what it must.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::server::Server;

/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Terminal {
    socket: PathBuf,
    folder: TempDir,
}

impl Terminal {
    /// A terminal that runs the shell; `None` if there is no tmux.
    fn start(server: &Server, variables: &str) -> Option<Terminal> {
        if Command::new("tmux").arg("-V").output().is_err() {
            eprintln!("SKIPPED: tmux is not installed");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let terminal = Terminal { socket: folder.path().join("tmux"), folder };
        let program = format!(
            "env -i TERM=xterm-256color LANG=C.UTF-8 USER=ann HOME={home} PATH=/usr/bin:/bin {variables} \
             sh -c 'echo $$ > {home}/pid; exec {quorate} -h {host}'; \
             echo EXIT=$?; stty -a | grep -o -- '-\\?icanon'; sleep 600",
            home = terminal.folder.path().display(),
            quorate = env!("CARGO_BIN_EXE_quorate"),
            host = server.host(),
        );
        let started =
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-s", "s", "-x", "100", "-y", "30", &program]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("tmux").arg("-S").arg(&self.socket).args(arguments).output().expect("tmux runs")
    }

    fn keys(&self, keys: &[&str]) {
        let mut arguments = vec!["send-keys", "-t", "s"];
        arguments.extend(keys);
        assert!(self.tmux(&arguments).status.success());
    }

    fn type_text(&self, text: &str) {
        // To tmux a semicolon at the end would end its own command.
        let text = text.strip_suffix(';').map_or_else(|| text.to_owned(), |t| format!("{t}\\;"));
        assert!(self.tmux(&["send-keys", "-t", "s", "-l", &text]).status.success());
    }

    fn screen(&self, escapes: bool) -> String {
        let mut arguments = vec!["capture-pane", "-p", "-J", "-t", "s"];
        if escapes {
            arguments.push("-e");
        }
        String::from_utf8_lossy(&self.tmux(&arguments).stdout).into_owned()
    }

    /// Waits until the screen fits.
    fn want(&self, what: &str, fits: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !fits(&self.screen(false)) {
            assert!(begun.elapsed() < PATIENCE, "{what} never came:\n{}", self.screen(false));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn want_text(&self, text: &str) {
        self.want(text, |screen| screen.contains(text));
    }

    /// Sends the shell's process a signal.
    fn signal(&self, name: &str) {
        let pid = fs::read_to_string(self.folder.path().join("pid")).expect("written");
        assert!(Command::new("kill").args([&format!("-{name}"), pid.trim()]).status().expect("kill runs").success());
    }

    /// Waits for an empty prompt.
    fn want_prompt(&self) {
        self.want("a prompt", |screen| {
            screen.trim_end().lines().last().is_some_and(|l| l.trim_end().ends_with("]:main>"))
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

#[test]
fn statements_over_several_lines_run_and_are_remembered() {
    let server = Server::start();
    let Some(terminal) = Terminal::start(&server, "") else { return };
    terminal.want_prompt();
    terminal.want_text(&format!("ann@{}[master]:main>", server.host()));
    terminal.type_text("select");
    terminal.keys(&["Enter"]);
    terminal.type_text("1;");
    terminal.keys(&["Enter"]);
    terminal.want_text("INSERT 1");
    assert_eq!(server.statements(), ["select\n1"]);
    terminal.type_text("select 1;");
    terminal.keys(&["Enter"]);
    terminal.want_text("(1 row)");
    terminal.want_prompt();
    terminal.keys(&["Up", "Up"]);
    terminal.want("the statement from the history", |s| s.trim_end().ends_with("select\n1;"));
    terminal.keys(&["C-c"]);
    terminal.want_text("Ctrl-D or \\q leaves");
    terminal.want_prompt();
    terminal.type_text("\\q");
    terminal.keys(&["Enter"]);
    terminal.want_text("EXIT=0");
    terminal.want("a terminal in order", |s| s.lines().any(|l| l == "icanon"));
    let history = terminal.folder.path().join(".local/state/quorate/history");
    assert_eq!(fs::metadata(&history).expect("written").permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(history).expect("text").contains("select 1;"));
}

#[test]
fn mistakes_show_before_enter_and_after() {
    let server = Server::start();
    let Some(terminal) = Terminal::start(&server, "") else { return };
    terminal.want_prompt();
    terminal.type_text("select (1");
    terminal.want_text("select (1");
    let begun = Instant::now();
    while !terminal.screen(true).contains("\x1b[1m\x1b[31m(") {
        assert!(begun.elapsed() < PATIENCE, "the bracket is not red: {:?}", terminal.screen(true));
        std::thread::sleep(Duration::from_millis(20));
    }
    terminal.keys(&["C-c"]);
    terminal.want_text("Ctrl-D or \\q leaves");
    terminal.want_prompt();
    terminal.type_text("select nope;");
    terminal.keys(&["Enter"]);
    terminal.want_text("hint: did you mean \"note\"?");
    terminal.want("a caret", |s| s.lines().any(|l| l.trim_start().starts_with('|') && l.ends_with('^')));
    terminal.type_text("\\timin");
    terminal.keys(&["Tab", "Enter"]);
    terminal.want_text("timing is on");
    terminal.keys(&["C-d"]);
    terminal.want_text("EXIT=0");
}

#[test]
fn ctrl_c_cancels_on_the_server_and_the_session_goes_on() {
    let server = Server::start();
    let Some(terminal) = Terminal::start(&server, "NO_COLOR=1") else { return };
    terminal.want_prompt();
    terminal.type_text("select sleep(60);");
    terminal.keys(&["Enter"]);
    let begun = Instant::now();
    while server.statements().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{}", terminal.screen(false));
        std::thread::sleep(Duration::from_millis(20));
    }
    terminal.keys(&["C-c"]);
    terminal.want_text("canceled on request");
    terminal.type_text("select 1;");
    terminal.keys(&["Enter"]);
    terminal.want_text("(1 row)");
    assert_eq!(server.cancels(), 1);
    assert!(!terminal.screen(true).contains("\x1b[3"), "{:?}", terminal.screen(true));
    terminal.type_text("exit");
    terminal.keys(&["Enter"]);
    terminal.want_text("EXIT=0");
}

#[test]
fn a_signal_leaves_the_terminal_in_order() {
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        let server = Server::start();
        let Some(terminal) = Terminal::start(&server, "") else { return };
        terminal.want_prompt();
        terminal.signal(signal);
        terminal.want_text(&format!("EXIT={code}"));
        terminal.want("a terminal in order", |s| s.lines().any(|l| l == "icanon"));
    }
}
