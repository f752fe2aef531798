//! One file of a log archive: a header, records with checksums, and a trailer over everything.
//!
//! ```text
//! magic | header record | part records ... | end record
//! record = length u32 | crc32c u32 of length and bytes | postcard bytes
//! ```
//!
//! Numbers are little-endian. A file is written under `NAME.part`; when it is full, or the archive is stopped, it gets
//! its trailer, is synced and renamed. So a file without `.part` is complete, and one with it ends where its last sync
//! said (the manifest knows) or later.
//!
//! Invariant: whatever bit of a complete file is changed, reading it to its end is an error that names the file.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ArchivePart, ArchivePoint};
use crate::ids::{ClusterId, Hash, Index, ShardId, Timestamp};
use crate::limits::FRAME_BYTES_MAX;

/// First bytes of every file.
pub const MAGIC: [u8; 8] = *b"QUORARC\n";
/// Version of the format written here.
pub const FORMAT: u32 = 1;
/// Name extension of a complete file.
pub const EXTENSION: &str = "qlog";
/// Added to the name while the file is written.
pub const PART: &str = ".part";
const RECORD_HEAD: usize = 8;

/// What a file is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The shard.
    pub shard: ShardId,
    /// The point before its first entry.
    pub after: ArchivePoint,
}

/// The end of a complete file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trailer {
    /// Its last entry.
    pub last: Index,
    /// The chain hash after it.
    pub chain: Hash,
    /// Records before the trailer, the header not counted.
    pub records: u64,
    /// BLAKE3 of every byte before the trailer.
    pub hash: Hash,
}

#[derive(Serialize, Deserialize)]
enum Record {
    Header(Header),
    Part(ArchivePart),
    End(Trailer),
}

/// Why a file cannot be used.
#[derive(thiserror::Error, Debug)]
#[error("{}: {why}{}", file.display(), place(*at))]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub why: String,
    /// Where; 0 is the file as a whole.
    pub at: u64,
}

fn place(at: u64) -> String {
    if at == 0 { String::new() } else { format!(" (at byte {at})") }
}

/// `s1-00000000000000001234.qlog`: the shard and the point before its first entry.
pub fn file_name(shard: ShardId, after: Index) -> String {
    format!("{shard}-{:020}.{EXTENSION}", after.get())
}

/// What a complete file came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// Its name.
    pub name: String,
    /// The point before its first entry.
    pub after: Index,
    /// Its last entry.
    pub last: Index,
    /// The chain hash after it.
    pub chain: Hash,
    /// The first timestamp in it; 0 if there is none.
    pub first_time: Timestamp,
    /// The last.
    pub last_time: Timestamp,
    /// Its bytes.
    pub bytes: u64,
    /// BLAKE3 of all of it.
    pub hash: Hash,
}

/// Writes a file.
pub struct Writer {
    dir: PathBuf,
    file: File,
    header: Header,
    hasher: blake3::Hasher,
    bytes: u64,
    records: u64,
    last: ArchivePoint,
    times: (Timestamp, Timestamp),
}

impl Writer {
    /// Begins a file in a directory; one of that name that was not finished is replaced.
    pub fn create(dir: &Path, cluster: ClusterId, shard: ShardId, after: ArchivePoint) -> io::Result<Writer> {
        let header = Header { format: FORMAT, cluster, shard, after };
        let file = File::create(dir.join(file_name(shard, after.index) + PART))?;
        let mut writer = Writer {
            dir: dir.to_owned(),
            file,
            header: header.clone(),
            hasher: blake3::Hasher::new(),
            bytes: 0,
            records: 0,
            last: after,
            times: (Timestamp::MIN, Timestamp::MIN),
        };
        writer.put(&MAGIC)?;
        writer.put(&encode(&Record::Header(header))?)?;
        writer.sync()?;
        sync_dir(dir)?;
        Ok(writer)
    }

    /// Goes on with an unfinished file behind its last whole record; a torn one is cut. What lies before `durable` must be
    /// whole. The file is the part file at this path.
    pub fn resume(path: &Path, durable: u64) -> Result<Writer, FileError> {
        let failed = |why: String, at: u64| FileError { file: path.to_owned(), why, at };
        let mut reader = Reader::open(path)?;
        let mut times = (Timestamp::MIN, Timestamp::MIN);
        loop {
            let at = reader.at;
            match reader.next() {
                Ok(Some(part)) => note_times(&mut times, &part),
                Ok(None) => return Err(failed("it has its trailer already".into(), at)),
                Err(error) if error.at < durable => return Err(error),
                Err(_) => break,
            }
        }
        let (at, last, records, hasher) = (reader.at, reader.last, reader.records, reader.hasher.clone());
        let open = || -> io::Result<File> {
            let mut file = File::options().read(true).write(true).open(path)?;
            file.set_len(at)?;
            file.seek(SeekFrom::Start(at))?;
            file.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|e| failed(e.to_string(), at))?;
        let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Writer { dir, file, header: reader.header, hasher, bytes: at, records, last, times })
    }

    /// Adds a part. It is durable after the next [`Writer::sync`].
    pub fn append(&mut self, part: &ArchivePart) -> io::Result<()> {
        self.put(&encode(&Record::Part(part.clone()))?)?;
        self.records += 1;
        note_times(&mut self.times, part);
        if let ArchivePart::Entries(entries) = part {
            self.last.index = entries.last;
            self.last.chain = entries.chain;
        }
        Ok(())
    }

    /// Makes everything durable.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Ends it: trailer, sync, its final name.
    pub fn close(mut self) -> io::Result<Closed> {
        let hash = Hash(*self.hasher.finalize().as_bytes());
        let trailer = Trailer { last: self.last.index, chain: self.last.chain, records: self.records, hash };
        self.put(&encode(&Record::End(trailer))?)?;
        self.file.sync_all()?;
        let name = self.name();
        fs::rename(self.dir.join(format!("{name}{PART}")), self.dir.join(&name))?;
        sync_dir(&self.dir)?;
        Ok(Closed {
            name,
            after: self.header.after.index,
            last: self.last.index,
            chain: self.last.chain,
            first_time: self.times.0,
            last_time: self.times.1,
            bytes: self.bytes,
            hash: Hash(*self.hasher.finalize().as_bytes()),
        })
    }

    /// Its final name.
    pub fn name(&self) -> String {
        file_name(self.header.shard, self.header.after.index)
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last point in it.
    pub fn last(&self) -> ArchivePoint {
        self.last
    }

    /// Whether it has entries.
    pub fn is_empty(&self) -> bool {
        self.last.index == self.header.after.index
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn note_times(times: &mut (Timestamp, Timestamp), part: &ArchivePart) {
    if let ArchivePart::Entries(entries) = part {
        if times.0 == Timestamp::MIN {
            times.0 = entries.first_time;
        }
        times.1 = times.1.max(entries.last_time);
    }
}

/// BLAKE3, a piece at a time.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of everything added.
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(record).map_err(io::Error::other)?;
    let length = (body.len() as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &body);
    Ok([&length[..], &crc.to_le_bytes(), &body].concat())
}

/// Reads a file, with every checksum.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// What it is of.
    pub header: Header,
    hasher: blake3::Hasher,
    at: u64,
    records: u64,
    last: ArchivePoint,
    ended: bool,
}

impl Reader {
    /// Opens a file and reads its header.
    pub fn open(path: &Path) -> Result<Reader, FileError> {
        let failed = |why: String, at: u64| FileError { file: path.to_owned(), why, at };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(failed("the file is missing".into(), 0)),
            Err(e) => return Err(failed(e.to_string(), 0)),
        };
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(|_| failed("it is too short".into(), 0))?;
        if magic != MAGIC {
            return Err(failed("it does not begin as a file of an archive does".into(), 0));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&magic);
        let mut at = MAGIC.len() as u64;
        let (bytes, record) = read_record(&mut file).map_err(|why| failed(why, at))?;
        let Some(Record::Header(header)) = record else { return Err(failed("it has no header".into(), at)) };
        if header.format != FORMAT {
            return Err(failed(format!("its format {} was written by a newer version", header.format), at));
        }
        hasher.update(&bytes);
        at += bytes.len() as u64;
        let last = header.after;
        Ok(Reader { path: path.to_owned(), file, header, hasher, at, records: 0, last, ended: false })
    }

    /// The next part; `None` behind the trailer of a complete file. An error where the file ends without one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<ArchivePart>, FileError> {
        if self.ended {
            return Ok(None);
        }
        let (bytes, record) = read_record(&mut self.file).map_err(|why| self.failed(why))?;
        match record {
            None => Err(self.failed("it ends without a trailer: it was not finished, or is cut off".into())),
            Some(Record::Header(_)) => Err(self.failed("a second header".into())),
            Some(Record::Part(part)) => {
                if let ArchivePart::Entries(entries) = &part {
                    if entries.first != self.last.index.next() || entries.last < entries.first {
                        let (first, last) = (entries.first, self.last.index);
                        return Err(self.failed(format!("entry {first} follows {last}")));
                    }
                    self.last.index = entries.last;
                    self.last.chain = entries.chain;
                }
                self.hasher.update(&bytes);
                self.at += bytes.len() as u64;
                self.records += 1;
                Ok(Some(part))
            }
            Some(Record::End(trailer)) => {
                let hash = Hash(*self.hasher.finalize().as_bytes());
                let ours = Trailer { last: self.last.index, chain: self.last.chain, records: self.records, hash };
                if trailer != ours {
                    return Err(self.failed("its content is not what its trailer says".into()));
                }
                self.hasher.update(&bytes);
                self.at += bytes.len() as u64;
                if read_record(&mut self.file).map_err(|why| self.failed(why))?.1.is_some() {
                    return Err(self.failed("something follows its trailer".into()));
                }
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// Bytes read and found good.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// BLAKE3 of what was read.
    pub fn hash(&self) -> Hash {
        Hash(*self.hasher.finalize().as_bytes())
    }

    /// The last point read.
    pub fn last(&self) -> ArchivePoint {
        self.last
    }

    fn failed(&self, why: String) -> FileError {
        FileError { file: self.path.clone(), why, at: self.at }
    }
}

/// The next record with its bytes; no record at the end of the file.
fn read_record(file: &mut BufReader<File>) -> Result<(Vec<u8>, Option<Record>), String> {
    let mut head = [0; RECORD_HEAD];
    let mut have = 0;
    while have < RECORD_HEAD {
        match file.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok((Vec::new(), None)),
            Ok(0) => return Err("it ends in the middle of a record".into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    let [a, b, c, d, crc @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err("a record's length is damaged".into());
    }
    let mut bytes = vec![0; RECORD_HEAD + length];
    bytes[..RECORD_HEAD].copy_from_slice(&head);
    file.read_exact(&mut bytes[RECORD_HEAD..]).map_err(|_| "it ends in the middle of a record".to_owned())?;
    let computed = crc32c::crc32c_append(crc32c::crc32c(&head[..4]), &bytes[RECORD_HEAD..]);
    if computed != u32::from_le_bytes(crc) {
        return Err("a record is damaged: its checksum is another".into());
    }
    let record = postcard::from_bytes(&bytes[RECORD_HEAD..]).map_err(|_| "a record cannot be understood".to_owned())?;
    Ok((bytes, Some(record)))
}
