//! What the prompt and completion need to know, fetched over a connection of its own while the user types.
//!
//! Left out: anything that a statement waits for. When nobody can be reached, the old knowledge stays.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quorate_shared::client::{Client, ClientConfig, ClientError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::complete::Known;

/// Between two looks at who is master.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A statement that changed the catalog is seen no later than this.
const LOOK_SOONEST: Duration = Duration::from_millis(300);
/// For one question.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the session wants known.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How to connect.
    pub config: Arc<ClientConfig>,
    /// Which connection that belongs to: it grows when the session goes to another cluster.
    pub generation: u64,
    /// The newest catalog version the session has seen.
    pub catalog: u64,
}

/// News for the prompt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// Who is master now, e.g. `n2`; `None` if nobody is known to be.
    Master(Option<String>),
}

/// Fetches until nobody wants anything any more.
pub async fn fetch(mut wanted: watch::Receiver<Wanted>, known: Arc<RwLock<Known>>, news: mpsc::UnboundedSender<News>) {
    let mut client: Option<(u64, Client)> = None;
    let mut have: Option<(u64, u64)> = None;
    let mut master: Option<Option<String>> = None;
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        let want = wanted.borrow_and_update().clone();
        let schema_due =
            have.is_none_or(|(generation, catalog)| generation != want.generation || catalog < want.catalog);
        let look = look(&mut client, &want, schema_due);
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok((schema, status))) => {
                if let Some(schema) = schema {
                    have = Some((want.generation, schema.catalog.get().max(want.catalog)));
                    known.write().unwrap_or_else(PoisonError::into_inner).schema = schema;
                }
                if master.as_ref() != Some(&status.master) {
                    master = Some(status.master.clone());
                    if news.send(News::Master(status.master)).is_err() {
                        return;
                    }
                }
            }
            // Asked again the next time; the session itself says what is wrong.
            Ok(Err(_)) | Err(_) => client = None,
        }
        next = Instant::now() + LOOK_SOONEST;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

type Seen = (Option<quorate_shared::wire::SchemaInfo>, quorate_shared::status::ClusterStatus);

async fn look(client: &mut Option<(u64, Client)>, want: &Wanted, schema_due: bool) -> Result<Seen, ClientError> {
    if client.as_ref().is_none_or(|(generation, _)| *generation != want.generation) {
        let mut config = (*want.config).clone();
        config.agent.push_str(" (completion)");
        // The database is the session's business: one that was dropped must not stop completion.
        config.database = None;
        config.settings.clear();
        *client = Some((want.generation, Client::connect(config).await?));
    }
    let Some((_, client)) = client else { return Err(ClientError::Unsendable("not connected".to_owned())) };
    let schema = if schema_due { Some(client.schema().await?) } else { None };
    Ok((schema, client.status().await?))
}
