//! Frames over a byte stream: the preface each way, then 4-byte lengths and postcard messages.
//!
//! [`FrameReader`] and [`FrameWriter`] each own a buffer, so that one read takes in many frames and one write carries
//! many: a caller pushes every message it has and flushes once. Both are plain state machines over a stream, without
//! locks or tasks; a session, a client and a peer link use the same two.
//!
//! Invariants: a length over [`FRAME_BYTES_MAX`] is refused before anything is allocated for it; a buffer never grows
//! past one frame and a read's worth; a message must use its frame up; [`FrameReader::next`] may be dropped half-way
//! and called again without losing bytes.
//!
//! Left out: compression and TLS (a door wraps the stream before it comes here).

use std::future::Future;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::limits::{FRAME_BYTES_MAX, HANDSHAKE_MS, PORT_DEFAULT};
use crate::wire::{MAGIC, PREFACE_BYTES, Preface};

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;
/// Room asked for before a read: most requests and answers of a drain fit.
const READ_BYTES: usize = 16 << 10;
/// A buffer that grew past this is given back when it is empty again.
const KEEP_BYTES: usize = 256 << 10;
/// How much of a stranger's answer is shown.
const STRANGER_BYTES_MAX: usize = 200;

/// Why a connection cannot go on. Every one of them ends it.
#[derive(thiserror::Error, Debug)]
pub enum CodecError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side closed in the middle of a frame.
    #[error("the connection ended within a frame ({have} of {want} bytes)")]
    HalfFrame {
        /// Bytes that came.
        have: usize,
        /// Bytes announced, the length included.
        want: usize,
    },
    /// A frame is announced, or was to be sent, that no limit allows.
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    /// The bytes of a frame are not the message expected.
    #[error("a frame of {bytes} bytes makes no sense: {cause}")]
    Garbled {
        /// Its length.
        bytes: usize,
        /// What postcard says.
        cause: String,
    },
    /// The other side does not speak this protocol.
    #[error("this is not a Quorate node or client: it said {0:?}")]
    Stranger(String),
    /// The other side speaks other versions only.
    #[error("OtherVersion: it speaks {}, this program {}", .0, Preface::OURS)]
    Version(Preface),
    /// Nothing, or not enough, came in time.
    #[error("no handshake within {} ms", .0.as_millis())]
    Slow(Duration),
}

/// How long the preface and the first message may take.
pub const HANDSHAKE: Duration = Duration::from_millis(HANDSHAKE_MS);

/// Takes frames from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    ended: bool,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader over a stream whose preface has been read.
    pub fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new(), ended: false, limit: FRAME_BYTES_MAX }
    }

    /// Refuses frames above this length from now on; a stranger's first message is short.
    pub fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes.min(FRAME_BYTES_MAX);
    }

    /// The next frame that has come in already, without touching the stream.
    pub fn buffered(&mut self) -> Result<Option<Bytes>, CodecError> {
        let Some(length) = self.announced()? else { return Ok(None) };
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// The next frame; `None` when the other side closed between frames.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, CodecError>> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.ended {
                return Poll::Ready(self.at_end());
            }
            self.make_room()?;
            let read = ready!(poll_read_buffer(&mut self.io, &mut self.buffer, cx))?;
            self.ended = read == 0;
        }
    }

    /// The next frame; `None` when the other side closed between frames. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CodecError> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// The next frame, decoded.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        self.next().await?.map(|frame| decode(&frame)).transpose()
    }

    /// The length of the frame at the front, once its four bytes are here.
    fn announced(&self) -> Result<Option<usize>, CodecError> {
        let Some(head) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.limit { Err(CodecError::TooLong(length)) } else { Ok(Some(length)) }
    }

    /// Makes room for the rest of the frame at the front, and for a read's worth at least.
    fn make_room(&mut self) -> Result<(), CodecError> {
        let want = match self.announced()? {
            Some(length) => (LENGTH_BYTES + length).saturating_sub(self.buffer.len()),
            None => 0,
        };
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < want.min(READ_BYTES) || spare < READ_BYTES / 4 {
            // Grow with what really comes, not with what is announced: a length alone costs nobody 16 MiB.
            self.buffer.reserve(want.clamp(READ_BYTES, self.buffer.len().max(READ_BYTES)));
        }
        Ok(())
    }

    fn at_end(&self) -> Result<Option<Bytes>, CodecError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let want = self.announced()?.map_or(LENGTH_BYTES, |length| length + LENGTH_BYTES);
        Err(CodecError::HalfFrame { have: self.buffer.len(), want })
    }
}

/// Reads once into the buffer's spare room; 0 is the end of the stream.
fn poll_read_buffer<R: AsyncRead + Unpin>(
    io: &mut R,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    // The future keeps nothing between polls, so making a new one each time loses nothing.
    let read = io.read_buf(buffer);
    std::pin::pin!(read).poll(cx)
}

/// Puts frames into a stream: [`FrameWriter::push`] collects, [`FrameWriter::flush`] writes them with one call.
#[derive(Debug)]
pub struct FrameWriter<W> {
    io: W,
    frames: Frames,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer over a stream whose preface has been written.
    pub fn new(io: W) -> Self {
        Self { io, frames: Frames::default() }
    }

    /// Adds a message; it is sent by the next flush.
    pub fn push<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), CodecError> {
        self.frames.push(message)
    }

    /// Adds a frame of bytes that are encoded already.
    pub fn push_bytes(&mut self, frame: &[u8]) -> Result<(), CodecError> {
        self.frames.push_bytes(frame)
    }

    /// The stream; frames that wait are lost.
    pub fn into_inner(self) -> W {
        self.io
    }

    /// Bytes waiting for a flush.
    pub fn pending(&self) -> usize {
        self.frames.len()
    }

    /// Writes what is waiting; ready when nothing is left.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.frames.poll_write(&mut self.io, cx)
    }

    /// Writes what is waiting. Cancel-safe: what was written is gone from the buffer, the rest stays.
    pub async fn flush(&mut self) -> Result<(), CodecError> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await?;
        Ok(())
    }

    /// Adds one message and writes everything.
    pub async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), CodecError> {
        self.push(message)?;
        self.flush().await
    }

    /// Writes what is waiting and closes the stream's sending side.
    pub async fn close(&mut self) -> Result<(), CodecError> {
        self.flush().await?;
        self.io.shutdown().await?;
        Ok(())
    }
}

/// Encoded frames that wait to be written.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    written: usize,
}

impl Frames {
    /// Encodes a message behind its length. On an error nothing is added.
    pub fn push<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), CodecError> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        if let Err(cause) = encode_into(message, &mut self.bytes) {
            self.bytes.truncate(start);
            return Err(cause);
        }
        let length = self.bytes.len() - start - LENGTH_BYTES;
        if length > FRAME_BYTES_MAX {
            self.bytes.truncate(start);
            return Err(CodecError::TooLong(length));
        }
        self.bytes[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        Ok(())
    }

    /// Adds a frame of bytes that are encoded already.
    pub fn push_bytes(&mut self, frame: &[u8]) -> Result<(), CodecError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(CodecError::TooLong(frame.len()));
        }
        self.bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(frame);
        Ok(())
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what waits; ready when nothing is left.
    pub fn poll_write<W: AsyncWrite + Unpin>(&mut self, io: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let n = ready!(std::pin::Pin::new(&mut *io).poll_write(cx, &self.bytes[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// A postcard flavour that appends to a vector by slices; postcard's own one extends byte by byte.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends a message's bytes.
pub fn encode_into<T: Serialize + ?Sized>(message: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    postcard::serialize_with_flavor(message, Append(out))
        .map_err(|cause| CodecError::Garbled { bytes: out.len() - start, cause: cause.to_string() })
}

/// A message's bytes.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_into(message, &mut out)?;
    Ok(out)
}

/// Reads a message back; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CodecError> {
    let garbled = |cause: String| CodecError::Garbled { bytes: frame.len(), cause };
    let (message, rest) = postcard::take_from_bytes(frame).map_err(|cause| garbled(cause.to_string()))?;
    if rest.is_empty() { Ok(message) } else { Err(garbled(format!("{} bytes are left over", rest.len()))) }
}

/// A connection after the preface: frames both ways.
#[derive(Debug)]
pub struct Connection {
    /// Frames from the other side.
    pub reader: FrameReader<OwnedReadHalf>,
    /// Frames to the other side.
    pub writer: FrameWriter<OwnedWriteHalf>,
    /// The protocol version both speak.
    pub version: u16,
}

impl Connection {
    /// Wraps a stream whose prefaces have been exchanged.
    pub fn new(stream: TcpStream, version: u16) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: FrameReader::new(reader), writer: FrameWriter::new(writer), version }
    }

    /// The bare stream again; `None` if frames wait on either side, which would be lost.
    pub fn into_stream(self) -> Option<TcpStream> {
        if !self.reader.buffer.is_empty() || !self.writer.frames.is_empty() {
            return None;
        }
        self.reader.io.reunite(self.writer.io).ok()
    }

    /// The other side's address, for the log.
    pub fn peer(&self) -> String {
        self.reader.io.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string())
    }
}

/// Connects to `host:port` and exchanges prefaces, all within the timeout.
pub async fn connect(address: &str, timeout: Duration) -> Result<Connection, CodecError> {
    let work = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let version = open(&mut stream).await?;
        Ok(Connection::new(stream, version))
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(CodecError::Slow(timeout)))
}

/// Exchanges prefaces on a stream that was accepted, within [`HANDSHAKE`]; a stranger is told off in one line.
pub async fn accept(mut stream: TcpStream) -> Result<Connection, CodecError> {
    stream.set_nodelay(true)?;
    let result = tokio::time::timeout(HANDSHAKE, answer(&mut stream)).await.unwrap_or(Err(CodecError::Slow(HANDSHAKE)));
    match result {
        Ok(version) => Ok(Connection::new(stream, version)),
        Err(error) => {
            refuse_line(&mut stream, &error).await;
            Err(error)
        }
    }
}

/// The connecting side of the preface: says ours, reads theirs, gives the agreed version.
pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<u16, CodecError> {
    stream.write_all(&Preface::OURS.encode()).await?;
    let theirs = read_preface(stream).await?;
    Preface::OURS.agree(theirs).ok_or(CodecError::Version(theirs))
}

/// The accepting side of the preface: reads theirs, says ours, gives the agreed version.
pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<u16, CodecError> {
    let theirs = read_preface(stream).await?;
    stream.write_all(&Preface::OURS.encode()).await?;
    Preface::OURS.agree(theirs).ok_or(CodecError::Version(theirs))
}

/// Reads a preface; the first byte that is wrong decides, so that nobody has to send twelve to be told.
async fn read_preface<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Preface, CodecError> {
    let mut bytes = [0; PREFACE_BYTES];
    let mut have = 0;
    while have < PREFACE_BYTES {
        let n = stream.read(&mut bytes[have..]).await?;
        if n == 0 {
            let eof = CodecError::HalfFrame { have, want: PREFACE_BYTES };
            return Err(if have == 0 { io::Error::from(io::ErrorKind::UnexpectedEof).into() } else { eof });
        }
        have += n;
        let magic = have.min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(CodecError::Stranger(stranger_words(stream, &bytes[..have]).await));
        }
    }
    Preface::decode(&bytes).ok_or_else(|| CodecError::Stranger(printable(&bytes)))
}

/// What a stranger said: the bytes read and whatever else has arrived by now, made printable.
async fn stranger_words<S: AsyncRead + Unpin>(stream: &mut S, first: &[u8]) -> String {
    let mut said = [0; STRANGER_BYTES_MAX];
    let n = first.len().min(said.len());
    said[..n].copy_from_slice(&first[..n]);
    let mut rest = ReadBuf::new(&mut said[n..]);
    let _ = std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *stream).poll_read(cx, &mut rest) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => Poll::Ready(Ok(())),
    })
    .await;
    let all = n + rest.filled().len();
    printable(&said[..all])
}

/// Text with everything unprintable as dots, one line.
fn printable(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes)
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_control() || c == char::REPLACEMENT_CHARACTER { '.' } else { c })
        .collect();
    text.trim_end().to_owned()
}

/// One readable line for whoever does not get in. Best effort: the other side may be gone.
pub async fn refuse_line<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, error: &CodecError) {
    let line = match error {
        CodecError::Stranger(_) => format!(
            "quorate: this port ({PORT_DEFAULT} by default) speaks the Quorate protocol; connect with `quorate -h HOST:PORT`, \
             HTTP has its own port (--http)\r\n"
        ),
        CodecError::Version(theirs) => {
            format!("quorate: refused: OtherVersion: you speak {theirs}, this node {}\r\n", Preface::OURS)
        }
        CodecError::Io(_) => return,
        other => format!("quorate: refused: {other}\r\n"),
    };
    let farewell = async {
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing over unread bytes resets the connection, and the line would be lost with it.
        let mut rest = [0; 4096];
        for _ in 0..16 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        Ok::<(), io::Error>(())
    };
    // Nothing depends on whether the line arrives.
    let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
}

#[cfg(test)]
mod tests;
