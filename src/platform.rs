//! On which servers a data directory can be served: what is as the server that made it.
//!
//! PostgreSQL's own rules (its manual, "Hardware" of file system level backup; `pg_controldata`): the
//! layout of pages and of the catalog, the processor, how text sorts. What an index was sorted by and
//! another library would sort otherwise would be damaged without a word.

use serde::{Deserialize, Serialize};

use crate::pg::{self, Session};
use crate::snapshot::chunk;
use crate::snapshot::load::lacks_lz4;

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
    /// Whether values may be compressed with lz4; of a server, whether it can.
    #[serde(default = "possible")]
    pub lz4: bool,
    /// Name and version of each extension in the database.
    pub extensions: Vec<(String, String)>,
}

/// Of a document that does not say it.
fn possible() -> bool {
    true
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

/// Whether what is sorted in this database was sorted by the C library, or by ICU: by the collation of a
/// database, or by one that anything in this one names (columns, indexes, partition keys and ranges; by
/// its dependencies expressions, checks and views). Of the other databases nothing but `template0` may
/// sort otherwise than its server: none could be made from `template1` then. Collations that compare
/// bytes have no version.
const SORTED_BY: &str = "
with used as (
    select attcollation as oid from pg_attribute where attrelid >= 16384
    union select unnest(indcollation) from pg_index where indrelid >= 16384
    union select unnest(partcollation) from pg_partitioned_table
    union select typcollation from pg_type where oid >= 16384
    union select rngcollation from pg_range where rngtypid >= 16384
    union select refobjid from pg_depend
          where refclassid = 'pg_collation'::regclass and deptype <> 'p' and objid >= 16384
), providers as (
    select collprovider::text as provider, pg_collation_actual_version(c.oid) is not null as versioned
    from pg_collation c join used using (oid)
    where c.collprovider <> 'd'
    union all
    select coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
           datcollate not in ('C', 'POSIX', 'C.UTF-8', 'C.utf8')
               or to_jsonb(d) ->> 'datlocprovider' = 'i'
    from pg_database d where datname <> 'template0'
)
select coalesce(bool_or(versioned) filter (where provider = 'c'), false),
       coalesce(bool_or(versioned) filter (where provider = 'i'), false)
from providers";

/// Whether a value of this database may be compressed with lz4: by a column's own word, or by the default
/// of the server, the database or an account. Of PostgreSQL 14 and later.
const COMPRESSED: &str = "
select current_setting('default_toast_compression') = 'lz4'
    or exists (select from pg_attribute where attcompression = 'l')
    or exists (select from pg_db_role_setting
               where lower(setconfig::text) like '%default_toast_compression=lz4%')";

impl Platform {
    /// That of a data directory with this database in it: as that of its server, but only bound to those
    /// libraries that have sorted or compressed something.
    ///
    /// # Errors
    /// What the server said.
    pub async fn of_data(session: &Session) -> Result<Self, pg::Error> {
        let server = Self::of(session).await?;
        let row = session.query_one(SORTED_BY, &[]).await?;
        let (by_libc, by_icu): (bool, bool) = (row.get(0), row.get(1));
        let lz4 = server.lz4
            && server.major >= 14
            && session.query_one(COMPRESSED, &[]).await?.get::<_, bool>(0);
        Ok(Self {
            libc: server.libc.filter(|_| by_libc),
            icu: server.icu.filter(|_| by_icu),
            lz4,
            ..server
        })
    }

    /// What of a server's is not told by its build and ICU's rules, in one question. The rest is not in it.
    ///
    /// # Errors
    /// What the server said.
    pub async fn beside_fingerprint(session: &Session) -> Result<Self, pg::Error> {
        let sql = format!(
            "select l.*, (select max(pg_collation_actual_version(oid)) from pg_collation
                          where collprovider = 'c') from ({LAYOUT}) l"
        );
        let row = session.query_one(&sql, &[]).await?;
        let (layout, number, version): (Vec<String>, i32, String) =
            (row.get(0), row.get(1), row.get(2));
        Ok(Self {
            major: u32::try_from(number / 10_000).unwrap_or_default(),
            layout,
            machine: machine(&version),
            libc: row.get(3),
            ..Self::default()
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
            lz4: !lacks_lz4(session).await?,
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
        if self.lz4 && !here.lz4 {
            let why = "values in it are compressed with lz4, which this server was built without";
            return Some(why.to_owned());
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
            lz4: false,
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
            (|image| image.lz4 = true, "compressed with lz4"),
            (|image| image.extensions.push(("postgis".to_owned(), "3".to_owned())), "postgis"),
        ] {
            let said = fits(change).expect("does not fit");
            assert!(said.contains(word), "{said}");
        }
    }
}
