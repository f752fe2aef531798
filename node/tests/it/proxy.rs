//! A TCP proxy of the test's own: forwards both ways, and can stop one way while every connection stays open.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a blocked or idle direction looks around.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Switches {
    to_server: AtomicBool,
    to_client: AtomicBool,
    gone: AtomicBool,
}

/// Forwards connections until it is dropped.
pub struct Proxy {
    pub port: u16,
    switches: Arc<Switches>,
}

impl Proxy {
    /// In front of a server's port.
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", super::support::free_port())).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let switches = Arc::new(Switches::default());
        let shared = switches.clone();
        std::thread::spawn(move || {
            while !shared.gone.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => serve(client, server, &shared),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        Self { port, switches }
    }

    /// Where clients are to go.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What the server says does not arrive any more; connections stay open.
    pub fn block_to_client(&self, blocked: bool) {
        self.switches.to_client.store(blocked, Ordering::SeqCst);
    }

    /// What clients say does not arrive any more; connections stay open.
    pub fn block_to_server(&self, blocked: bool) {
        self.switches.to_server.store(blocked, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.switches.gone.store(true, Ordering::Relaxed);
    }
}

fn serve(client: TcpStream, server: u16, switches: &Arc<Switches>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
    client.set_nonblocking(false).unwrap();
    let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (one, other) = (switches.clone(), switches.clone());
    std::thread::spawn(move || forward(client, server, &one, |s| &s.to_server));
    std::thread::spawn(move || forward(server_too, client_too, &other, |s| &s.to_client));
}

fn forward(mut from: TcpStream, mut to: TcpStream, switches: &Switches, blocked: fn(&Switches) -> &AtomicBool) {
    from.set_read_timeout(Some(PAUSE)).unwrap();
    let mut bytes = vec![0; 64 << 10];
    let held = || blocked(switches).load(Ordering::SeqCst) && !switches.gone.load(Ordering::Relaxed);
    while !switches.gone.load(Ordering::Relaxed) {
        if held() {
            std::thread::sleep(PAUSE);
            continue;
        }
        let n = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => break,
        };
        while held() {
            std::thread::sleep(PAUSE);
        }
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
