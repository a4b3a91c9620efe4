//! The journeys, typed: each test runs the built program in a project folder and compares what it shows
//! and what is in the database afterwards.
//!
//! [`Project`] is a small shop: three tables, one view, an account beside the owner's. Its store holds
//! a snapshot of the shop's production with the first script only, so that a restore is followed by a
//! migration. Production lives on the harness's server, projects on servers of their own or on
//! [`elsewhere`], which no snapshot names.

mod act_kills;
mod at_hand;
mod branches;
mod ci;
mod connections;
mod daemon_disks;
mod daemon_restarts;
mod disk_full;
mod engines;
mod ground;
mod image_beside;
mod image_faults;
mod image_interrupts;
mod image_kills;
mod images;
mod killed_server;
mod lend;
mod many;
mod nearest;
mod pool_full;
mod published;
mod published_leftovers;
mod published_misfits;
mod quick_stop;
mod reset;
mod seed;
mod snapshots;
mod up;
mod verbs;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::ExposeSecret;
use seedbed::pg::{SslMode, Target};
use tokio::sync::OnceCell;

use crate::harness::postgres::{newest_bin_dir, query_text, run_sql};
use crate::harness::{Run, Sandbox, Server, require, server, unique, watchdog};

pub const FIRST: &str = "create schema shop;
create table shop.customer (
    customer_id bigint generated always as identity primary key,
    name text not null
);
create table shop.item (
    item_id bigint generated always as identity primary key,
    label text not null,
    cents int not null check (cents > 0)
);
create index item_by_label on shop.item (label);
";

pub const SECOND: &str = "create table shop.purchase (
    purchase_id bigint generated always as identity primary key,
    customer_id bigint not null references shop.customer,
    item_id bigint not null references shop.item
);
insert into shop.purchase (customer_id, item_id)
select customer_id, customer_id from shop.customer where customer_id <= 10;
";

const VIEW: &str = "create or replace view shop.totals as
select c.name, count(*) as purchases
from shop.purchase p join shop.customer c using (customer_id)
group by c.name;
";

const ACCOUNTS: &str = "CREATE USER ${owner} WITH PASSWORD 'owner word';
CREATE USER ${reader} WITH PASSWORD 'reader word';
GRANT USAGE ON SCHEMA shop TO ${reader};
GRANT SELECT ON ALL TABLES IN SCHEMA shop TO ${reader};
";

/// Rows of production: `customer` and `item`.
pub const CUSTOMERS: usize = 300;
pub const ITEMS: usize = 5000;

/// The superuser of servers that projects start.
const SUPERUSER_PASSWORD: &str = "superuser word";

/// A project folder, and where its database is.
pub struct Project {
    pub sandbox: Sandbox,
    /// The environment's database.
    pub database: String,
    pub owner: String,
    pub reader: String,
    /// The superuser of the server that somebody else runs.
    external: Option<Target>,
    /// That of the server that the program started, once it was asked for.
    started: OnceLock<Target>,
}

impl Project {
    /// A project whose server is started from this machine's binaries.
    pub fn native() -> Self {
        let engine = format!("kind = \"native\"\nbin_dir = \"{}\"\n", newest_bin_dir().display());
        Self::on_its_own(&engine)
    }

    /// A project whose server the program starts, with this `[engine]`.
    pub fn on_its_own(engine: &str) -> Self {
        Self::on_its_own_in(Sandbox::new(), engine)
    }

    /// The same, in a folder below this one.
    pub fn on_its_own_below(folder: &Utf8Path, engine: &str) -> Self {
        Self::on_its_own_in(Sandbox::below(folder), engine)
    }

    fn on_its_own_in(sandbox: Sandbox, engine: &str) -> Self {
        let project = Self {
            sandbox,
            database: "shop".to_owned(),
            owner: "shop_owner".to_owned(),
            reader: "shop_reader".to_owned(),
            external: None,
            started: OnceLock::new(),
        };
        project.write_files();
        let rest = format!("superuser_password = \"{SUPERUSER_PASSWORD}\"\n");
        project.configure(&format!("{engine}{rest}"), "", "");
        project
    }

    /// A project on a server that somebody else runs: the quickest, and nothing has to be started.
    pub fn external(server: &Server) -> Self {
        let name = unique("shop");
        let mut project = Self {
            sandbox: Sandbox::new(),
            owner: format!("{name}_owner"),
            reader: format!("{name}_reader"),
            database: name,
            external: Some(server.admin.clone()),
            started: OnceLock::new(),
        };
        project.write_files();
        let word = server.admin.password.as_ref().map_or("", |word| word.expose_secret());
        project.sandbox.set("SUPERUSER_WORD", word);
        project.configure_external("127.0.0.1", server.admin.port, "");
        project
    }

    /// Writes `conf/dev.toml` of a server that somebody else runs.
    pub fn configure_external(&self, host: &str, port: u16, rest: &str) {
        self.configure(
            "kind = \"external\"\nsuperuser = \"postgres\"\nsuperuser_password = \"env:SUPERUSER_WORD\"\n",
            &format!("host = \"{host}\"\nport = {port}\nsslmode = \"disable\"\n"),
            rest,
        );
    }

    /// Writes `conf/dev.toml`; `rest` begins it.
    pub fn configure(&self, engine: &str, database: &str, rest: &str) {
        self.sandbox.write(
            "conf/dev.toml",
            format!(
                "{rest}[engine]\n{engine}[database]\nname = \"{}\"\nuser = \"{}\"\npassword = \"owner word\"\n{database}",
                self.database, self.owner
            ),
        );
    }

    fn write_files(&self) {
        self.sandbox.write(
            "conf/seedbed.toml",
            format!(
                "[flyway.placeholders]\nowner = \"{}\"\nreader = \"{}\"\n",
                self.owner, self.reader
            ),
        );
        self.sandbox.write("sql/V1__shop.sql", FIRST);
        self.sandbox.write("sql/V2__purchases.sql", SECOND);
        self.sandbox.write("sql/R__totals.sql", VIEW);
        self.sandbox.write("users/accounts.sql", ACCOUNTS);
    }

    /// Fills the store with the shop's snapshot.
    pub async fn with_snapshot(self) -> Self {
        copy_tree(published().await, &self.sandbox.project().join("seed/snapshots"));
        self
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.sandbox.run(args)
    }

    /// The superuser, in the database `postgres`.
    pub fn admin(&self) -> Target {
        if let Some(admin) = &self.external {
            return admin.clone();
        }
        // The port is remembered by the program as well: it is the same after a restart.
        self.started.get_or_init(|| self.started()).clone()
    }

    fn started(&self) -> Target {
        let url = self.run(&["url"]).succeeds().stdout;
        let url = url::Url::parse(url.trim()).expect("a connection URL");
        Target {
            host: "127.0.0.1".to_owned(),
            port: url.port().expect("the URL names the port"),
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: Some(SUPERUSER_PASSWORD.to_owned().into()),
            ssl_mode: SslMode::Disable,
            ssl_root_cert: None,
            ssl_client: None,
            settings: Vec::new(),
        }
    }

    /// The superuser, in the live database.
    pub fn live(&self) -> Target {
        self.admin().with_database(&self.database)
    }

    /// Runs statements in the live database.
    pub async fn sql(&self, sql: &str) {
        run_sql(&self.live(), sql).await;
    }

    /// The answer of a query in the live database.
    pub async fn text(&self, sql: &str) -> String {
        query_text(&self.live(), sql).await
    }

    /// Every row of every table of the shop, and the history, as one hash each.
    pub async fn contents(&self) -> String {
        contents(&self.live()).await
    }

    /// What of ours is on the server: `live shop`, `template shop__template_…` without the digits.
    pub async fn databases(&self) -> Vec<String> {
        let sql = format!(
            "select case when datname like '%\\_\\_%' then
               regexp_replace(substr(datname, length('{0}') + 1), '[0-9a-f]{{8}}$', '')
               else 'live' end
             from pg_database where datname = '{0}' or datname like '{0}\\_\\_%' order by 1",
            self.database
        );
        let text = query_text(&self.admin(), &sql).await;
        let mut names: Vec<String> =
            text.lines().map(|line| line.trim_matches('_').to_owned()).collect();
        names.sort();
        names
    }
}

/// Every row of the schema `shop` and of the history: a line for each table with its rows and a hash.
pub async fn contents(target: &Target) -> String {
    let tables = query_text(
        target,
        "select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables
         where schemaname in ('shop', 'public') and tablename <> 'flyway_schema_history' order by 1",
    )
    .await;
    let mut all = query_text(
        target,
        "select 'history ' || string_agg(concat_ws(' ', version, script, checksum), ', ' order by installed_rank)
         from flyway_schema_history",
    )
    .await;
    for table in tables.lines() {
        let line = format!(
            "select '{table} ' || count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) from {table} t"
        );
        all = format!("{all}\n{}", query_text(target, &line).await);
    }
    all
}

/// A second server, for projects whose database somebody else's server holds.
pub fn elsewhere() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| // Rows that are written count: no housekeeping writes any.
        Server::start(&[("max_prepared_transactions", "5"), ("autovacuum", "off")]))
}

/// A folder store with one snapshot of the shop, made once.
pub async fn published() -> &'static Utf8Path {
    static STORE: OnceCell<Utf8PathBuf> = OnceCell::const_new();
    STORE
        .get_or_init(|| async {
            let dir = tempfile::Builder::new()
                .prefix("seedbed-test-store-")
                .tempdir()
                .expect("the temporary folder can be written to")
                .keep();
            let dir = Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
            watchdog::at_exit(&format!("rm -rf {dir}"));
            let production = Production::new(&format!("[store]\nurl = \"{dir}\"\n")).await;
            production.run(&["snapshot", "create"]).succeeds();
            production.drop_database().await;
            dir
        })
        .await
}

/// The shop's production on the harness's server: the first script applied, rows in it.
pub struct Production {
    pub sandbox: Sandbox,
    pub target: Target,
}

impl Production {
    /// `shared` is its `conf/seedbed.toml`: where the store is.
    pub async fn new(shared: &str) -> Self {
        Self::made_with(shared, "").await
    }

    /// `options` end the statement that creates the database.
    pub async fn made_with(shared: &str, options: &str) -> Self {
        let admin = &server().admin;
        let target = admin.with_database(&unique("shop_prod"));
        run_sql(admin, &format!("create database {} {options}", target.database)).await;
        let mut sandbox = Sandbox::new();
        let word = target.password.as_ref().map_or("", |word| word.expose_secret());
        sandbox.set("PROD_WORD", word);
        sandbox.write("conf/seedbed.toml", shared);
        sandbox.write("conf/prod.toml", protected(&target));
        sandbox.write("sql/V1__shop.sql", FIRST);
        let production = Self { sandbox, target };
        production.run(&["migrate", "--yes"]).succeeds();
        production
            .sql(&format!(
                "insert into shop.customer (name) select 'customer ' || n from generate_series(1, {CUSTOMERS}) n;
                 insert into shop.item (label, cents)
                 select 'item ' || md5(n::text), n from generate_series(1, {ITEMS}) n"
            ))
            .await;
        production
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.sandbox.run(args)
    }

    pub async fn sql(&self, sql: &str) {
        run_sql(&self.target, sql).await;
    }

    pub async fn drop_database(self) {
        let sql = format!("drop database {} with (force)", self.target.database);
        run_sql(&server().admin, &sql).await;
    }
}

/// `conf/prod.toml` of the protected environment whose database is `target`.
pub fn protected(target: &Target) -> String {
    format!(
        "protected = true\n[engine]\nkind = \"external\"\n[database]\nhost = \"{}\"\nport = {}\nname = \"{}\"\n\
         user = \"{}\"\npassword = \"env:PROD_WORD\"\nsslmode = \"disable\"\n",
        target.host, target.port, target.database, target.user
    )
}

/// Asks until the answer is `wanted`; fails the test with the last one after two minutes.
pub async fn until(target: &Target, sql: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let answer = query_text(target, sql).await;
        if answer == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}: {answer}, not {wanted}, after two minutes");
    }
}

/// Whether a daemon answers that has the image.
pub fn docker_is_here() -> bool {
    let there = std::process::Command::new("docker")
        .args(["image", "inspect", "postgres:17"])
        .output()
        .is_ok_and(|output| output.status.success());
    require("a Docker daemon with the image postgres:17", there)
}

pub fn copy_tree(from: &Utf8Path, to: &Utf8Path) {
    std::fs::create_dir_all(to).expect("the sandbox is ours");
    for entry in from.read_dir_utf8().expect("it was made") {
        let entry = entry.expect("it can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("the sandbox is ours");
        }
    }
}

/// The files below `dir`, whatever their depth.
pub fn files_below(dir: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir_utf8().expect("a folder that is there") {
            let entry = entry.expect("it can be read");
            if entry.path().is_dir() {
                folders.push(entry.path().to_owned());
            } else {
                found.push(entry.path().to_owned());
            }
        }
    }
    found.sort();
    found
}
