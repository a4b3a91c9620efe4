//! Whether two databases are equal: the three oracles of a copy.
//!
//! The schema dump equals that of a copy made by `pg_dump | pg_restore`; the rows of each table have
//! the same hash, whatever their order; and (a matter of the caller) the second generation equals
//! the first. A dump compared with its own source would be the wrong oracle: the order of inherited
//! columns and the text of rewritten expressions differ legitimately.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use secrecy::ExposeSecret;
use seedbed::pg::{Session, Target, quote};

/// Values print the same in every session that asks.
const SETTINGS: &str = "set search_path = ''; set datestyle = 'ISO, YMD'; set timezone = 'UTC';
    set intervalstyle = postgres; set extra_float_digits = 3; set bytea_output = hex;
    set lc_monetary = 'C'; set row_security = off";

/// One line for each thing that has contents: rows and their hash, sequences, large objects.
/// Partitioned tables count as a whole too; leaves below a hash do not count by themselves, because
/// the hash of an enum is that of an OID, which differs between databases.
pub async fn contents(target: &Target) -> BTreeMap<String, String> {
    let session = Session::connect(target).await.expect("the test's own database");
    session.batch(SETTINGS).await.expect("settings of every version");
    let mut found = BTreeMap::new();
    let tables = session
        .query(
            "select n.nspname::text, c.relname::text, c.relkind::text,
                    array(select attname::text from pg_attribute
                          where attrelid = c.oid and attnum > 0 and not attisdropped
                          order by attname)
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.relkind in ('r', 'p', 'm', 'S') and c.relpersistence <> 't'
               and (not c.relispartition
                    or not exists (select from pg_partition_ancestors(c.oid) as up(relid)
                                   join pg_partitioned_table p on p.partrelid = up.relid
                                   where p.partstrat = 'h'))
               and (c.relkind <> 'm' or c.relispopulated)
               and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')",
            &[],
        )
        .await
        .expect("the catalog can be read");
    for row in tables {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        let kind: String = row.get(2);
        let columns: Vec<String> = row.get(3);
        let quoted = quote::qualified(&schema, &name);
        let sql = if kind == "S" {
            format!("select last_value || ' ' || is_called from {quoted}")
        } else {
            let columns: Vec<String> = columns.iter().map(|column| quote::ident(column)).collect();
            let only = if kind == "p" { "" } else { "only" };
            format!(
                "select count(*) || ' ' || coalesce(sum(('x' || left(md5(row({})::text), 15)) \
                 ::bit(60)::int8::numeric), 0) from {only} {quoted}",
                columns.join(", ")
            )
        };
        let value: String = match session.query_one(&sql, &[]).await {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}: {error}"),
        };
        found.insert(format!("{kind} {quoted}"), value);
    }
    let objects = session
        .query(
            "select oid::text, md5(lo_get(oid)) || coalesce(obj_description(oid, 'pg_largeobject'), '')
             from pg_largeobject_metadata",
            &[],
        )
        .await
        .expect("large objects can be read");
    for row in objects {
        found.insert(format!("large object {}", row.get::<_, &str>(0)), row.get(1));
    }
    session.close().await;
    found
}

/// Where the programs of one version are.
pub enum Clients<'a> {
    Folder(&'a Path),
    /// The name of the container in which the server runs, too.
    Container(&'a str),
}

impl Clients<'_> {
    /// A program's output, with `stdin` as its input; fails the test with its words.
    pub fn run(&self, program: &str, target: &Target, args: &[&str], stdin: &[u8]) -> Vec<u8> {
        let database = format!("--dbname={}", target.database);
        let args: Vec<&str> = args.iter().copied().chain([database.as_str()]).collect();
        self.run_offline(program, target, &args, stdin)
    }

    /// The same without the argument that makes it connect.
    pub fn run_offline(
        &self,
        program: &str,
        target: &Target,
        args: &[&str],
        stdin: &[u8],
    ) -> Vec<u8> {
        use std::io::Write;
        let mut command = match self {
            Self::Folder(folder) => {
                let mut command = Command::new(folder.join(program));
                command.env("PGHOST", &target.host).env("PGPORT", target.port.to_string());
                command
            }
            Self::Container(name) => {
                let mut command = Command::new("docker");
                command.args(["exec", "--interactive", "--env=PGHOST=127.0.0.1"]);
                command.args(["--env=PGUSER", "--env=PGPASSWORD", "--env=LC_ALL=C", name, program]);
                command
            }
        };
        command.env("LC_ALL", "C").env("PGUSER", &target.user).args(args);
        if let Some(password) = &target.password {
            command.env("PGPASSWORD", password.expose_secret());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server's programs are there");
        let mut pipe = child.stdin.take().expect("it was started with a pipe");
        let input = stdin.to_vec();
        // One that ends early says why itself.
        let sender = std::thread::spawn(move || drop(pipe.write_all(&input)));
        let output = child.wait_with_output().expect("it was started");
        sender.join().expect("it does not panic");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {errors}");
        output.stdout
    }

    /// As [`schema`].
    pub fn schema(&self, target: &Target) -> String {
        let help = self.run("pg_dump", target, &["--help"], &[]);
        let mut args = vec!["--schema-only"];
        args.extend(OPTIONS);
        if String::from_utf8_lossy(&help).contains("--restrict-key") {
            args.push("--restrict-key=fixed");
        }
        comparable(self.run("pg_dump", target, &args, &[]))
    }

    /// Copies a database as `pg_dump` of this version and `pg_restore` of `other` do.
    pub fn copy_to(&self, source: &Target, other: &Clients<'_>, copy: &Target) {
        let mut args = vec!["--format=custom"];
        args.extend(OPTIONS);
        let archive = self.run("pg_dump", source, &args, &[]);
        other.run("pg_restore", copy, &OPTIONS, &archive);
    }
}

/// A program of the server's version, its output; fails the test with its words.
pub fn tool(bin_dir: &Path, program: &str, target: Option<&Target>, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(bin_dir.join(program));
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null()).args(args);
    if let Some(target) = target {
        command
            .env("PGHOST", &target.host)
            .env("PGPORT", target.port.to_string())
            .env("PGUSER", &target.user)
            .arg(format!("--dbname={}", target.database));
        if let Some(password) = &target.password {
            command.env("PGPASSWORD", password.expose_secret());
        }
        let options = target.settings.iter().map(|(name, value)| format!("-c {name}={value}"));
        command.env("PGOPTIONS", options.collect::<Vec<_>>().join(" "));
    }
    let output = command.output().expect("the server's programs are there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    output.stdout
}

/// What a copy by other means leaves out as ours does.
const OPTIONS: [&str; 6] = [
    "--no-owner",
    "--no-privileges",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
];

/// The schema as text, without what two runs of `pg_dump` differ in.
pub fn schema(bin_dir: &Path, target: &Target) -> String {
    let help = String::from_utf8_lossy(&tool(bin_dir, "pg_dump", None, &["--help"])).into_owned();
    let mut args = vec!["--schema-only"];
    args.extend(OPTIONS);
    if help.contains("--restrict-key") {
        args.push("--restrict-key=fixed");
    }
    comparable(tool(bin_dir, "pg_dump", Some(target), &args))
}

fn comparable(dump: Vec<u8>) -> String {
    let text = String::from_utf8(dump).expect("the tests' databases are in UTF-8");
    text.lines()
        .filter(|line| !line.starts_with("--"))
        .fold(String::new(), |text, line| if line.is_empty() { text } else { text + line + "\n" })
}

/// Copies `source` into the empty database `copy` by `pg_dump | pg_restore`.
pub fn copy_by_pg_dump(bin_dir: &Path, source: &Target, copy: &Target) {
    let dir = tempfile::tempdir().expect("the temporary folder can be written to");
    let file = dir.path().join("archive");
    let file = file.to_str().expect("we named it in UTF-8");
    let mut dump = vec!["--format=custom", "--file", file];
    dump.extend(OPTIONS);
    tool(bin_dir, "pg_dump", Some(source), &dump);
    let mut restore = OPTIONS.to_vec();
    restore.push(file);
    tool(bin_dir, "pg_restore", Some(copy), &restore);
}

/// The lines that only one of two texts has, each with its side; empty when they are equal.
pub fn differences(left: &str, right: &str) -> Vec<String> {
    if left == right {
        return Vec::new();
    }
    let count = |text: &str| {
        let mut lines: BTreeMap<String, i64> = BTreeMap::new();
        for line in text.lines() {
            *lines.entry(line.to_owned()).or_default() += 1;
        }
        lines
    };
    let (left_lines, right_lines) = (count(left), count(right));
    let mut found = Vec::new();
    for (line, times) in &left_lines {
        if right_lines.get(line) != Some(times) {
            found.push(format!("< {line}"));
        }
    }
    for (line, times) in &right_lines {
        if left_lines.get(line) != Some(times) {
            found.push(format!("> {line}"));
        }
    }
    if found.is_empty() {
        found.push("the same lines in another order".to_owned());
    }
    found
}

/// As [`differences`], of what [`contents`] found.
pub fn content_differences(
    left: &BTreeMap<String, String>,
    right: &BTreeMap<String, String>,
) -> Vec<String> {
    let text = |found: &BTreeMap<String, String>| {
        found.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>()
    };
    differences(&text(left), &text(right))
}
