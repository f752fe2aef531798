//! Lists that grow: transactions over them are strictly serializable, reads of the past serializable.
//!
//! Appends make the order of versions visible: every list read is a beginning of the longest one seen. From the order
//! follow the dependencies: who wrote before whom, who read what whom wrote, who read before whom wrote. With the order of
//! real time among writes and linearizable reads they must have no cycle. (The idea is that of Adya's graphs as used by
//! the checker Elle.)

use std::collections::BTreeMap;

use crate::sim::history::{Did, Ended, History, Operation, What};
use crate::sim::reads::{Level, Query};

/// Which operation appended an element.
struct Writer {
    operation: usize,
    refused: bool,
    done: bool,
}

/// The lists an operation saw: list, value.
fn seen(operation: &Operation) -> Vec<(i64, &str)> {
    match (&operation.what, &operation.end) {
        (What::Read(_, Query::Rows(ids)), Ended::Read(read)) => {
            let list = |id: &i64| read.rows.iter().find(|r| r.id == *id).map_or("", |r| r.list.as_str());
            ids.iter().map(|id| (*id, list(id))).collect()
        }
        (What::Write(Did::Append(..)), Ended::Done { rows, .. }) => {
            rows.iter().map(|row| (row.id, row.list.as_str())).collect()
        }
        _ => Vec::new(),
    }
}

fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split_inclusive(' ')
}

/// See the module.
pub fn check(history: &History) -> Result<(), String> {
    let operations = &history.operations;
    let mut writers: BTreeMap<(i64, &str), Writer> = BTreeMap::new();
    let mut longest: BTreeMap<i64, &str> = BTreeMap::new();
    for (at, operation) in operations.iter().enumerate() {
        if let What::Write(Did::Append(lists, element)) = &operation.what {
            let refused = matches!(operation.end, Ended::Refused(_));
            let done = matches!(operation.end, Ended::Done { .. });
            for list in lists {
                writers.insert((*list, element), Writer { operation: at, refused, done });
            }
        }
        for (id, list) in seen(operation) {
            let known = longest.entry(id).or_default();
            let (short, long) = if list.len() < known.len() { (list, *known) } else { (*known, list) };
            if !long.starts_with(short) {
                return Err(format!("list {id} was seen as {short:?} and as {long:?}"));
            }
            *known = long;
        }
    }
    for (id, list) in &longest {
        let mut once = BTreeMap::new();
        for (place, element) in elements(list).enumerate() {
            if let Some(first) = once.insert(element, place) {
                return Err(format!("{element:?} is in list {id} twice, at {first} and at {place}"));
            }
            match writers.get(&(*id, element)) {
                None => return Err(format!("{element:?} in list {id} was never written")),
                Some(writer) if writer.refused => return Err(format!("{element:?} in list {id} was refused")),
                Some(_) => {}
            }
        }
        // The run ends with a read of every list: what was acknowledged is in the longest.
        for ((_, element), writer) in writers.range((*id, "")..(*id + 1, "")) {
            if writer.done && !once.contains_key(element) {
                return Err(format!("{element:?} was acknowledged and is not in list {id}"));
            }
        }
    }
    order(operations, &writers, &longest)
}

/// Looks for a cycle.
fn order(
    operations: &[Operation],
    writers: &BTreeMap<(i64, &str), Writer>,
    longest: &BTreeMap<i64, &str>,
) -> Result<(), String> {
    let mut graph = Graph::over(operations);
    for (id, list) in longest {
        let writer = |element: &str| writers.get(&(*id, element)).map(|w| w.operation);
        // By length of the list before it: the writer of the element that begins there.
        let mut at = 0;
        let mut by_end = BTreeMap::new();
        let mut previous = None;
        for element in elements(list) {
            let Some(this) = writer(element) else { continue };
            if let Some(previous) = previous {
                graph.edge(previous, this);
            }
            by_end.insert(at, (previous, Some(this)));
            at += element.len();
            previous = Some(this);
        }
        by_end.insert(at, (previous, None));
        for (reader, operation) in operations.iter().enumerate() {
            if !matches!(operation.what, What::Read(..)) {
                continue;
            }
            for (_, list) in seen(operation).iter().filter(|(seen, _)| seen == id) {
                let Some((wrote, writes)) = by_end.get(&list.len()) else {
                    return Err(format!("list {id} was seen cut in the middle of an element: {list:?}"));
                };
                wrote.iter().for_each(|w| graph.edge(*w, reader));
                writes.iter().for_each(|w| graph.edge(reader, *w));
            }
        }
    }
    match graph.cycle() {
        None => Ok(()),
        Some(some) => {
            let lines = some.iter().take(6).filter_map(|at| operations.get(*at));
            let lines: Vec<String> =
                lines.map(|o| format!("client {} {}..{} {:?}", o.client, o.begun, o.ended, o.what)).collect();
            Err(format!("transactions over lists cannot be put in one order: {}", lines.join("; ")))
        }
    }
}

/// Operations, then one moment for each end of one that takes part in real time.
struct Graph {
    edges: Vec<Vec<usize>>,
    operations: usize,
}

impl Graph {
    fn over(operations: &[Operation]) -> Self {
        let n = operations.len();
        let real = |o: &Operation| match (&o.what, &o.end) {
            (What::Read(level, _), Ended::Read(_)) => *level == Level::Linearizable,
            (What::Write(Did::Append(..)), Ended::Done { .. }) => true,
            _ => false,
        };
        let mut ends: Vec<(u64, usize)> =
            operations.iter().enumerate().filter(|(_, o)| real(o)).map(|(at, o)| (o.ended, at)).collect();
        ends.sort_unstable();
        let mut graph = Graph { edges: vec![Vec::new(); n + ends.len()], operations: n };
        for (moment, (_, at)) in ends.iter().enumerate() {
            graph.edge(*at, n + moment);
            if moment > 0 {
                graph.edge(n + moment - 1, n + moment);
            }
        }
        for (at, operation) in operations.iter().enumerate() {
            let begins = real(operation) || matches!(operation.what, What::Write(Did::Append(..)));
            let moment = ends.partition_point(|(ended, _)| *ended < operation.begun);
            if begins && moment > 0 {
                graph.edge(n + moment - 1, at);
            }
        }
        graph
    }

    fn edge(&mut self, from: usize, to: usize) {
        if from != to {
            self.edges[from].push(to);
        }
    }

    /// Operations of which some are on a cycle, if there is one.
    fn cycle(&self) -> Option<Vec<usize>> {
        let mut into = vec![0usize; self.edges.len()];
        self.edges.iter().flatten().for_each(|to| into[*to] += 1);
        let mut free: Vec<usize> = (0..self.edges.len()).filter(|at| into[*at] == 0).collect();
        while let Some(at) = free.pop() {
            for to in &self.edges[at] {
                into[*to] -= 1;
                if into[*to] == 0 {
                    free.push(*to);
                }
            }
        }
        let left: Vec<usize> = (0..self.operations).filter(|at| into[*at] > 0).collect();
        (!left.is_empty()).then_some(left)
    }
}
