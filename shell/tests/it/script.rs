//! The scripted mode is a contract.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use crate::server::Server;
use crate::{program, run, run_with};

#[test]
fn formats_and_exit_codes() {
    let server = Server::start();
    let host = server.host();
    let tsv = run(&["-h", &host, "-e", "select all"]);
    assert_eq!(
        (tsv.code, tsv.out.as_str()),
        (Some(0), "n\td\tt\tb\n1\t3.98\t\t\\\\x01\n\\N\t\\N\t\\N\t\\N\n"),
        "{}",
        tsv.err
    );
    assert_eq!(tsv.err, "");
    let csv = run(&["-h", &host, "-c", "select all", "--format", "csv", "--no-header"]);
    assert_eq!(csv.out, "1,3.98,\"\",\\x01\n,,,\n");
    let json = run(&["-h", &host, "-e", "select all; select 1", "--format", "json"]);
    assert_eq!(
        json.out,
        "[\n  {\"n\":1,\"d\":\"3.98\",\"t\":\"\",\"b\":\"\\\\x01\"},\n  {\"n\":null,\"d\":null,\"t\":null,\"b\":null}\n]\n[\n  {\"a\":1}\n]\n"
    );
    for format in ["table", "vertical", "csv", "tsv", "json", "jsonl", "markdown"] {
        let ended = run(&["-h", &host, "-e", "select 1", "--format", format]);
        assert_eq!(ended.code, Some(0), "{format}");
        assert!(
            ended.out.contains('1') && !ended.out.contains('\x1b') && ended.out.is_ascii(),
            "{format}: {}",
            ended.out
        );
    }
}

#[test]
fn usage_and_connection_errors_have_their_codes() {
    assert_eq!(run(&["--nope"]).code, Some(2));
    let ended = run(&["-h", "127.0.0.1:1", "-e", "select 1"]);
    assert_eq!(ended.code, Some(3));
    assert!(ended.err.contains("127.0.0.1:1"), "{}", ended.err);
    assert_eq!(ended.out, "");
    assert_eq!(run(&["-h", "a b"]).code, Some(2));
    let help = run(&["--help"]);
    assert!(help.code == Some(0) && help.out.contains("--keep-going") && help.out.contains("bench"), "{}", help.out);
}

#[test]
fn a_failure_stops_and_names_its_place() {
    let server = Server::start();
    let host = server.host();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.sql");
    fs::write(&file, "select 1;\nselec 2;\nselect 3;\n").expect("written");
    let name = file.to_str().expect("text");
    let ended = run(&["-h", &host, "-f", name]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.out, "a\n1\n");
    assert!(ended.err.contains("x.sql:2:1: error: syntax error"), "{}", ended.err);
    assert!(ended.err.contains("hint: did you mean SELECT?"), "{}", ended.err);
    assert_eq!(server.statements(), ["select 1", "selec 2"]);
    let ended = run(&["-h", &host, "-f", name, "--keep-going"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(server.statements().len(), 5);
}

#[test]
fn an_error_shows_line_caret_and_hint() {
    let server = Server::start();
    let ended = run_with(&["-h", &server.host()], b"select 1;\n  select nope\n from t;");
    insta::assert_snapshot!(ended.err, @r#"
    <stdin>:2:10: error: column "nope" does not exist [42703]
       2 | select nope
         |        ^
    hint: did you mean "note"?
    "#);
    assert_eq!(ended.code, Some(1));
}

#[test]
fn inputs_run_in_order_and_files_may_use_commands() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let (outer, inner) = (folder.path().join("outer.sql"), folder.path().join("inner.sql"));
    fs::write(&inner, "insert inner;\n\\echo from inner\n").expect("written");
    fs::write(&outer, format!("\\c chinook;\ninsert outer;\n\\i {}\nUSE `Other`;", inner.display())).expect("written");
    let result = folder.path().join("result.txt");
    let ended = run(&[
        "-h",
        &server.host(),
        "-e",
        "insert one",
        "-f",
        outer.to_str().expect("text"),
        "-e",
        "select 1 \\gx",
        "-o",
        result.to_str().expect("text"),
    ]);
    assert_eq!((ended.code, ended.err.as_str(), ended.out.as_str()), (Some(0), "", ""));
    assert_eq!(
        server.statements(),
        ["insert one", "USE chinook", "insert outer", "insert inner", "USE `Other`", "select 1"]
    );
    assert_eq!(fs::read_to_string(result).expect("read"), "from inner\n-[ 1 ]+--\na | 1\n");
}

#[test]
fn standard_input_empty_broken_and_foreign() {
    let server = Server::start();
    let host = server.host();
    let empty = run(&["-h", &host]);
    assert_eq!((empty.code, empty.out.as_str(), empty.err.as_str()), (Some(0), "", ""));
    let cut = run_with(&["-h", &host], b"select 1;\ninsert into t values (1, 'ab");
    assert_eq!(cut.code, Some(1));
    assert!(cut.err.contains("<stdin>:2:26: error: unfinished statement: the string"), "{}", cut.err);
    assert_eq!(server.statements(), ["select 1"]);
    let foreign = run_with(&["-h", &host], b"select '\xe4';");
    assert_eq!(foreign.code, Some(1));
    assert!(foreign.err.contains("<stdin>:1:9: error: the text is not UTF-8 at byte offset 8"), "{}", foreign.err);
    let unended = run_with(&["-h", &host], b"select 1");
    assert_eq!((unended.code, unended.out.as_str()), (Some(0), "a\n1\n"));
    let stopped = run_with(&["-h", &host], b"select 1;\n\\q\nselect nope");
    assert_eq!(stopped.code, Some(0));
    let wrong = run_with(&["-h", &host], b"\\tming on\n");
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("did you mean \\timing?"), "{}", wrong.err);
}

#[test]
fn outcome_unknown_has_its_own_code() {
    let server = Server::start();
    let ended = run(&["-h", &server.host(), "-e", "select unknown"]);
    assert_eq!(ended.code, Some(4));
    assert!(ended.err.contains("outcome unknown:"), "{}", ended.err);
}

#[test]
fn a_lost_connection_is_found_again_and_told_in_one_line() {
    let server = Server::start();
    let ended = run(&["-h", &server.host(), "-e", "select gone"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "back\ntrue\n"), "{}", ended.err);
    assert_eq!(server.statements(), ["select gone", "select gone"]);
    assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    assert!(ended.err.starts_with("lost n1") && ended.err.contains("moved to n1"), "{}", ended.err);
}

#[test]
fn read_only_is_passed_on() {
    let server = Server::start();
    let ended = run(&["-h", &server.host(), "--read-only", "-e", "delete from t"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("read only"), "{}", ended.err);
}

#[test]
fn notices_and_warnings_go_to_standard_error() {
    let server = Server::start();
    let host = server.host();
    let ended = run(&["-h", &host, "-e", "select warned"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""));
    assert_eq!(ended.err, "notice: this is a notice\nwarning: this is a warning\n");
    let quiet = run(&["-h", &host, "-q", "-e", "select warned"]);
    assert_eq!(quiet.err, "warning: this is a warning\n");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let server = Server::start();
    let mut child =
        program(&["-h", &server.host(), "-e", "select many", "-e", "insert after"]).spawn().expect("started");
    let mut first = [0; 1];
    let mut out = child.stdout.take().expect("piped");
    out.read_exact(&mut first).expect("output");
    drop(out);
    let ended = child.wait_with_output().expect("ended");
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert_eq!(server.statements().last().map(String::as_str), Some("insert after"));
}

#[test]
fn ctrl_c_stops_the_statement_on_the_server() {
    let server = Server::start();
    let child = program(&["-h", &server.host(), "-e", "select sleep(60)", "-e", "insert never"])
        .stdin(Stdio::null())
        .spawn()
        .expect("started");
    while server.statements().is_empty() {
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let ended = child.wait_with_output().expect("ended");
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(server.cancels(), 1);
    assert_eq!(server.statements(), ["select sleep(60)"]);
}

#[test]
fn real_dumps_go_through() {
    let folder = std::env::var("QUORATE_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_owned());
    for name in ["chinook_postgres.sql", "chinook_mysql.sql"] {
        let path = format!("{folder}/data/chinook/{name}");
        if !std::path::Path::new(&path).exists() {
            eprintln!("SKIPPED: {path} is not there");
            continue;
        }
        let server = Server::start();
        let ended = run(&["-h", &server.host(), "-f", &path]);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.err);
        assert!(server.statements().iter().any(|s| s.to_lowercase().starts_with("use ")), "{name}");
        assert_eq!(server.statements().iter().filter(|s| s.starts_with("INSERT")).count(), 24);
    }
}
