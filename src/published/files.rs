//! Which files a data directory is made of. Pure.
//!
//! An image holds what a server that was stopped cleanly needs, and nothing else: tables and their maps,
//! the state of transactions, one segment of the log. Settings, keys, logs and what is kept for a running
//! server belong to the machine. The same list decides what may come in.

/// Folders that are part of every data directory and come along empty: what is in them is of a server that
/// runs, of one that replicates, or can be made again.
const EMPTY: [&str; 12] = [
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal/archive_status",
    "pg_wal/summaries",
];

/// The same, of logical decoding.
const DECODING: [&str; 4] =
    ["pg_logical", "pg_logical/mappings", "pg_logical/snapshots", "pg_replslot"];

/// Folders that hold data.
const FULL: [&str; 7] = [
    "base",
    "global",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_wal",
    "pg_xact",
];

/// Files that stay behind, wherever they lie: settings and what a server writes about itself.
const LEFT: [&str; 14] = [
    "pg_hba.conf",
    "pg_ident.conf",
    "postgresql.conf",
    "postgresql.auto.conf",
    "postmaster.opts",
    "postmaster.pid",
    "seedbed.json",
    "seedbed.from",
    "current_logfiles",
    "backup_label.old",
    "server.crt",
    "server.key",
    "pg_internal.init",
    "logfile",
];

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Taken,
    /// It stays behind.
    Left,
    /// Nobody knows what it is for: without it the data may not be whole.
    Unknown,
}

/// What becomes of a folder; names are relative to the data directory.
pub fn folder(name: &str) -> Fate {
    if is_tablespace(name) {
        return Fate::Unknown;
    }
    let is_known = |names: &[&str]| names.contains(&name);
    if is_known(&EMPTY) || is_known(&DECODING) || is_known(&FULL) {
        return Fate::Taken;
    }
    match name.split_once('/') {
        Some(("base", oid)) if is_number(oid) => Fate::Taken,
        Some(("base", "pgsql_tmp")) => Fate::Left,
        Some((parent, _)) if may_be_emptied(parent) => Fate::Left,
        None if matches!(name, "log" | "pg_log" | "lost+found") => Fate::Left,
        Some(_) | None => Fate::Unknown,
    }
}

/// What becomes of a file; names are relative to the data directory.
pub fn file(name: &str) -> Fate {
    let (parent, base) = name.rsplit_once('/').unwrap_or(("", name));
    if is_tablespace(name) {
        return Fate::Unknown;
    }
    if LEFT.contains(&base) {
        return Fate::Left;
    }
    let is_taken = match parent {
        "" => base == "PG_VERSION",
        "global" => matches!(base, "pg_control" | "pg_filenode.map") || is_relation(base),
        "pg_wal" => base.len() == 24 && is_upper_hex(base),
        "pg_xact" | "pg_multixact/members" | "pg_multixact/offsets" => {
            (4..=15).contains(&base.len()) && is_upper_hex(base)
        }
        _ => {
            parent.strip_prefix("base/").is_some_and(is_number)
                && (matches!(base, "PG_VERSION" | "pg_filenode.map") || is_relation(base))
        }
    };
    if is_taken {
        return Fate::Taken;
    }
    let of_a_server = may_be_emptied(parent)
        || matches!(parent, "log" | "pg_log" | "base/pgsql_tmp")
        || matches!(parent, "pg_wal")
        || (parent.starts_with("base/") && is_temporary(base));
    if of_a_server { Fate::Left } else { Fate::Unknown }
}

/// Data that lies elsewhere, or in a folder that only a server with one setting reads.
fn is_tablespace(name: &str) -> bool {
    name.starts_with("pg_tblspc/")
}

fn may_be_emptied(folder: &str) -> bool {
    let top = folder.split('/').next().unwrap_or(folder);
    EMPTY.contains(&folder) || EMPTY.contains(&top) || DECODING.contains(&top)
}

fn is_number(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_upper_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// `16384`, `16384.1`, `16384_fsm`, `16384_vm.2`, `16384_init`.
fn is_relation(name: &str) -> bool {
    let (fork, segment) = match name.split_once('.') {
        Some((fork, segment)) => (fork, Some(segment)),
        None => (name, None),
    };
    let (number, fork) = match fork.split_once('_') {
        Some((number, fork)) => (number, Some(fork)),
        None => (fork, None),
    };
    is_number(number)
        && segment.is_none_or(is_number)
        && fork.is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init"))
}

/// `t3_16384`: of a session that has ended.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, relation)| is_number(backend) && is_relation(relation))
}

#[cfg(test)]
mod tests {
    use super::{Fate, file, folder};

    #[test]
    fn the_files_of_a_data_directory_are_taken_and_what_is_the_machines_stays() {
        for name in [
            "PG_VERSION",
            "global/pg_control",
            "global/1262",
            "global/1260_vm",
            "global/pg_filenode.map",
            "base/1/PG_VERSION",
            "base/16384/16385",
            "base/16384/16385.12",
            "base/16384/16385_fsm",
            "base/16384/16385_init",
            "pg_wal/000000010000000000000002",
            "pg_xact/0000",
            "pg_multixact/offsets/0000",
        ] {
            assert_eq!(file(name), Fate::Taken, "{name}");
        }
        for name in [
            "postgresql.conf",
            "postgresql.auto.conf",
            "pg_hba.conf",
            "postmaster.pid",
            "server.key",
            "seedbed.json",
            "log/postgresql.log",
            "global/pg_internal.init",
            "base/16384/pg_internal.init",
            "base/16384/t3_16390",
            "base/pgsql_tmp/pgsql_tmp12.0",
            "pg_stat/pgstat.stat",
            "pg_replslot/mine/state",
            "pg_logical/replorigin_checkpoint",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_wal/00000002.history",
        ] {
            assert_eq!(file(name), Fate::Left, "{name}");
        }
        for name in ["base", "base/16384", "pg_wal", "pg_notify", "pg_logical/snapshots"] {
            assert_eq!(folder(name), Fate::Taken, "{name}");
        }
        for name in ["log", "base/pgsql_tmp", "pg_replslot/mine"] {
            assert_eq!(folder(name), Fate::Left, "{name}");
        }
    }

    #[test]
    fn nothing_else_is_part_of_one() {
        for name in [
            "",
            "x",
            "../x",
            "/etc/passwd",
            "base/../../x",
            "base/1/../../x",
            "base/16384/../1",
            "base/x/1",
            "base/16384/1/2",
            "base//1",
            "base/1/",
            "global/../PG_VERSION",
            "global/1\n",
            "global/1\0",
            "pg_wal/00000001000000000000000g",
            "base/1/pg_control",
            "tde/keys",
        ] {
            assert_ne!(file(name), Fate::Taken, "{name:?}");
            assert_ne!(folder(name), Fate::Taken, "{name:?}");
        }
        assert_eq!(file("tde/keys"), Fate::Unknown);
        assert_eq!(folder("tde"), Fate::Unknown);
        assert_eq!(folder("pg_tblspc/16400"), Fate::Unknown);
    }
}
