//! `quorate status` answers people, programs and monitoring.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use quorate_shared::status::Verdict;
use quorate_shared::wire::Preface;

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
fn a_node_of_another_version_is_not_a_missing_node() {
    let ours = Preface::OURS;
    for (theirs, advice) in [(ours.lowest - 1, "it is older: "), (ours.highest + 1, "it is newer: ")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                // Whoever has gone again is none of its business.
                let _ = stream.write_all(&Preface { lowest: theirs, highest: theirs }.encode());
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let found = format!("it speaks protocol version {theirs}, this program protocol version {}", ours.highest);
        for line in [&["-e", "SELECT 1"][..], &["bench"], &["feed", "--table", "t"]] {
            let ended = run(&[line, &["-h", &host]].concat());
            assert_eq!(ended.code, Some(3), "{}", ended.err);
            assert!(ended.err.contains(&found) && ended.err.contains(advice), "{line:?}: {}", ended.err);
        }
        let ended = run(&["status", "-h", &host]);
        assert_eq!(ended.code, Some(3));
        assert!(ended.out.contains("VersionSkew") && ended.out.contains(&found), "{}", ended.out);
        assert!(!ended.out.contains("NodeUnreachable"), "{}", ended.out);
    }
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
