//! `quorate status` answers people, programs and monitoring.

use quorate_shared::status::Verdict;

use crate::server::Server;
use crate::{program, run};

#[test]
fn verdicts_are_exit_codes() {
    let server = Server::start();
    let host = server.host();
    for (verdict, code) in [(Verdict::Ok, 0), (Verdict::Warning, 1), (Verdict::Critical, 2), (Verdict::Unknown, 3)] {
        server.set_verdict(verdict);
        let ended = run(&["status", "-h", &host]);
        assert_eq!(ended.code, Some(code), "{verdict}: {}", ended.err);
        assert!(ended.out.contains(&verdict.to_string()) && !ended.out.contains('\x1b'), "{}", ended.out);
    }
    assert_eq!(run(&["status", "--nope"]).code, Some(3));
    assert_eq!(run(&["status", "-h", "a b"]).code, Some(3));
}

#[test]
fn json_is_one_document_also_with_nobody_there() {
    let server = Server::start();
    server.set_verdict(Verdict::Ok);
    let ended = run(&["status", "--json", "-h", &server.host()]);
    let picture: serde_json::Value = serde_json::from_str(&ended.out).expect("one document");
    assert_eq!((&picture["schema"], &picture["verdict"]), (&1.into(), &"ok".into()));
    let ended = run(&["status", "--json", "-h", "127.0.0.1:1,127.0.0.1:2"]);
    assert_eq!(ended.code, Some(3));
    let picture: serde_json::Value = serde_json::from_str(&ended.out).expect("one document");
    assert_eq!(picture["verdict"], "unknown");
    assert_eq!(picture["nodes"][1]["addr"], "127.0.0.1:2");
    assert_eq!(picture["nodes"][1]["reachable"], false);
}

#[test]
fn watching_writes_lines_until_the_reader_leaves() {
    use std::io::{BufRead, BufReader};
    let server = Server::start();
    let mut child = program(&["status", "--json", "--watch", "0.1", "-h", &server.host()]).spawn().expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    for _ in 0..3 {
        let line = lines.next().expect("a line").expect("text");
        let picture: serde_json::Value = serde_json::from_str(&line).expect("one document per line");
        assert_eq!(picture["schema"], 1);
    }
    drop(lines);
    assert!(child.wait().expect("ended").code().is_some());
}
