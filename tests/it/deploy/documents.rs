//! Commands of the documents: each is one that the program knows, and those of the README run.

use std::collections::BTreeSet;
use std::io::Write;

use super::world::world;
use super::{file, text};
use crate::harness::{Sandbox, postgres, sandbox};

const DOCUMENTS: [&str; 4] =
    ["README.md", "deploy/README.md", "docs/architecture.md", "CHANGELOG.md"];

/// Texts between back quotes and lines of code blocks, without what is in neither.
fn code(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fence: Option<String> = None;
    for line in text(document).lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language.to_owned()) };
        } else if fence.as_deref() == Some("sh") {
            found.push(line.trim().to_owned());
        } else if fence.is_none() {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The verbs that `seedbed --help` lists.
fn verbs(sandbox: &Sandbox) -> BTreeSet<String> {
    let help = sandbox.run(&["--help"]).succeeds().stdout;
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let lines = commands.lines().take_while(|line| line.starts_with("  "));
    lines.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn every_command_in_the_documents_is_one_that_the_program_knows() {
    let sandbox = Sandbox::new();
    let verbs = verbs(&sandbox);
    assert!(verbs.contains("up") && verbs.contains("snapshot"), "{verbs:?}");
    let mut checked = BTreeSet::new();
    for document in DOCUMENTS {
        assert!(file(document).exists(), "{document}");
        for code in code(document) {
            let command = code.strip_prefix("seedbed ").unwrap_or(&code);
            let first = command.split(' ').next().unwrap_or_default();
            // `snapshot list|show` is a list of commands, `up` alone may be a word.
            let is_command = command != code || (verbs.contains(first) && command.contains(' '));
            // Flyway's options have one dash.
            let of_flyway = command
                .split(' ')
                .any(|word| word.len() > 2 && word.starts_with('-') && !word.starts_with("--"));
            if !is_command || of_flyway || command.contains(['|', '…', '/', '{']) {
                continue;
            }
            let words: Vec<&str> = command.split(' ').take_while(|word| *word != "--").collect();
            let args: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
            let run = sandbox.run(&args);
            // An option may be named without its value.
            let knows = run.code == Some(0) || run.stderr.contains("a value is required for");
            assert!(knows, "{document}: `{code}`: {}", run.stderr);
            checked.insert(command.to_owned());
        }
    }
    assert!(checked.len() > 10, "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journeys_of_the_readme_run_as_they_are_written() {
    let Some((world, _turn)) = world().await else { return };
    let mut sandbox = Sandbox::new();
    for folder in ["conf", "sql", "users", "seed"] {
        sandbox.copy_from_repository(folder);
    }
    let bin_dir = postgres::newest_bin_dir();
    sandbox.set("SEEDBED_ENGINE_BIN_DIR", bin_dir.to_str().expect("UTF-8"));
    let text = text("README.md");
    let written = |command: &str| {
        assert!(
            text.contains(&format!("`{command}`")) || text.contains(&format!("\n{command}\n")),
            "{command}"
        );
        command.strip_prefix("seedbed ").unwrap_or(command).to_owned()
    };
    let run = |command: &str| {
        let args: Vec<&str> = command.split(' ').chain(["--set", "engine.kind=native"]).collect();
        sandbox.run(&args).succeeds()
    };
    run(&written("seedbed up"));
    run(&written("seedbed reset"));
    let list = sandbox.run(&["snapshot", "list", "--json"]).succeeds().json();
    let id = list["result"][0]["id"].as_str().expect("the sample").to_owned();
    run(&written("seedbed seed --snapshot ID").replace("ID", &id));

    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(b"copy factory.notes from stdin;\n1\tfrom a file\n\\.\n").expect("in memory");
    sandbox.write("x.sql.gz", zip.finish().expect("in memory"));
    let url = run("url").stdout;
    let target = seedbed_target(url.trim());
    postgres::run_sql(&target, "create table factory.notes (id int, note text)").await;
    run(&written("seed --file x.sql.gz"));
    let notes = postgres::query_text(&target, "select note from factory.notes").await;
    assert_eq!(notes, "from a file");

    run(&written("seedbed ci"));
    let command = written("ci -- COMMAND");
    let command = command.strip_suffix("-- COMMAND").expect("as it is written").trim();
    let test = "test -n \"$DATABASE_URL\" && test -n \"$PGPORT\" && exit 7";
    let mut args: Vec<&str> = command.split(' ').collect();
    args.extend(["--set", "engine.kind=native", "--", "/bin/sh", "-c", test]);
    sandbox.run(&args).exits(7);
    run(&written("seedbed config"));

    // The scheduler's, on the machine that reaches production.
    let mut job = world.checkout();
    for (name, value) in world.job_variables() {
        job.set(&name, &value);
    }
    for (name, value) in world.places() {
        job.set(name, &value);
    }
    let create = written("seedbed snapshot create --env prod");
    job.run(&create.split(' ').collect::<Vec<_>>()).succeeds();
    for command in code("deploy/README.md").iter().filter(|code| code.contains("--env prod")) {
        let args: Vec<&str> = command.split(' ').skip(1).collect();
        job.run(&args).succeeds();
    }

    // A repository of one's own.
    let empty = Sandbox::new();
    let init = written("seedbed init");
    empty.run(&[&init]).succeeds();
    assert!(empty.project().join("conf").is_dir());
    let output = empty.command(&["config"]).output().expect(sandbox::PROGRAM);
    empty.ended(&["config"], output).succeeds();
}

/// A connection to what `seedbed url` printed.
fn seedbed_target(url: &str) -> seedbed::pg::Target {
    let url = url::Url::parse(url).expect("a URL");
    let decode = |text: &str| {
        let mut pairs = url::form_urlencoded::parse(text.as_bytes());
        pairs.next().map(|(text, _)| text.into_owned()).unwrap_or_default()
    };
    seedbed::pg::Target {
        host: url.host_str().expect("a host").to_owned(),
        port: url.port().expect("a port"),
        database: url.path().trim_start_matches('/').to_owned(),
        user: decode(url.username()),
        password: url.password().map(|password| decode(password).into()),
        ssl_mode: seedbed::pg::SslMode::Disable,
        ssl_root_cert: None,
        ssl_client: None,
        settings: Vec::new(),
    }
}
