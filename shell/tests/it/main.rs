//! The program `quorate` as a whole, against a scripted server: exit codes, standard output, standard error.

mod script;
mod server;
mod status;
mod terminal;

use std::io::Write;
use std::process::{Command, Stdio};

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// The program with a clean environment.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").env("USER", "tester");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program with this on its standard input.
pub fn run_with(arguments: &[&str], input: &[u8]) -> Ended {
    let mut child = program(arguments).spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // The program may end without having read everything.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the program with an empty standard input.
pub fn run(arguments: &[&str]) -> Ended {
    run_with(arguments, b"")
}
