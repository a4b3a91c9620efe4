//! What a worker does next: load a table, build an index, or wait. Pure.
//!
//! Rows come first, largest tables first; an index begins when its table is in, a foreign key when
//! both its tables are in and their indexes are built. Statements that lock each other out are never
//! begun together, so no two can wait for each other (PITFALLS: foreign keys in a cycle deadlocked).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::manifest::{QualifiedName, Table};
use super::indexes::{Job, Lock};

/// One piece of work, or none for now.
#[derive(Debug)]
pub(super) enum Next<'t> {
    Table(&'t Table),
    /// By its place among the jobs.
    Job(usize),
    /// Something that is under way has to end first.
    Wait,
    /// Nothing is left that could begin.
    Done,
}

/// How a statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ran {
    Well,
    Refused,
}

/// A key of a table with less bytes of rows than this is built in one statement, not in two.
const LARGE: u64 = 64 * 1024;

/// The state of a load.
#[derive(Debug)]
pub(super) struct Schedule<'t> {
    tables: VecDeque<&'t Table>,
    /// Their rows are computed from others': they come after all of these.
    late: Vec<&'t Table>,
    /// Refused by the server for now: others may have to be in first.
    refused: Vec<&'t Table>,
    /// Tables that came in since the last time the refused ones were tried.
    came_in: usize,
    loading: usize,
    /// Tables (or their roots, where rows go through one) with rows still to come.
    incomplete: BTreeMap<QualifiedName, usize>,
    /// Leaves of a root through which rows go.
    roots: BTreeMap<QualifiedName, QualifiedName>,
    jobs: Vec<Job>,
    waiting: BTreeSet<usize>,
    running: BTreeSet<usize>,
    /// Indexes of a table that are not built yet.
    unbuilt: BTreeMap<QualifiedName, usize>,
    /// By the statement of an index: what takes it over.
    then: BTreeMap<String, Job>,
}

impl<'t> Schedule<'t> {
    /// `tables` in the order in which they are to be loaded; those that are not among them are
    /// complete. Jobs on larger tables begin first. Those in `computed` have columns that may be
    /// computed from other tables.
    pub(super) fn new(
        tables: Vec<&'t Table>,
        jobs: Vec<Job>,
        computed: &BTreeSet<QualifiedName>,
    ) -> Self {
        let bytes: BTreeMap<QualifiedName, u64> =
            tables.iter().map(|table| (table.qualified_name(), table.bytes)).collect();
        let is_large = |job: &Job| {
            job.locks.iter().any(|(table, _)| bytes.get(table).is_some_and(|size| *size > LARGE))
        };
        let mut then: BTreeMap<String, Job> = BTreeMap::new();
        let mut jobs: Vec<Job> = jobs
            .into_iter()
            .map(|job| match job.beside_others().filter(|_| is_large(&job)) {
                Some((index, constraint)) => {
                    then.insert(index.sql.clone(), constraint);
                    index
                }
                None => job,
            })
            .collect();
        let weight =
            |job: &Job| -> u64 { job.locks.iter().filter_map(|(table, _)| bytes.get(table)).sum() };
        jobs.sort_by_key(|job| (job.is_foreign_key(), std::cmp::Reverse(weight(job))));
        let mut schedule = Self {
            tables: VecDeque::new(),
            late: Vec::new(),
            refused: Vec::new(),
            came_in: 0,
            loading: 0,
            incomplete: BTreeMap::new(),
            roots: BTreeMap::new(),
            waiting: (0..jobs.len()).collect(),
            running: BTreeSet::new(),
            unbuilt: BTreeMap::new(),
            then,
            jobs,
        };
        for table in &tables {
            if let Some(root) = &table.through_root {
                schedule.roots.insert(table.qualified_name(), root.clone());
            }
            *schedule.incomplete.entry(group(table)).or_default() += 1;
        }
        for job in schedule.jobs.iter().filter(|job| !job.is_foreign_key()) {
            for (table, _) in &job.locks {
                *schedule.unbuilt.entry(table.clone()).or_default() += 1;
            }
        }
        let is_computed = |table: &&Table| computed.contains(&table.qualified_name());
        let (late, tables): (Vec<_>, Vec<_>) = tables.into_iter().partition(is_computed);
        schedule.late = late;
        schedule.tables = tables.into();
        schedule
    }

    /// Takes the next piece of work.
    pub(super) fn next(&mut self) -> Next<'t> {
        if let Some(table) = self.tables.pop_front() {
            self.loading += 1;
            return Next::Table(table);
        }
        if self.loading == 0 && self.came_in > 0 && !self.refused.is_empty() {
            self.came_in = 0;
            self.tables = std::mem::take(&mut self.refused).into();
            return self.next();
        }
        if self.loading == 0 && !self.late.is_empty() {
            self.tables = std::mem::take(&mut self.late).into();
            return self.next();
        }
        let ready = self.waiting.iter().copied().find(|at| self.is_ready(*at));
        if let Some(at) = ready {
            self.waiting.remove(&at);
            self.running.insert(at);
            return Next::Job(at);
        }
        if self.loading == 0 && self.running.is_empty() { Next::Done } else { Next::Wait }
    }

    /// The table's rows are in.
    pub(super) fn loaded(&mut self, table: &Table) {
        self.loading -= 1;
        self.came_in += 1;
        if let Some(left) = self.incomplete.get_mut(&group(table)) {
            *left -= 1;
        }
    }

    /// The server refused the table's rows; they are tried again if another table comes in.
    pub(super) fn refused(&mut self, table: &'t Table) {
        self.loading -= 1;
        self.refused.push(table);
    }

    /// The statement ran, or the server refused it.
    pub(super) fn built(&mut self, at: usize, ran: Ran) {
        self.running.remove(&at);
        if self.jobs[at].is_foreign_key() {
            return;
        }
        if let (Some(next), Ran::Well) = (self.then.remove(&self.jobs[at].sql), ran) {
            self.waiting.insert(self.jobs.len());
            self.jobs.push(next);
            // The table has as many unbuilt ones as before.
            return;
        }
        for (table, _) in &self.jobs[at].locks {
            if let Some(left) = self.unbuilt.get_mut(table) {
                *left -= 1;
            }
        }
    }

    pub(super) fn job(&self, at: usize) -> &Job {
        &self.jobs[at]
    }

    /// Whether all rows are in.
    pub(super) fn all_loaded(&self) -> bool {
        let none_waits = self.tables.is_empty() && self.late.is_empty() && self.refused.is_empty();
        none_waits && self.loading == 0
    }

    /// Tables that the server refused to the end.
    pub(super) fn left(&self) -> &[&'t Table] {
        &self.refused
    }

    fn is_ready(&self, at: usize) -> bool {
        let job = &self.jobs[at];
        if job.after_all_rows && !self.all_loaded() {
            return false;
        }
        job.locks.iter().all(|(table, lock)| {
            let root = self.roots.get(table).unwrap_or(table);
            let complete = self.incomplete.get(root).is_none_or(|left| *left == 0);
            let built = self.unbuilt.get(table).is_none_or(|left| *left == 0);
            complete && (built || !job.is_foreign_key()) && !self.is_locked(table, *lock)
        })
    }

    fn is_locked(&self, table: &QualifiedName, lock: Lock) -> bool {
        self.running.iter().flat_map(|at| &self.jobs[*at].locks).any(|(other, theirs)| {
            other == table && (lock == Lock::Exclusive || *theirs == Lock::Exclusive)
        })
    }
}

/// Whose rows a table's are: its root's, where they go through one and may end in any leaf of it.
fn group(table: &Table) -> QualifiedName {
    table.through_root.clone().unwrap_or_else(|| table.qualified_name())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{any, prop_assert, proptest};

    use super::super::indexes::Kind;
    use super::{Job, Lock, Next, QualifiedName, Ran, Schedule, Table};

    fn name(number: usize) -> QualifiedName {
        QualifiedName { schema: "s".to_owned(), name: format!("t{number}") }
    }

    fn table(number: usize, through: Option<usize>) -> Table {
        Table {
            schema: "s".to_owned(),
            name: format!("t{number}"),
            columns: Vec::new(),
            rows: 1,
            bytes: number as u64,
            through_root: through.map(name),
            extension: None,
            chunks: Vec::new(),
        }
    }

    fn index(of: usize) -> Job {
        let locks = vec![(name(of), Lock::Shared)];
        Job {
            sql: "index".to_owned(),
            entry: None,
            locks,
            after_all_rows: false,
            sorts: false,
            kind: Kind::Index,
        }
    }

    fn key(of: usize) -> Job {
        let locks = vec![(name(of), Lock::Exclusive)];
        Job {
            sql: "key".to_owned(),
            entry: None,
            locks,
            after_all_rows: of % 2 == 1,
            sorts: false,
            kind: Kind::Index,
        }
    }

    fn foreign(from: usize, to: usize) -> Job {
        let mut locks = vec![(name(from), Lock::Exclusive)];
        if from != to {
            locks.push((name(to), Lock::Exclusive));
        }
        let kind = Kind::ForeignKey { columns: Vec::new() };
        let sql = "foreign".to_owned();
        Job { sql, entry: None, locks, after_all_rows: false, sorts: false, kind }
    }

    #[test]
    fn an_index_begins_while_another_table_is_loading() {
        let tables = [table(2, None), table(1, None)];
        let mut schedule =
            Schedule::new(tables.iter().collect(), vec![index(1), foreign(1, 2)], &BTreeSet::new());
        assert!(matches!(schedule.next(), Next::Table(table) if table.name == "t2"));
        assert!(matches!(schedule.next(), Next::Table(table) if table.name == "t1"));
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.loaded(&tables[1]);
        assert!(matches!(schedule.next(), Next::Job(0)));
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.built(0, Ran::Well);
        schedule.loaded(&tables[0]);
        assert!(matches!(schedule.next(), Next::Job(1)));
        schedule.built(1, Ran::Well);
        assert!(matches!(schedule.next(), Next::Done));
    }

    #[test]
    fn the_key_of_a_large_table_is_an_index_first() {
        let mut large = table(1, None);
        large.bytes = super::LARGE + 1;
        let script = "alter table only s.t1 add constraint k primary key (a);
            create index i on s.t1 (b);
            alter table only s.t1 add constraint f foreign key (b) references s.t1(a);";
        let jobs = super::super::indexes::parse(script).expect("SQL").jobs;
        let tables = [large];
        let mut schedule = Schedule::new(tables.iter().collect(), jobs, &BTreeSet::new());
        schedule.next();
        schedule.loaded(&tables[0]);
        let (Next::Job(key), Next::Job(index)) = (schedule.next(), schedule.next()) else {
            panic!("both indexes are built at once");
        };
        assert!(schedule.job(key).sql.starts_with("create unique index"));
        schedule.built(key, Ran::Well);
        assert!(matches!(schedule.next(), Next::Wait), "the other index is being built");
        schedule.built(index, Ran::Well);
        let Next::Job(constraint) = schedule.next() else { panic!("the constraint comes next") };
        assert!(schedule.job(constraint).sql.contains("primary key using index"));
        schedule.built(constraint, Ran::Well);
        let Next::Job(foreign) = schedule.next() else { panic!("the foreign key comes last") };
        assert!(schedule.job(foreign).is_foreign_key());
    }

    #[test]
    fn rows_that_are_computed_from_others_come_last_and_indexes_that_call_functions_later() {
        let tables = [table(2, None), table(1, None)];
        let mut call = index(1);
        call.after_all_rows = true;
        let computed = BTreeSet::from([name(2)]);
        let mut schedule = Schedule::new(tables.iter().collect(), vec![call, index(1)], &computed);
        assert!(matches!(schedule.next(), Next::Table(table) if table.name == "t1"));
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.loaded(&tables[1]);
        assert!(matches!(schedule.next(), Next::Table(table) if table.name == "t2"));
        assert!(matches!(schedule.next(), Next::Job(1)));
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.loaded(&tables[0]);
        assert!(matches!(schedule.next(), Next::Job(0)));
    }

    #[test]
    fn a_refused_table_is_tried_again_only_after_another_came_in() {
        let tables = [table(2, None), table(1, None)];
        let mut schedule = Schedule::new(tables.iter().collect(), Vec::new(), &BTreeSet::new());
        schedule.next();
        schedule.refused(&tables[0]);
        schedule.next();
        schedule.loaded(&tables[1]);
        assert!(matches!(schedule.next(), Next::Table(table) if table.name == "t2"));
        schedule.refused(&tables[0]);
        assert!(matches!(schedule.next(), Next::Done));
        assert_eq!(schedule.left().len(), 1);
    }

    #[test]
    fn rows_through_a_root_hold_up_the_indexes_of_all_its_leaves() {
        let tables = [table(1, Some(9)), table(2, Some(9))];
        let mut schedule = Schedule::new(tables.iter().collect(), vec![index(1)], &BTreeSet::new());
        schedule.next();
        schedule.next();
        schedule.loaded(&tables[0]);
        assert!(matches!(schedule.next(), Next::Wait));
        schedule.loaded(&tables[1]);
        assert!(matches!(schedule.next(), Next::Job(0)));
    }

    proptest! {
        /// Any number of workers, any order of ends: everything is done once, nothing too early, and
        /// what runs together does not lock each other out.
        #[test]
        fn everything_is_done_once_and_nothing_too_early(
            edges in proptest::collection::vec((0..6_usize, 0..6_usize, 0..3_u8), 0..30),
            workers in 1..5_usize,
            ends in proptest::collection::vec(any::<proptest::sample::Index>(), 200),
        ) {
            let tables: Vec<Table> = (0..5).map(|number| table(number, None)).collect();
            let jobs: Vec<Job> = edges
                .iter()
                .map(|(from, to, kind)| match kind {
                    0 => index(*from),
                    1 => key(*from),
                    _ => foreign(*from, *to),
                })
                .collect();
            let count = jobs.len();
            let mut schedule = Schedule::new(tables.iter().collect(), jobs, &BTreeSet::new());
            let mut busy: Vec<Next<'_>> = Vec::new();
            let (mut in_place, mut done) = (BTreeSet::new(), BTreeSet::new());
            let mut ends = ends.into_iter();
            loop {
                while busy.len() < workers {
                    match schedule.next() {
                        Next::Wait => break,
                        Next::Done => break,
                        next => busy.push(next),
                    }
                }
                if busy.is_empty() {
                    break;
                }
                for one in &busy {
                    let Next::Job(at) = one else { continue };
                    for (table, _) in &schedule.job(*at).locks {
                        let exists = tables.iter().any(|other| other.qualified_name() == *table);
                        prop_assert!(!exists || in_place.contains(table));
                    }
                    for other in &busy {
                        let Next::Job(other) = other else { continue };
                        let shares = schedule.job(*at).locks.iter().any(|(table, lock)| {
                            schedule.job(*other).locks.iter().any(|(theirs, their_lock)| {
                                table == theirs
                                    && (*lock == Lock::Exclusive || *their_lock == Lock::Exclusive)
                            })
                        });
                        prop_assert!(at == other || !shares);
                    }
                }
                let Some(end) = ends.next() else { break };
                match busy.swap_remove(end.index(busy.len())) {
                    Next::Table(table) => {
                        schedule.loaded(table);
                        in_place.insert(table.qualified_name());
                    }
                    Next::Job(at) => {
                        schedule.built(at, Ran::Well);
                        prop_assert!(done.insert(at));
                    }
                    Next::Wait | Next::Done => {}
                }
            }
            prop_assert!(done.len() == count, "{} of {count} jobs ran", done.len());
            prop_assert!(in_place.len() == 5);
        }
    }
}
