//! Queries run on threads of their own, so that no query can keep the doors, the peers or another session waiting.
//!
//! A plan is polled by a task of the query runtime, which hands batches over a short bounded channel; a client that
//! stops reading stops it there. Operators that can make many batches from few (joins, unnesting) give way between them
//! ([`CooperativeExec`]), so that a cancel or a deadline ends also a query that is all computing.
//!
//! Left out: a limit on how many run at once; the sessions are limited, and the threads share the processors fairly.

use std::sync::{Arc, OnceLock};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use futures::StreamExt as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

/// Batches on their way from the query to its session.
const HANDED_OVER_MAX: usize = 2;

/// The threads of all queries of this process.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
    RUNTIME
        .get_or_init(|| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name("query").thread_stack_size(super::STACK_BYTES).enable_time();
            builder.build().map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| DataFusionError::Execution(format!("cannot start the threads for queries: {error}")))
}

/// Whether an operator can compute for long without asking its inputs for anything.
fn computes_alone(plan: &dyn ExecutionPlan) -> bool {
    let name = plan.name();
    name.contains("Join") || matches!(name, "UnnestExec" | "LazyMemoryExec" | "RecursiveQueryExec")
}

/// The plan with operators that give way.
///
/// # Errors
/// None that is known; the library's.
pub fn cooperative(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let wrapped = plan.transform_up(|node| {
        if computes_alone(node.as_ref()) {
            return Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>));
        }
        Ok(Transformed::no(node))
    });
    wrapped.map(|t| t.data)
}

/// Starts a plan on the query threads. Dropping the stream stops it.
///
/// # Errors
/// The plan cannot be started.
pub fn stream(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
    let schema: SchemaRef = plan.schema();
    let runtime = runtime()?;
    let (tx, rx) = mpsc::channel::<Result<Option<RecordBatch>>>(HANDED_OVER_MAX);
    // Executing starts tasks; they belong to the query threads too.
    let entered = runtime.enter();
    let mut batches = execute_stream(plan, context)?;
    drop(entered);
    let task = AbortOnDrop(runtime.spawn(async move {
        while let Some(batch) = batches.next().await {
            if tx.send(batch.map(Some)).await.is_err() {
                return;
            }
        }
        // The end is said: silence alone would make a result of a query that panicked.
        let _ = tx.send(Ok(None)).await;
    }));
    let handed = futures::stream::unfold(Some((rx, task)), |state| async move {
        let (mut rx, task) = state?;
        match rx.recv().await {
            Some(Ok(Some(batch))) => Some((Ok(batch), Some((rx, task)))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(DataFusionError::Internal("the query ended without a result".into())), None)),
        }
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, handed)))
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
