//! On which servers a data directory can be served: what is as the server that made it.
//!
//! PostgreSQL's own rules (its manual, "Hardware" of file system level backup; `pg_controldata`): the
//! layout of pages and of the catalog, the processor, how text sorts. What an index was sorted by and
//! another library would sort otherwise would be damaged without a word.

use serde::{Deserialize, Serialize};

use crate::pg::{self, Session};
use crate::snapshot::chunk;

/// What a data directory is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// 17.
    pub major: u32,
    /// Numbers of the control file that have to be equal: versions of catalog and file, sizes of blocks,
    /// alignment.
    pub layout: Vec<String>,
    /// `x86_64-linux-gnu`: processor, system and C library.
    pub machine: String,
    /// Version by which the C library sorts; `None`: it sorts nothing here, or by bytes.
    pub libc: Option<String>,
    /// Version of ICU's rules; `None`: it sorts nothing here.
    pub icu: Option<String>,
    /// Name and version of each extension in the database.
    pub extensions: Vec<(String, String)>,
}

const LAYOUT: &str = "
select array[s.pg_control_version, s.catalog_version_no, i.max_data_alignment,
             i.database_block_size, i.blocks_per_segment, i.wal_block_size,
             i.max_identifier_length, i.max_index_columns, i.max_toast_chunk_size,
             i.large_object_chunk_size, i.float8_pass_by_value::int]::text[],
       current_setting('server_version_num')::int, version()
from pg_control_system() s, pg_control_init() i";

const COLLATIONS: &str = "
select max(pg_collation_actual_version(oid)) filter (where collprovider = 'c'),
       max(pg_collation_actual_version(oid)) filter (where collprovider = 'i')
from pg_collation";

/// Whether what is sorted in this database was sorted by the C library, or by ICU: by the database's own
/// collation, or by one that a column, an index or a partition key names. Collations that compare bytes
/// have no version.
const SORTED_BY: &str = "
with used as (
    select attcollation as oid from pg_attribute where attrelid >= 16384
    union select unnest(indcollation) from pg_index where indrelid >= 16384
    union select unnest(partcollation) from pg_partitioned_table
    union select typcollation from pg_type where oid >= 16384
), providers as (
    select collprovider::text as provider, pg_collation_actual_version(c.oid) is not null as versioned
    from pg_collation c join used using (oid)
    where c.collprovider <> 'd'
    union all
    select coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
           datcollate not in ('C', 'POSIX', 'C.UTF-8', 'C.utf8')
               or to_jsonb(d) ->> 'datlocprovider' = 'i'
    from pg_database d where datname = current_database()
)
select coalesce(bool_or(versioned) filter (where provider = 'c'), false),
       coalesce(bool_or(versioned) filter (where provider = 'i'), false)
from providers";

impl Platform {
    /// That of a data directory with this database in it: as that of its server, but only bound to those
    /// libraries that have sorted something.
    ///
    /// # Errors
    /// What the server said.
    pub async fn of_data(session: &Session) -> Result<Self, pg::Error> {
        let server = Self::of(session).await?;
        let row = session.query_one(SORTED_BY, &[]).await?;
        let (by_libc, by_icu): (bool, bool) = (row.get(0), row.get(1));
        Ok(Self {
            libc: server.libc.filter(|_| by_libc),
            icu: server.icu.filter(|_| by_icu),
            ..server
        })
    }

    /// That of a server; `extensions` are those of the database that the session is in.
    ///
    /// # Errors
    /// What the server said.
    pub async fn of(session: &Session) -> Result<Self, pg::Error> {
        let row = session.query_one(LAYOUT, &[]).await?;
        let (layout, number, version): (Vec<String>, i32, String) =
            (row.get(0), row.get(1), row.get(2));
        let row = session.query_one(COLLATIONS, &[]).await?;
        let (libc, icu) = (row.get(0), row.get(1));
        let extensions = session
            .query("select extname::text, extversion from pg_extension order by 1", &[])
            .await?;
        Ok(Self {
            major: u32::try_from(number / 10_000).unwrap_or_default(),
            layout,
            machine: machine(&version),
            libc,
            icu,
            extensions: extensions.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }

    /// Of what a document's name has to tell: equal for servers that may serve it, but for its libraries.
    pub fn hash(&self) -> String {
        let text = format!("{}\0{}\0{}", self.major, self.layout.join(" "), self.machine);
        chunk::short_hash(text.as_bytes())
    }

    /// Why `here`, a server on which these extensions can be created, cannot serve it; `None`: it can.
    pub fn misfit(&self, here: &Self, available: &[(String, String)]) -> Option<String> {
        if self.major != here.major {
            return Some(format!("it is of PostgreSQL {}, not {}", self.major, here.major));
        }
        if self.machine != here.machine {
            return Some(format!("it is of {}, not {}", self.machine, here.machine));
        }
        if self.layout != here.layout {
            return Some("its pages or its catalog are laid out in another way".to_owned());
        }
        let sorts = |name: &str, there: &Option<String>, here: &Option<String>| {
            let there = there.as_ref().filter(|&there| Some(there) != here.as_ref())?;
            let here = here.as_deref().unwrap_or("none");
            Some(format!("it sorts text by {name} {there}, not {here}"))
        };
        let sorts = sorts("the C library's", &self.libc, &here.libc)
            .or_else(|| sorts("ICU", &self.icu, &here.icu));
        sorts.or_else(|| {
            let (name, version) =
                self.extensions.iter().find(|extension| !available.contains(extension))?;
            Some(format!("it needs the extension `{name}` {version}"))
        })
    }
}

/// What can be created on a server: each version of each extension.
///
/// # Errors
/// What the server said.
pub async fn available_extensions(session: &Session) -> Result<Vec<(String, String)>, pg::Error> {
    let sql = "select name::text, version from pg_available_extension_versions";
    Ok(session.query(sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Out of `PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc …`.
fn machine(version: &str) -> String {
    let triple = version
        .split_once(" on ")
        .and_then(|(_, rest)| rest.split_once(','))
        .map_or(version, |(triple, _)| triple);
    // The second part names who has built it.
    let parts: Vec<&str> = triple.split('-').collect();
    match parts.as_slice() {
        [processor, _, rest @ ..] if !rest.is_empty() => format!("{processor}-{}", rest.join("-")),
        _ => triple.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Platform, machine};

    #[test]
    fn who_has_built_it_does_not_matter() {
        for (version, expected) in [
            (
                "PostgreSQL 15.18 (Debian 15.18-0) on x86_64-pc-linux-gnu, compiled by gcc, 64-bit",
                "x86_64-linux-gnu",
            ),
            (
                "PostgreSQL 16.1 on aarch64-unknown-linux-musl, compiled by gcc",
                "aarch64-linux-musl",
            ),
            (
                "PostgreSQL 16.1 on aarch64-apple-darwin23.0.0, compiled by clang",
                "aarch64-darwin23.0.0",
            ),
            ("something", "something"),
        ] {
            assert_eq!(machine(version), expected);
        }
    }

    #[test]
    fn each_difference_that_matters_is_named() {
        let here = Platform {
            major: 17,
            layout: vec!["1".to_owned()],
            machine: "x86_64-linux-gnu".to_owned(),
            libc: Some("2.36".to_owned()),
            icu: Some("153.120".to_owned()),
            extensions: vec![("plpgsql".to_owned(), "1.0".to_owned())],
        };
        let available = here.extensions.clone();
        let fits = |change: fn(&mut Platform)| {
            let mut image = here.clone();
            change(&mut image);
            image.misfit(&here, &available)
        };
        assert_eq!(fits(|_| {}), None);
        // Where the C library has sorted nothing, its version does not matter.
        assert_eq!(fits(|image| image.libc = None), None);
        for (change, word) in [
            ((|image| image.major = 16) as fn(&mut Platform), "PostgreSQL 16"),
            (|image| image.layout = Vec::new(), "laid out"),
            (|image| image.machine = "aarch64-linux-gnu".to_owned(), "aarch64"),
            (|image| image.libc = Some("2.41".to_owned()), "2.41"),
            (|image| image.icu = Some("1".to_owned()), "ICU"),
            (|image| image.extensions.push(("postgis".to_owned(), "3".to_owned())), "postgis"),
        ] {
            let said = fits(change).expect("does not fit");
            assert!(said.contains(word), "{said}");
        }
    }
}
