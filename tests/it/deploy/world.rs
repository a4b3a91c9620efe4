//! What the job meets where it is deployed: a production database with the account of
//! `deploy/snapshot-role.sql`, a bucket with the accounts of `deploy/aws`.
//!
//! Host names, TLS and AWS are what a test cannot have: variables that no file of `deploy/` sets name
//! loopback instead.

use std::collections::BTreeMap;
use std::process::Command;

use secrecy::ExposeSecret;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use super::text;
use crate::harness::moto::{Account, committed_policy};
use crate::harness::postgres::run_sql;
use crate::harness::{self, Moto, Sandbox, Server, sandbox};

pub struct World {
    pub production: Server,
    pub bucket: Moto,
    pub writer: Account,
    pub reader: Account,
    /// The account in production allows twelve sessions: the tests' jobs run one after the other.
    turn: Mutex<()>,
}

/// The password of the snapshot role.
pub const PASSWORD: &str = "S3cr3t!Canary of production";

/// The world, made once, if the S3 server is installed. It is the caller's until the guard is
/// dropped.
pub async fn world() -> Option<(&'static World, MutexGuard<'static, ()>)> {
    static WORLD: OnceCell<Option<World>> = OnceCell::const_new();
    let world = WORLD.get_or_init(World::make).await.as_ref()?;
    Some((world, world.turn.lock().await))
}

impl World {
    async fn make() -> Option<Self> {
        let bucket = Moto::start()?;
        let production = Server::start(&[]);
        let sandbox = harness::example(&production, "factory");
        sandbox.run(&["up", "--seed", "files"]).succeeds();
        make_role(&production).await;

        bucket.create_bucket("acme-snapshots").await;
        let writer = bucket.account("writer", &committed_policy("writer-policy.json", &[])).await;
        let reader = bucket.account("reader", &committed_policy("reader-policy.json", &[])).await;
        bucket.demand_credentials().await;
        Some(Self { production, bucket, writer, reader, turn: Mutex::new(()) })
    }

    /// `deploy/job.env.example` filled in.
    pub fn job_variables(&self) -> BTreeMap<String, String> {
        let example = text("deploy/job.env.example");
        let lines = example.lines().filter(|line| !line.starts_with('#'));
        let fill = |line: &str| {
            let (name, value) = line.split_once('=').expect("NAME=value");
            let value = match name {
                "FACTORY_DB_PASSWORD" => PASSWORD,
                "AWS_ACCESS_KEY_ID" => &self.writer.access_key_id,
                "AWS_SECRET_ACCESS_KEY" => &self.writer.secret_access_key,
                _ => value,
            };
            assert!(!value.is_empty(), "{name} is to be filled in");
            (name.to_owned(), value.to_owned())
        };
        lines.map(fill).collect()
    }

    /// The same as the text of `/etc/seedbed/job.env`.
    pub fn job_env(&self) -> String {
        let quote = |value: &str| format!("'{value}'");
        let lines = self.job_variables();
        lines.iter().map(|(name, value)| format!("{name}={}\n", quote(value))).collect()
    }

    /// Loopback in place of the names that the project's files give.
    pub fn places(&self) -> Vec<(&'static str, String)> {
        let port = self.production.admin.port;
        vec![
            ("SEEDBED_DATABASE_URL", format!("postgresql://127.0.0.1:{port}/factory")),
            ("SEEDBED_DATABASE_SSLMODE", "disable".to_owned()),
            ("SEEDBED_STORE_ENDPOINT", self.bucket.endpoint().to_owned()),
            ("SEEDBED_STORE_PATH_STYLE", "true".to_owned()),
        ]
    }

    /// The project as it is checked out where the job runs, and a folder with `seedbed` for its
    /// `PATH`.
    pub fn checkout(&self) -> Sandbox {
        let sandbox = Sandbox::new();
        for folder in ["conf", "sql", "users"] {
            sandbox.copy_from_repository(folder);
        }
        sandbox.write("bin/.keep", "");
        std::os::unix::fs::symlink(sandbox::PROGRAM, sandbox.project().join("bin/seedbed"))
            .expect("the folder is ours");
        sandbox
    }
}

/// Runs `deploy/snapshot-role.sql` by the command that it names, then gives the role a password.
async fn make_role(server: &Server) {
    run_sql(&server.admin, "revoke connect on database factory from public").await;
    let script = text("deploy/snapshot-role.sql");
    let command = script
        .lines()
        .find_map(|line| line.strip_prefix("--   "))
        .expect("its head names the command");
    assert!(command.starts_with("psql "), "{command}");
    let password = server.admin.password.as_ref().expect("the harness sets one");
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", format!("{}:/usr/bin:/bin", server.bin_dir.display()))
        .env("PGHOST", &server.admin.host)
        .env("PGPORT", server.admin.port.to_string())
        .env("PGUSER", &server.admin.user)
        .env("PGPASSWORD", password.expose_secret())
        .output()
        .expect("every Unix has sh");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    run_sql(&server.admin, &format!("alter role seedbed_snapshot password '{PASSWORD}'")).await;
}
