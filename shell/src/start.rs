//! From the command line to the right front end, and from its end to the exit code.
//!
//! Startup is kept short: one thread, no work that the front end does not need.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use quorate_shared::client::ClientError;
use quorate_shared::error::{Code, WireError};

use crate::args::{self, Args, BenchArgs, Command, Input, Parsed};
use crate::collect;
use crate::command::Expanded;
use crate::config::{self, Options};
use crate::exit::Exit;
use crate::output::Output;
use crate::render::error::{Paint, plain_error};
use crate::script;
use crate::session::{Display, Session, client_config, colors};
use crate::tui::run as tui;
use crate::{admin, backup, bench, demo, feed, prove, repl};

/// The program.
pub fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let args = match args::parse(&line) {
        Parsed::Run(args) => args,
        Parsed::Print(text) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Parsed::Mistake(text, code) => {
            eprint!("{text}");
            return ExitCode::from(code);
        }
    };
    let paint = Paint { color: colors() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let code = runtime.block_on(run(&args, paint));
    // A thread may still wait for standard input: it ends with the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Help goes into pipes that may close early.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = Output::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

async fn run(args: &Args, paint: Paint) -> u8 {
    let url = match &args.command {
        Some(Command::Status(a)) => a.url.as_deref(),
        Some(Command::Top(a)) => a.url.as_deref(),
        Some(Command::Bench(a)) => a.url.as_deref(),
        Some(Command::Feed(a)) => a.url.as_deref(),
        Some(Command::Demo(_) | Command::Admin(_) | Command::Verify(_) | Command::Anchor(_) | Command::Restore(_))
        | None => None,
        Some(Command::Backup(a)) => a.url.as_deref(),
    };
    let usage = if matches!(args.command, Some(Command::Status(_))) { 3 } else { Exit::Usage.code() };
    let options = match config::resolve(&args.connection, url.or(args.url.as_deref())) {
        Ok(options) => options,
        Err(why) => {
            eprint!("{}", plain_error(&WireError::new(Code::Invalid, why), paint));
            return usage;
        }
    };
    match &args.command {
        Some(Command::Status(status)) => collect::status(&options, status, paint).await,
        Some(Command::Top(_)) => {
            let connect_hint =
                format!("quorate -h {}", options.hosts.first().map(ToString::to_string).unwrap_or_default());
            let top = tui::Options { client: client_config(&options), connect_hint, color: paint.color };
            ended(Box::pin(tui::run(top)).await.map_err(Into::into), paint)
        }
        Some(Command::Bench(bench)) => ended(Box::pin(bench::run(measure(&options, bench))).await, paint),
        Some(Command::Backup(args)) => ended(Box::pin(backup::run(&options, args, paint)).await, paint),
        Some(Command::Restore(args)) => ended(backup::restore(args), paint),
        Some(Command::Feed(args)) => ended(Box::pin(feed::run(&options, args, paint)).await, paint),
        Some(Command::Demo(demo)) => {
            let demo = demo::Options {
                data: demo.data.clone(),
                load: demo.load,
                no_tui: demo.no_tui,
                json: demo.json,
                color: paint.color,
            };
            ended(Box::pin(demo::run(demo)).await, paint)
        }
        Some(Command::Admin(action)) => admin::run(&options, action, paint).await,
        Some(Command::Verify(args)) => prove::verify(&options, args, paint).await,
        Some(Command::Anchor(args)) => prove::anchor(&options, args, paint).await,
        None => sql(args, options, paint).await,
    }
}

/// How a command that is not about statements ended.
fn ended(result: anyhow::Result<u8>, paint: Paint) -> u8 {
    result.unwrap_or_else(|error| {
        let client = error.chain().find_map(|e| e.downcast_ref::<ClientError>());
        let message = format!("{error:#}");
        let (shown, exit) = match client {
            Some(ClientError::NoConnection { .. }) => (WireError::new(Code::Retry, message), Exit::NoConnection),
            // Its detail and hint too.
            Some(ClientError::Server(server)) => (WireError { message, ..server.clone() }, Exit::of(server.code)),
            _ => (WireError::new(Code::Invalid, message), Exit::Failed),
        };
        eprint!("{}", plain_error(&shown, paint));
        exit.code()
    })
}

/// What `quorate bench` was told to do.
fn measure(options: &Options, args: &BenchArgs) -> bench::Options {
    let level = options.settings.iter().find(|(name, _)| name == "read_level").map(|(_, level)| level.as_str());
    bench::Options {
        client: client_config(options),
        workload: args.workload,
        clients: args.clients,
        seconds: u64::from(args.seconds),
        rows: args.rows,
        read_level: args::wire_read_level(level.unwrap_or("linearizable")),
        json: args.json,
    }
}

/// Statements: from the command line, a pipe, or a person.
async fn sql(args: &Args, options: Options, paint: Paint) -> u8 {
    let interactive = args.inputs.is_empty() && io::stdin().is_terminal() && io::stdout().is_terminal();
    let inputs = if args.inputs.is_empty() { vec![Input::File("-".into())] } else { args.inputs.clone() };
    let from_file = inputs.iter().any(|i| matches!(i, Input::File(_)));
    let display = Display {
        format: args.format.or(options.file.format),
        header: !args.no_header,
        expanded: if interactive { Expanded::Auto } else { Expanded::Off },
        timing: false,
        narrate: interactive || (!from_file && io::stdout().is_terminal()),
        quiet: args.quiet,
        paint,
    };
    let mut session = match Session::open(options, display, Output::stdout()).await {
        Ok(session) => session,
        Err(error) => {
            let exit = match &error {
                ClientError::NoConnection { .. } => Exit::NoConnection,
                _ => Exit::Failed,
            };
            eprint!("{}", plain_error(&error.into_wire(), paint));
            return exit.code();
        }
    };
    if let Some(path) = &args.output {
        match Output::file(path) {
            Ok(output) => session.output = output,
            Err(e) => {
                let error = WireError::new(Code::Invalid, format!("cannot write {}: {e}", path.display()));
                eprint!("{}", plain_error(&error, paint));
                return Exit::Usage.code();
            }
        }
    }
    if interactive {
        return repl::run(&mut session).await;
    }
    script::run_inputs(&mut session, &inputs, args.keep_going).await.code()
}
