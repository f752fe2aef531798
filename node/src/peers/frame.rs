//! Frames between nodes: a 4-byte big-endian length, then one postcard message. The same framing as the clients'.
//!
//! Invariants: a length over `FRAME_BYTES_MAX` is refused before anything is allocated for it; half a frame is waited for,
//! never guessed at.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use quorate_shared::codec::CodecError;
use quorate_shared::error::WireError;
use quorate_shared::limits::FRAME_BYTES_MAX;
use quorate_shared::wire::{Greeting, Hello, PREFACE_BYTES, PeerHello, Preface};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const LENGTH_BYTES: usize = 4;
/// Read at once from a peer.
const READ_BYTES: usize = 64 << 10;
/// How long a stranger may take for preface and greeting.
const HANDSHAKE: Duration = Duration::from_secs(3);

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// Appends one message as a frame; leaves `out` as it was if the message is too large.
pub fn put<T: Serialize>(out: &mut Vec<u8>, message: &T) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let written = postcard::to_io(message, &mut *out).map(|_| ());
    let length = out.len() - start - LENGTH_BYTES;
    if written.is_err() || length > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(invalid(format!("a message of {length} bytes does not fit a frame")));
    }
    out[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(())
}

/// Appends bytes as a frame.
pub fn put_raw(out: &mut Vec<u8>, message: &[u8]) -> io::Result<()> {
    if message.len() > FRAME_BYTES_MAX {
        return Err(invalid(format!("a message of {} bytes does not fit a frame", message.len())));
    }
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    Ok(())
}

/// Takes the next whole frame out of what has been read; `None`: more is needed.
pub fn take(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    if buffer.len() < LENGTH_BYTES {
        return Ok(None);
    }
    let length = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed")));
    }
    if buffer.len() < LENGTH_BYTES + length {
        buffer.reserve(LENGTH_BYTES + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    Ok(Some(buffer.split_to(length)))
}

/// Decodes a frame's message.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    postcard::from_bytes(frame).map_err(|e| invalid(format!("a message that cannot be read: {e}")))
}

/// Reads more into the buffer; `false` at the end of the stream.
pub async fn fill<R: AsyncRead + Unpin>(stream: &mut R, buffer: &mut BytesMut) -> io::Result<bool> {
    buffer.reserve(READ_BYTES);
    Ok(stream.read_buf(buffer).await? > 0)
}

/// Reads one message.
pub async fn read<T: DeserializeOwned, R: AsyncRead + Unpin>(stream: &mut R, buffer: &mut BytesMut) -> io::Result<T> {
    loop {
        if let Some(frame) = take(buffer)? {
            return decode(&frame);
        }
        if !fill(stream, buffer).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Writes one message.
pub async fn write<T: Serialize, W: AsyncWrite + Unpin>(stream: &mut W, message: &T) -> io::Result<()> {
    let mut bytes = Vec::new();
    put(&mut bytes, message)?;
    stream.write_all(&bytes).await
}

/// Why a connection to a peer could not be made.
#[derive(thiserror::Error, Debug)]
pub enum ConnectError {
    /// Nobody answers there, or not in our language.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It answered, and refused.
    #[error("{0}")]
    Refused(WireError),
}

/// Connects to a node and says hello; what is left in the buffer was sent after the greeting.
pub async fn connect(address: &str, hello: &PeerHello) -> Result<(TcpStream, BytesMut, Greeting), ConnectError> {
    match tokio::time::timeout(HANDSHAKE, handshake(address, hello)).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer"))),
    }
}

async fn handshake(address: &str, hello: &PeerHello) -> Result<(TcpStream, BytesMut, Greeting), ConnectError> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    let mut opening = Preface::OURS.encode().to_vec();
    put(&mut opening, &Hello::Peer(hello.clone()))?;
    stream.write_all(&opening).await?;
    let mut theirs = [0; PREFACE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let theirs = Preface::decode(&theirs).ok_or_else(|| invalid("something that is not Quorate answers there"))?;
    if Preface::OURS.agree(theirs).is_none() {
        return Err(invalid(CodecError::Version(theirs).to_string()).into());
    }
    let mut buffer = BytesMut::new();
    match read(&mut stream, &mut buffer).await? {
        Greeting::Refused(error) => Err(ConnectError::Refused(error)),
        greeting => Ok((stream, buffer, greeting)),
    }
}

/// Notices a machine that vanished without a word.
pub fn keep_alive(stream: &TcpStream) {
    let options = socket2::TcpKeepalive::new().with_time(Duration::from_secs(5));
    // A connection without it works, it only notices later.
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&options);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut bytes = Vec::new();
        put(&mut bytes, &"one").unwrap();
        put(&mut bytes, &"two").unwrap();
        let (first, rest) = bytes.split_at(6);
        let mut buffer = BytesMut::from(first);
        assert!(take(&mut buffer).unwrap().is_none());
        buffer.extend_from_slice(rest);
        assert_eq!(decode::<String>(&take(&mut buffer).unwrap().unwrap()).unwrap(), "one");
        assert_eq!(decode::<String>(&take(&mut buffer).unwrap().unwrap()).unwrap(), "two");
        assert!(take(&mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_monstrous_length_is_refused_unread() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(take(&mut buffer).is_err());
    }
}
