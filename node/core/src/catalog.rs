//! The catalog: what `s0` holds. Databases, tables, views, nodes, DDL jobs; names to ids, ranges to shards.
//!
//! Each descriptor is one key of `s0` (`catalog/<kind>/<id>`), written by [`crate::proposal::Op::Put`] with its old bytes
//! as precondition. [`Catalog`] is the decoded whole, rebuilt or patched when `s0` applies entries, shared as an `Arc`.
//!
//! Names are compared without case and keep the spelling of their creation.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::{CatalogVersion, DatabaseId, NodeId, ShardId, TableId, Timestamp};
use quorate_shared::status::NodeKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::Tree;
use crate::error::Fatal;
use crate::keys::{self, CatalogKey, Key};
use crate::mvcc::{self, Newest, Snapshot};
use crate::table::TableDef;

/// A database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DatabaseDesc {
    /// Its id.
    pub id: DatabaseId,
    /// Its name as created.
    pub name: String,
}

/// A table of a database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TableDesc {
    /// Its database.
    pub database: DatabaseId,
    /// Where its rows live.
    pub shard: ShardId,
    /// What the shard was fenced with last.
    pub def: TableDef,
    /// False until the job that creates it has made it public, and again while one drops it.
    pub public: bool,
}

/// A view: a stored SELECT.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ViewDesc {
    /// Its id, from the same numbers as tables.
    pub id: TableId,
    /// Its database.
    pub database: DatabaseId,
    /// Its name as created.
    pub name: String,
    /// Column names given in CREATE VIEW, or empty.
    pub columns: Vec<String>,
    /// The SELECT.
    pub sql: String,
}

/// A node, registered by itself: a dead one stays in the picture.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeDesc {
    /// Its id.
    pub id: NodeId,
    /// `host:port` for clients and peers.
    pub address: String,
    /// HTTP address.
    pub http: Option<String>,
    /// Voter or replica.
    pub kind: NodeKind,
}

impl NodeDesc {
    /// What is left of a node that was removed: its number is never given again.
    pub fn removed(id: NodeId) -> Self {
        Self { id, address: String::new(), http: None, kind: NodeKind::Replica }
    }

    /// It was removed.
    pub fn is_removed(&self) -> bool {
        self.address.is_empty()
    }
}

/// A DDL job: resumed by whoever leads `s0`; each step is idempotent. Only its state is core's business.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobDesc {
    /// Grows.
    pub id: u64,
    /// Table (catalog id) it works on.
    pub table: TableId,
    /// `announced`, `fenced`, `filled`, `public`, `rolled back`.
    pub state: String,
    /// What to do, as the router's DDL module encodes it.
    pub work: Vec<u8>,
    /// Why it was rolled back: an encoded error.
    pub error: Option<Vec<u8>>,
}

/// An archive of the log that somebody keeps outside: named here, so that one that is gone on with no more is missed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArchiveDesc {
    /// Its id.
    pub id: u64,
    /// Where it is written, for people.
    pub label: String,
    /// When it was begun, milliseconds since 1970.
    pub started_ms: u64,
}

/// Numbers that are handed out: next database, table (also storage) and job id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Next [`DatabaseId`].
    pub database: u64,
    /// Next [`TableId`]; ids of storages come from here too.
    pub table: u64,
    /// Next job.
    pub job: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { database: 1, table: 1, job: 1 }
    }
}

/// The decoded whole, as of `version`.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The index of the last applied `s0` entry that changed it.
    pub version: CatalogVersion,
    /// By lower-case name.
    pub databases: BTreeMap<String, DatabaseDesc>,
    /// By database and lower-case name; not yet public ones included.
    pub tables: BTreeMap<(DatabaseId, String), TableDesc>,
    /// Where [`Catalog::tables`] has a table, by its id.
    pub table_names: BTreeMap<TableId, (DatabaseId, String)>,
    /// By database and lower-case name.
    pub views: BTreeMap<(DatabaseId, String), ViewDesc>,
    /// By id.
    pub nodes: BTreeMap<NodeId, NodeDesc>,
    /// By id; finished ones are removed once their waiters may have seen them.
    pub jobs: BTreeMap<u64, JobDesc>,
    /// By id.
    pub archives: BTreeMap<u64, ArchiveDesc>,
    /// `None` before the first entry.
    pub counters: Option<Counters>,
}

/// Version of the descriptors' format written here.
const FORMAT: u8 = 1;

/// A descriptor: what one catalog key holds.
pub trait Descriptor: Serialize + DeserializeOwned {
    /// Its key.
    fn key(&self) -> CatalogKey;

    /// Its stored bytes: kind, format version, postcard.
    fn encode(&self) -> Bytes {
        let kind = self.key().encode()[1];
        // Serializing plain data into memory cannot fail.
        Bytes::from(postcard::to_extend(self, vec![kind, FORMAT]).unwrap_or_default())
    }

    /// From stored bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Fatal> {
        let doing = "decode a catalog descriptor";
        match bytes {
            [_, FORMAT, rest @ ..] => {
                let desc: Self = postcard::from_bytes(rest).map_err(|e| Fatal::new(doing, e))?;
                if desc.key().encode()[1] != bytes[0] {
                    return Err(Fatal::new(doing, "it is of another kind than its key"));
                }
                Ok(desc)
            }
            [_, format, ..] => Err(Fatal::new(doing, format!("format {format} was written by a newer version"))),
            _ => Err(Fatal::new(doing, "it is too short")),
        }
    }
}

impl Descriptor for DatabaseDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::Database(self.id)
    }
}
impl Descriptor for TableDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::Table(self.def.id)
    }
}
impl Descriptor for ViewDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::View(self.id)
    }
}
impl Descriptor for NodeDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::Node(self.id)
    }
}
impl Descriptor for JobDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::Job(self.id)
    }
}
impl Descriptor for ArchiveDesc {
    fn key(&self) -> CatalogKey {
        CatalogKey::Archive(self.id)
    }
}
impl Descriptor for Counters {
    fn key(&self) -> CatalogKey {
        CatalogKey::Counters
    }
}

impl Catalog {
    /// Whether a node of this number was removed from the cluster.
    pub fn has_removed(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(NodeDesc::is_removed)
    }

    /// The catalog as a snapshot of `s0` has it; `version` is the index that snapshot stands for.
    pub fn load(snapshot: &Snapshot, version: CatalogVersion) -> Result<Self, Fatal> {
        let mut catalog = Catalog { version, ..Catalog::default() };
        for item in snapshot.scan(&keys::catalog_range(), false) {
            let (key, row) = item?;
            catalog.patch(&key, Some(&row.row))?;
        }
        Ok(catalog)
    }

    /// One catalog key has a new value, or is gone.
    pub fn patch(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Fatal> {
        let Key::Catalog(key) = Key::decode(key)? else {
            return Err(Fatal::new("read the catalog", "a key of another kind"));
        };
        match key {
            CatalogKey::Counters => self.counters = value.map(Counters::decode).transpose()?,
            CatalogKey::Database(id) => {
                self.databases.retain(|_, d| d.id != id);
                if let Some(desc) = value.map(DatabaseDesc::decode).transpose()? {
                    self.databases.insert(fold(&desc.name), desc);
                }
            }
            CatalogKey::Table(id) => {
                if let Some(name) = self.table_names.remove(&id)
                    && self.tables.get(&name).is_some_and(|t| t.def.id == id)
                {
                    self.tables.remove(&name);
                }
                if let Some(desc) = value.map(TableDesc::decode).transpose()? {
                    let name = (desc.database, fold(&desc.def.name));
                    self.table_names.insert(id, name.clone());
                    self.tables.insert(name, desc);
                }
            }
            CatalogKey::View(id) => {
                self.views.retain(|_, v| v.id != id);
                if let Some(desc) = value.map(ViewDesc::decode).transpose()? {
                    self.views.insert((desc.database, fold(&desc.name)), desc);
                }
            }
            CatalogKey::Node(id) => match value.map(NodeDesc::decode).transpose()? {
                Some(desc) => drop(self.nodes.insert(id, desc)),
                None => drop(self.nodes.remove(&id)),
            },
            CatalogKey::Job(id) => match value.map(JobDesc::decode).transpose()? {
                Some(desc) => drop(self.jobs.insert(id, desc)),
                None => drop(self.jobs.remove(&id)),
            },
            CatalogKey::Archive(id) => match value.map(ArchiveDesc::decode).transpose()? {
                Some(desc) => drop(self.archives.insert(id, desc)),
                None => drop(self.archives.remove(&id)),
            },
        }
        Ok(())
    }

    /// A database by name.
    pub fn database(&self, name: &str) -> Option<&DatabaseDesc> {
        self.databases.get(&fold(name))
    }

    /// A database by id.
    pub fn database_by_id(&self, id: DatabaseId) -> Option<&DatabaseDesc> {
        self.databases.values().find(|d| d.id == id)
    }

    /// A table by name, public or not.
    pub fn table(&self, database: DatabaseId, name: &str) -> Option<&TableDesc> {
        self.tables.get(&(database, fold(name)))
    }

    /// A table by catalog id, public or not.
    pub fn table_by_id(&self, id: TableId) -> Option<&TableDesc> {
        self.tables.get(self.table_names.get(&id)?)
    }

    /// Tables of a database by name, public or not.
    pub fn tables_of(&self, database: DatabaseId) -> impl Iterator<Item = &TableDesc> {
        self.tables.range((database, String::new())..).take_while(move |((d, _), _)| *d == database).map(|(_, t)| t)
    }

    /// A view by name.
    pub fn view(&self, database: DatabaseId, name: &str) -> Option<&ViewDesc> {
        self.views.get(&(database, fold(name)))
    }

    /// Views of a database by name.
    pub fn views_of(&self, database: DatabaseId) -> impl Iterator<Item = &ViewDesc> {
        self.views.range((database, String::new())..).take_while(move |((d, _), _)| *d == database).map(|(_, v)| v)
    }
}

/// What the catalog had of a table, newest first, with when it was written; `None`: it was dropped. As far back as
/// versions are kept.
pub fn history_of(tree: &dyn Tree, table: TableId) -> Result<Vec<(Timestamp, Option<TableDesc>)>, Fatal> {
    let versions = versions(tree, CatalogKey::Table(table))?.into_iter();
    let decoded = versions.map(|v| Ok((v.timestamp, v.row.map(|row| TableDesc::decode(&row)).transpose()?)));
    decoded.collect()
}

/// When the catalog was begun, as far back as versions are kept; `None`: it is not yet.
pub fn founded_at(tree: &dyn Tree) -> Result<Option<Timestamp>, Fatal> {
    Ok(versions(tree, CatalogKey::Counters)?.last().map(|version| version.timestamp))
}

/// The versions of a catalog key, newest first.
fn versions(tree: &dyn Tree, key: CatalogKey) -> Result<Vec<Newest>, Fatal> {
    let key = key.encode();
    let older = tree.scan(&keys::history_range_of(&key, Timestamp::MAX), false);
    let older = older.map(|item| Newest::decode(item?.1).map(Some));
    std::iter::once(mvcc::newest(tree, &key)).chain(older).filter_map(Result::transpose).collect()
}

/// The form in which names are compared.
pub fn fold(name: &str) -> String {
    name.to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::Batch;
    use crate::engine::memory::MemoryTree;

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn table(id: u64, name: &str) -> TableDesc {
        let mut def = crate::keys::tests::table();
        def.id = TableId::new(id);
        def.name = name.into();
        TableDesc { database: DatabaseId::new(1), shard: ShardId::DATA, def, public: true }
    }

    #[test]
    fn golden_descriptors() {
        let database = DatabaseDesc { id: DatabaseId::new(1), name: "Shop".into() };
        assert_eq!(hex(&database.encode()), "0201010453686f70");
        assert_eq!(DatabaseDesc::decode(&database.encode()).unwrap(), database);
        let counters = Counters { database: 2, table: 300, job: 1 };
        assert_eq!(hex(&counters.encode()), "010102ac0201");
        let node = NodeDesc { id: NodeId::new(4), address: "a:1".into(), http: None, kind: NodeKind::Replica };
        assert_eq!(hex(&node.encode()), "05010403613a310001");
        let job = JobDesc { id: 7, table: TableId::new(5), state: "x".into(), work: vec![1], error: None };
        assert_eq!(hex(&job.encode()), "060107050178010100");
        let archive = ArchiveDesc { id: 9, label: "x".into(), started_ms: 300 };
        assert_eq!(hex(&archive.encode()), "0701090178ac02");
        let view = ViewDesc {
            id: TableId::new(9),
            database: DatabaseId::new(1),
            name: "v".into(),
            columns: vec![],
            sql: "select 1".into(),
        };
        assert_eq!(hex(&view.encode()), "0401090101760008".to_owned() + &hex(b"select 1"));
        let t = table(5, "T");
        assert_eq!(TableDesc::decode(&t.encode()).unwrap(), t);
        assert!(TableDesc::decode(&view.encode()).is_err());
        assert!(DatabaseDesc::decode(&[2, 9]).unwrap_err().to_string().contains("newer"));
    }

    #[test]
    fn names_and_patches() {
        let tree = Arc::new(MemoryTree::default());
        let mut batch = Batch::default();
        let mut put = |desc: Bytes, key: CatalogKey| {
            batch.writes.insert(key.encode(), Some(Newest::encode(Timestamp::new(1, 0), Some(&desc))));
        };
        let shop = DatabaseDesc { id: DatabaseId::new(1), name: "Shop".into() };
        put(shop.encode(), shop.key());
        for t in [table(5, "Orders"), table(6, "items")] {
            put(t.encode(), t.key());
        }
        tree.write(batch).unwrap();
        let snapshot = Snapshot::new(tree, Timestamp::MAX);
        let mut catalog = Catalog::load(&snapshot, CatalogVersion::new(3)).unwrap();
        assert_eq!(catalog.version, CatalogVersion::new(3));
        let db = catalog.database("SHOP").unwrap().id;
        assert_eq!(catalog.table(db, "oRDERS").unwrap().def.name, "Orders");
        assert_eq!(catalog.tables_of(db).count(), 2);
        assert_eq!(catalog.tables_of(DatabaseId::new(2)).count(), 0);

        // Renamed, and another takes the old name.
        let renamed = table(5, "Sales");
        let other = table(7, "ORDERS");
        catalog.patch(&other.key().encode(), Some(&other.encode())).unwrap();
        catalog.patch(&renamed.key().encode(), Some(&renamed.encode())).unwrap();
        assert_eq!(catalog.table(db, "orders").unwrap().def.id, TableId::new(7));
        assert_eq!(catalog.table_by_id(TableId::new(5)).unwrap().def.name, "Sales");
        catalog.patch(&other.key().encode(), None).unwrap();
        assert!(catalog.table(db, "orders").is_none() && catalog.table_by_id(TableId::new(7)).is_none());
    }
}
