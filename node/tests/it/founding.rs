//! How clusters begin, and do not.

use crate::support::{TestCluster, eventually};

#[test]
fn one_voter_founds_itself_and_comes_back() {
    let mut cluster = TestCluster::started(1, 0);
    let id = cluster.node(1).status().unwrap()["cluster"].clone();
    assert!(id.is_string(), "{id}");
    assert_eq!(cluster.node(1).terminate(), Some(0));
    cluster.node(1).start();
    cluster.wait_ready();
    assert_eq!(cluster.node(1).status().unwrap()["cluster"], id);
}

#[test]
fn three_voters_found_once_all_are_there() {
    let mut cluster = TestCluster::new(3, 0);
    cluster.node(1).start();
    cluster.node(2).start();
    eventually("n1 waits for n3", || match cluster.nodes[&1].get("/health")? {
        (503, why) if why.contains("n3") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.node(3).start();
    cluster.wait_ready();
}

#[test]
fn two_wiped_voters_do_not_found() {
    let mut cluster = TestCluster::started(3, 0);
    for id in [1, 2] {
        cluster.node(id).kill();
        cluster.node(id).wipe();
    }
    cluster.node(1).start();
    cluster.node(2).start();
    for id in [1, 2] {
        eventually(&format!("n{id} says that its log is lost"), || match cluster.nodes[&id].get("/health")? {
            (503, why) if why.contains("lost its log") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    eventually("one voter of three has no leader", || match cluster.nodes[&3].get("/health")? {
        (503, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_directory_is_refused_by_name() {
    let mut cluster = TestCluster::started(1, 0);
    let (data, port) = (cluster.node(1).data.clone(), crate::support::free_port());
    let refused = |id: &str, data: &std::path::Path| {
        let peers = format!("{id}=127.0.0.1:{port}");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_quorated"))
            .args(["start", "--id", id, "--peers", &peers, "--data"])
            .arg(data)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = refused("1", &data);
    assert!(code == Some(1) && text.contains("in use"), "{text}");
    cluster.node(1).kill();
    let (code, text) = refused("2", &data);
    assert!(code == Some(1) && text.contains("belongs to n1, this is n2"), "{text}");
}
