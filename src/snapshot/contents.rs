//! Whether a database holds what a manifest has beside rows: the schema, sequences, large objects.
//!
//! Values of generated columns are computed anew, from rows that are compared and by expressions that
//! stand in the schema.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::catalog::{self, SequenceRef};
use super::dump::{DUMP_ARGS, schema_lines};
use super::load::{lacks_lz4, without_lz4};
use super::manifest::{LargeObject, Manifest, Sequence};
use super::restore::Restore;
use super::{Error, dump as dumping, fetch, load};
use crate::config::Owners;
use crate::context::Context;
use crate::pg::tools::{Call, Tools};
use crate::pg::{self, Session, Target};
use crate::store::Store;
use crate::store::cache::Cache;

/// Lines of a schema named for each side.
const LINES_SHOWN: usize = 2;

/// What differs, each in words.
///
/// # Errors
/// What could not be read.
pub(crate) async fn differences(
    ctx: &Context,
    store: &Store,
    manifest: &Manifest,
    target: &Target,
    tools: &Tools,
) -> Result<Vec<String>, Error> {
    let session = Session::connect(target).await?;
    let wanted = load::present_sequences(ctx, &session, manifest).await?;
    let mut differing = sequences(&wanted, &read_sequences(&session, &wanted).await?);
    differing.extend(large_objects(&manifest.large_objects, &read_large_objects(&session).await?));
    let mut archive = stored_archive(ctx, store, manifest).await?;
    if lacks_lz4(&session).await? {
        archive = without_lz4(&archive).0;
    }
    session.close().await;
    let stored = script(ctx, tools, target, &archive).await?;
    let restored = script(ctx, tools, target, &dump(ctx, tools, target).await?).await?;
    if origin(&stored) == origin(&restored) {
        let ignored = &ctx.config.restore.ignore_extensions;
        differing.extend(schemas(&stored, &restored, ignored));
    } else {
        ctx.report.note(format!(
            "the schema is not compared: it was written by {}, and here by {}",
            origin(&stored).join(" from "),
            origin(&restored).join(" from ")
        ));
    }
    Ok(differing)
}

async fn read_sequences(session: &Session, wanted: &[&Sequence]) -> Result<Vec<Sequence>, Error> {
    let refs = wanted.iter().map(|sequence| SequenceRef {
        name: sequence.qualified_name(),
        readable: true,
        extension: sequence.extension.clone(),
    });
    Ok(catalog::read_sequences(session, &refs.collect::<Vec<_>>()).await?)
}

/// Sizes of all large objects.
async fn read_large_objects(session: &Session) -> Result<BTreeMap<u32, u64>, Error> {
    let rows = session
        .query(
            "select m.oid,
                    coalesce((select l.pageno::int8 * (current_setting('block_size')::int8 / 4)
                                     + length(l.data)
                              from pg_largeobject l
                              where l.loid = m.oid
                              order by l.pageno desc
                              limit 1), 0)
             from pg_largeobject_metadata m",
            &[],
        )
        .await?;
    let size =
        |row: &pg::Row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap_or_default());
    Ok(rows.iter().map(size).collect())
}

async fn stored_archive(ctx: &Context, store: &Store, manifest: &Manifest) -> Result<Bytes, Error> {
    let source = fetch::Source::new(store, Cache::open(ctx));
    let mut bytes = Vec::new();
    for chunk in &manifest.schema_archive {
        bytes.extend_from_slice(&source.plain(chunk).await?);
    }
    Ok(Bytes::from(bytes))
}

async fn dump(ctx: &Context, tools: &Tools, target: &Target) -> Result<Bytes, Error> {
    let args = DUMP_ARGS.map(str::to_owned).to_vec();
    let call =
        Call { program: "pg_dump", args, target: Some(target), stdin: None, input_file: None };
    let output = tools.run(ctx, call).await.map_err(load::Error::Tools)?;
    if output.status == 0 {
        return Ok(Bytes::from(output.stdout));
    }
    let reason = output.stderr.trim().to_owned();
    Err(dumping::Error::Schema {
        database: target.database.clone(),
        role: target.user.clone(),
        reason,
    }
    .into())
}

/// An archive's statements, without what a copy does not have.
async fn script(
    ctx: &Context,
    tools: &Tools,
    target: &Target,
    archive: &Bytes,
) -> Result<Vec<u8>, Error> {
    let role = &target.user;
    let restore = Restore { ctx, tools, target, role, owners: Owners::Local, archive };
    let list = restore.list().await?;
    Ok(restore.script(&list).await?)
}

/// Which `pg_dump` wrote a script, and from what: only the same two write the same of the same.
fn origin(script: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(&script[..script.len().min(2000)]).into_owned();
    let version = |mark: &str| {
        let (_, rest) = text.split_once(mark)?;
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some(format!("{} {}", mark.trim(), &rest[..end]))
    };
    ["pg_dump version ", "database version "].into_iter().filter_map(version).collect()
}

fn sequences(stored: &[&Sequence], found: &[Sequence]) -> Vec<String> {
    let position = |sequence: &Sequence| {
        let next = if sequence.is_called { "" } else { ", not used yet" };
        format!("{}{next}", sequence.last_value)
    };
    let found: BTreeMap<(&str, &str), &Sequence> = found
        .iter()
        .map(|sequence| ((sequence.schema.as_str(), sequence.name.as_str()), sequence))
        .collect();
    let differs = |sequence: &&Sequence| {
        let name = format!("{}.{}", sequence.schema, sequence.name);
        match found.get(&(sequence.schema.as_str(), sequence.name.as_str())) {
            Some(other) if other == sequence => None,
            Some(other) => Some(format!(
                "sequence `{name}` is at {}, in the source at {}",
                position(other),
                position(sequence)
            )),
            None => Some(format!("sequence `{name}` is not there")),
        }
    };
    stored.iter().filter_map(differs).collect()
}

fn large_objects(stored: &[LargeObject], found: &BTreeMap<u32, u64>) -> Vec<String> {
    let differs = |object: &LargeObject| match found.get(&object.oid) {
        Some(bytes) if *bytes == object.bytes => None,
        Some(bytes) => Some(format!(
            "large object {} has {bytes} bytes, in the source {}",
            object.oid, object.bytes
        )),
        None => Some(format!("large object {} is not there", object.oid)),
    };
    let mut differing: Vec<String> = stored.iter().filter_map(differs).collect();
    if found.len() > stored.len() {
        let (there, wanted) = (found.len(), stored.len());
        differing.push(format!("{there} large objects are there, in the source {wanted}"));
    }
    differing
}

/// Lines that only one of two schemas has, whatever their order.
fn schemas(stored: &[u8], restored: &[u8], ignored_extensions: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<&[u8], i64> = BTreeMap::new();
    for (script, one) in [(stored, 1), (restored, -1)] {
        for line in schema_lines(script) {
            *counts.entry(line).or_default() += one;
        }
    }
    let of_ignored = |line: &str| {
        ignored_extensions.iter().any(|name| {
            line.starts_with(&format!("CREATE EXTENSION IF NOT EXISTS {name} "))
                || line.starts_with(&format!("CREATE EXTENSION IF NOT EXISTS \"{name}\" "))
        })
    };
    let only = |whose: &str, sign: i64| {
        let lines: Vec<String> = counts
            .iter()
            .filter(|(_, count)| **count * sign > 0)
            .map(|(line, _)| String::from_utf8_lossy(line).trim().to_owned())
            // A comment of an extension is its own: a load makes the extension as its owner.
            .filter(|line| !line.starts_with("COMMENT ON EXTENSION ") && !of_ignored(line))
            .collect();
        let shown: Vec<String> =
            lines.iter().take(LINES_SHOWN).map(|line| format!("`{line}`")).collect();
        let more = lines.len().saturating_sub(LINES_SHOWN);
        let tail = if more == 0 { String::new() } else { format!(" and {more} more lines") };
        (!lines.is_empty())
            .then(|| format!("only the schema {whose} has {}{tail}", shown.join(", ")))
    };
    [only("of the source", 1), only("that was restored", -1)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{LargeObject, Sequence, large_objects, origin, schemas, sequences};

    fn sequence(name: &str, last_value: i64, is_called: bool) -> Sequence {
        let (schema, name) = ("s".to_owned(), name.to_owned());
        Sequence { schema, name, last_value, is_called, extension: None }
    }

    #[test]
    fn a_sequence_elsewhere_or_missing_is_told() {
        let stored = [sequence("a", 3, true), sequence("b", 1, false), sequence("c", 1, true)];
        let of: Vec<&Sequence> = stored.iter().collect();
        assert_eq!(sequences(&of, &stored), Vec::<String>::new());
        let found = [sequence("a", 6, true), sequence("b", 1, true)];
        assert_eq!(
            sequences(&of, &found),
            [
                "sequence `s.a` is at 6, in the source at 3",
                "sequence `s.b` is at 1, in the source at 1, not used yet",
                "sequence `s.c` is not there",
            ]
        );
    }

    #[test]
    fn a_large_object_that_is_short_missing_or_nobodys_is_told() {
        let object = |oid, bytes| LargeObject {
            oid,
            owner: None,
            acl: Vec::new(),
            revoked: false,
            comment: None,
            bytes,
            chunks: Vec::new(),
        };
        let stored = [object(1, 10), object(2, 0)];
        assert_eq!(large_objects(&stored, &BTreeMap::from([(1, 10), (2, 0)])), [""; 0]);
        assert_eq!(
            large_objects(&stored, &BTreeMap::from([(1, 9), (3, 1), (4, 1)])),
            [
                "large object 1 has 9 bytes, in the source 10",
                "large object 2 is not there",
                "3 large objects are there, in the source 2",
            ]
        );
    }

    #[test]
    fn schemas_are_compared_whatever_their_order() {
        let one =
            b"-- a comment\nSET x = 1;\nCREATE TABLE s.t (\n    a integer\n);\nCREATE VIEW v;\n";
        let two = b"CREATE VIEW v;\n\nCREATE TABLE s.t (\n    a integer\n);\n";
        assert_eq!(schemas(one, two, &[]), [""; 0]);
        let other = b"CREATE TABLE s.t (\n    a bigint\n);\nCREATE VIEW v;\n";
        assert_eq!(
            schemas(one, other, &[]),
            [
                "only the schema of the source has `a integer`",
                "only the schema that was restored has `a bigint`"
            ]
        );
        let ignored = b"CREATE VIEW v;\nCREATE TABLE s.t (\n    a integer\n);\n\
            CREATE EXTENSION IF NOT EXISTS aws_s3 WITH SCHEMA s;\n";
        assert_eq!(schemas(ignored, two, &["aws_s3".to_owned()]), [""; 0]);
        assert_eq!(schemas(ignored, two, &[]).len(), 1);
    }

    #[test]
    fn scripts_of_other_versions_are_known_by_their_head() {
        let head = b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.18 (Debian)\n\
            -- Dumped by pg_dump version 17.2\n";
        assert_eq!(origin(head), ["pg_dump version 17", "database version 15"]);
    }
}
