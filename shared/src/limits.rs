//! Every limit, in one place, each with its reason; relations between them are checked when compiling.

/// Default TCP port for clients and peers.
pub const PORT_DEFAULT: u16 = 7411;
/// Default HTTP port (`/metrics`, `/status`, `/health`).
pub const HTTP_PORT_DEFAULT: u16 = 7412;
/// Default first database.
pub const DATABASE_DEFAULT: &str = "main";
/// Reserved database of the system tables.
pub const DATABASE_SYSTEM: &str = "quorate";

/// Largest frame on any connection; a larger length is refused before anything is allocated.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Room in a frame for everything that is not the payload.
pub const FRAME_OVERHEAD_BYTES: usize = 64 << 10;
/// Largest SQL statement; must fit a frame with its parameters' overhead.
pub const STATEMENT_BYTES_MAX: usize = 12 << 20;
/// Largest log entry: bounds the time one entry holds the log and the appliers.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;
/// Room in an entry for its header and dedupe result.
pub const ENTRY_OVERHEAD_BYTES: usize = 64 << 10;
/// Largest encoded row.
pub const ROW_BYTES_MAX: usize = 2 << 20;
/// Largest encoded key (index columns included).
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// Largest value handed to the engine; larger ones are cut into overflow keys (sled never syncs its blob files).
pub const ENGINE_VALUE_BYTES_MAX: usize = 4 << 10;
/// Columns of a table.
pub const COLUMNS_MAX: usize = 1024;
/// Tokens of a statement: bounds the parser's memory. A bulk INSERT of STATEMENT_BYTES_MAX stays below it.
pub const TOKENS_MAX: usize = 6_000_000;
/// Nesting of a statement: no statement may overflow a stack.
pub const NESTING_MAX: usize = 128;
/// Operators chained in one expression (`a OR b OR …`): they become a tree as deep, and dropping it recurses.
pub const OPERATORS_MAX: usize = 2_000;
/// Bytes of an identifier (database, table, column, index).
pub const NAME_BYTES_MAX: usize = 128;
/// Sessions of one node.
pub const SESSIONS_MAX: usize = 1000;
/// Connections of one node beyond [`SESSIONS_MAX`] that may still ask for status, ping and cancel.
pub const SESSIONS_RESERVE: usize = 32;
/// How long a preface and the first message may take, in milliseconds.
pub const HANDSHAKE_MS: u64 = 5_000;
/// Largest first message of a connection: names and settings, no statements.
pub const HELLO_BYTES_MAX: usize = 64 << 10;
/// Connections of one node whose handshake has not ended.
pub const HANDSHAKES_MAX: usize = 1024;
/// How long a client may leave its answers unread before its session is closed by name, in milliseconds.
pub const UNREAD_MS_MAX: u64 = 30_000;
/// Requests a session may send ahead of the one that runs.
pub const PIPELINE_MAX: usize = 256;
/// Prepared statements of one session.
pub const PREPARED_MAX: usize = 1000;
/// Proposals a shard keeps in flight before it answers `busy`.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 8192;
/// Bytes of one write batch to the engine: sled's batch lock stops every reader.
pub const APPLY_BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of entries in one append message to a peer.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// Messages queued for one peer; beyond it they are dropped and counted (the protocol repeats them).
pub const PEER_QUEUE_MAX: usize = 4096;
/// Clients remembered for exactly-once.
pub const DEDUPE_CLIENTS_MAX: usize = 16_384;
/// Results remembered per client; a client may have as many writes in flight.
pub const DEDUPE_WINDOW: u64 = 64;
/// Largest result kept for a duplicate; a larger one is kept as "applied, n rows".
pub const DEDUPE_RESULT_BYTES_MAX: usize = 512;
/// Rows of one result batch on the wire.
pub const BATCH_ROWS_MAX: usize = 1024;
/// Bytes of one result batch on the wire (soft: one row may exceed it).
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long old versions are kept, in milliseconds.
pub const HORIZON_MS_DEFAULT: u64 = 3_600_000;
/// A timestamp further ahead of the local clock than this is refused, in milliseconds.
pub const CLOCK_AHEAD_MS_MAX: u64 = 500;
/// Log segment file size.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Below this much free space writes are refused by name (`DiskLow`) and reads go on.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;

const _: () = assert!(STATEMENT_BYTES_MAX + FRAME_OVERHEAD_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(ROW_BYTES_MAX + KEY_BYTES_MAX + ENTRY_OVERHEAD_BYTES < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX + FRAME_OVERHEAD_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(APPEND_BYTES_MAX + ENTRY_BYTES_MAX + FRAME_OVERHEAD_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX < ENGINE_VALUE_BYTES_MAX);
