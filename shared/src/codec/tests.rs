//! Frames cut, garbled, too long; strangers on both ends.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;

use super::*;
use crate::wire::VERSION;

fn run<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What a reader makes of these bytes followed by the end of the stream.
async fn read_all(bytes: &[u8], chunk: usize) -> Result<Vec<Bytes>, CodecError> {
    let (mut near, far) = duplex(chunk.max(1));
    let bytes = bytes.to_vec();
    let feed = async move {
        // A reader that has refused is gone.
        let _ = near.write_all(&bytes).await;
    };
    let read = async move {
        let mut reader = FrameReader::new(far);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    };
    tokio::join!(feed, read).1
}

#[test]
fn frames_come_back_however_they_are_cut() {
    let mut frames = Frames::default();
    let messages: Vec<String> = (0..40).map(|n| "x".repeat(n * n * 7)).collect();
    messages.iter().for_each(|message| frames.push(message).unwrap());
    for chunk in [1, 3, 1000, 1 << 20] {
        let read = run(read_all(&frames.bytes, chunk)).unwrap();
        let read: Vec<String> = read.iter().map(|frame| decode(frame).unwrap()).collect();
        assert_eq!(read, messages);
    }
}

#[test]
fn a_large_frame_comes_through() {
    let big = vec![7u8; FRAME_BYTES_MAX];
    let mut frames = Frames::default();
    frames.push_bytes(&big).unwrap();
    let read = run(read_all(&frames.bytes, 1 << 16)).unwrap();
    assert!(read.len() == 1 && read[0][..] == big[..]);
    assert!(matches!(frames.push_bytes(&vec![0; FRAME_BYTES_MAX + 1]), Err(CodecError::TooLong(_))));
}

#[test]
fn a_length_of_4_gb_is_refused_at_once() {
    let error = run(read_all(&[0xff, 0xff, 0xff, 0xff], 64)).unwrap_err();
    assert!(matches!(error, CodecError::TooLong(0xffff_ffff)), "{error}");
}

#[test]
fn an_announced_frame_costs_no_memory_before_it_comes() {
    run(async {
        let (mut near, far) = duplex(64);
        near.write_all(&(FRAME_BYTES_MAX as u32).to_be_bytes()).await.unwrap();
        let mut reader = FrameReader::new(far);
        assert!(futures::poll!(std::pin::pin!(reader.next())).is_pending());
        assert!(reader.buffer.capacity() < 1 << 20, "{}", reader.buffer.capacity());
    });
}

#[test]
fn half_a_frame_is_named() {
    let error = run(read_all(&[0, 0, 0, 9, 1, 2], 64)).unwrap_err();
    assert_eq!(error.to_string(), "the connection ended within a frame (6 of 13 bytes)");
    assert!(run(read_all(&[0, 0], 64)).is_err());
}

#[test]
fn messages_must_use_their_frame_up() {
    assert!(decode::<u32>(&encode(&5u32).unwrap()).is_ok());
    assert!(decode::<u32>(&[5, 0]).is_err());
    assert!(decode::<u32>(&[]).is_err());
}

#[test]
fn a_message_that_does_not_fit_leaves_the_others() {
    let mut frames = Frames::default();
    frames.push("a").unwrap();
    assert!(frames.push(&"x".repeat(FRAME_BYTES_MAX + 1)).is_err());
    frames.push("b").unwrap();
    let read = run(read_all(&frames.bytes, 64)).unwrap();
    assert_eq!(read.len(), 2);
}

/// What a door answers to these first bytes, until it closes.
fn told(first: &'static [u8]) -> String {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = async { accept(listener.accept().await.unwrap().0).await.map(|_| ()) };
        let stranger = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(first).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            String::from_utf8_lossy(&said).into_owned()
        };
        let (door, said) = tokio::join!(door, stranger);
        assert!(door.is_err());
        said
    })
}

#[test]
fn strangers_get_one_readable_line() {
    let said = told(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(said.starts_with("quorate: this port") && said.lines().count() == 1, "{said}");
    assert!(told(b"x").starts_with("quorate: this port"), "the first wrong byte is enough");
    assert!(told(&[0xff; 4000]).starts_with("quorate: this port"));
}

#[test]
fn other_versions_are_told_which_are_spoken() {
    let said = told(b"QUORATE\n\0\x07\0\x09");
    assert!(said.starts_with("QUORATE\n"), "our preface comes first, for a program to read: {said}");
    assert!(
        said.ends_with("OtherVersion: you speak protocol versions 7 to 9, this node protocol version 2\r\n"),
        "{said}"
    );
}

#[test]
fn a_client_says_what_a_stranger_said() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ssh = async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
            stream
        };
        let (result, _stream) = tokio::join!(connect(&address, Duration::from_secs(5)), ssh);
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "this is not a Quorate node or client: it said \"SSH-2.0-OpenSSH_9.2\"");
    });
}

#[test]
fn both_sides_agree_on_a_version() {
    run(async {
        let (mut a, mut b) = duplex(64);
        let (opened, answered) = tokio::join!(open(&mut a), answer(&mut b));
        assert_eq!((opened.unwrap(), answered.unwrap()), (VERSION.1, VERSION.1));
    });
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = run(read_all(&bytes, 16));
        let _ = decode::<crate::wire::ClientFrame>(&bytes);
        let _ = decode::<crate::wire::ServerFrame>(&bytes);
        let _ = decode::<crate::wire::Hello>(&bytes);
        let _ = decode::<crate::wire::Greeting>(&bytes);
    }
}
