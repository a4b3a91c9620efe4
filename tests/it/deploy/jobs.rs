//! Cron, systemd, Kubernetes, GitHub: each command as its scheduler runs it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::world::{PASSWORD, World, world};
use super::{file, text, words, yaml};
use crate::harness::{self, Run, Sandbox, postgres, sandbox, watchdog};

/// A command with these variables and nothing else.
fn bare(program: &str, args: &[&str], variables: &BTreeMap<String, String>) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(variables).stdin(Stdio::null());
    command
}

fn run(sandbox: &Sandbox, mut command: Command, what: &str) -> Run {
    let run = sandbox.ended(&[what], command.output().expect("the program is there"));
    for shown in [&run.stdout, &run.stderr] {
        assert!(!shown.contains(PASSWORD), "{what}: {shown}");
    }
    run
}

/// How many manifests the bucket holds, as a reader sees it.
fn listed(world: &World) -> usize {
    let mut sandbox = world.checkout();
    reads(world, &mut sandbox);
    let run = sandbox.run(&["snapshot", "list", "--env", "ci", "--json"]).succeeds();
    run.json()["result"].as_array().map_or(0, Vec::len)
}

/// Lets the sandbox's runs read the bucket.
fn reads(world: &World, sandbox: &mut Sandbox) {
    sandbox.set("POSTGRES_PASSWORD", "unused");
    sandbox.set("SEEDBED_STORE_URL", "s3://acme-snapshots/factory");
    sandbox.set("AWS_REGION", "eu-central-1");
    sandbox.set("AWS_ACCESS_KEY_ID", &world.reader.access_key_id);
    sandbox.set("AWS_SECRET_ACCESS_KEY", &world.reader.secret_access_key);
    for (name, value) in world.places() {
        if name.starts_with("SEEDBED_STORE") {
            sandbox.set(name, &value);
        }
    }
}

/// A line of the crontab.
#[derive(Debug)]
struct CronJob {
    schedule: String,
    account: String,
    command: String,
}

/// The variables of the crontab and its jobs, with the machine's folders in the sandbox.
fn crontab(sandbox: &Sandbox) -> (BTreeMap<String, String>, Vec<CronJob>) {
    let (mut variables, mut jobs) = (BTreeMap::new(), Vec::new());
    let bin = sandbox.project().join("bin");
    let here = text("deploy/crontab")
        .replace("/usr/local/bin", bin.as_str())
        .replace("/etc/seedbed", sandbox.project().as_str())
        .replace("/var/cache/seedbed", sandbox.cache().as_str())
        .replace("/srv/factory", sandbox.project().as_str());
    for line in here.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((name, value)) = line.split_once('=').filter(|_| first.contains('=')) {
            variables.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let mut fields = line.splitn(2, "  ");
        let schedule = fields.next().unwrap_or_default().to_owned();
        let (account, command) =
            fields.next().and_then(|rest| rest.split_once("  ")).expect("account, command");
        let (account, command) = (account.to_owned(), command.to_owned());
        jobs.push(CronJob { schedule, account, command });
    }
    (variables, jobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crontab_takes_a_snapshot_and_looks_whether_there_is_one() {
    let Some((world, _turn)) = world().await else { return };
    let sandbox = world.checkout();
    sandbox.write("job.env", world.job_env());
    let (mut variables, jobs) = crontab(&sandbox);
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    for CronJob { schedule, account, command } in &jobs {
        assert_eq!(schedule.split(' ').count(), 5, "{schedule}");
        assert_eq!(account, "seedbed");
        assert!(!command.contains('%'), "cron takes % for the end of the line");
    }
    let shell = variables.remove("SHELL").expect("the shell is named");
    variables.extend(world.places().map_into());
    variables.insert("HOME".to_owned(), "/nonexistent".to_owned());
    let before = listed(world);
    for CronJob { command, .. } in &jobs {
        let mut job = bare(&shell, &["-c", command], &variables);
        // Cron starts in the account's home, which is no project.
        job.current_dir("/");
        let run = run(&sandbox, job, command).succeeds();
        // Cron mails whatever is written: nothing to tell, no mail.
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{command}");
    }
    assert_eq!(listed(world), before + 1);
    let log = std::fs::read_to_string(sandbox.cache().join("snapshots.log")).expect("the log");
    let document: Value = serde_json::from_str(&log).expect("one document");
    assert_eq!(document["database"], "factory");

    // A run that fails is mailed: one line that says what, and what to do.
    sandbox.write("job.env", world.job_env().replace(PASSWORD, "an old one"));
    let mut job = bare(&shell, &["-c", &jobs[0].command], &variables);
    job.current_dir("/");
    let run = run(&sandbox, job, "with an old password");
    assert_eq!(run.code, Some(4), "{}", run.stderr);
    let first = run.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: ") && first.contains("password"), "{}", run.stderr);
    assert_eq!(listed(world), before + 1);
}

/// Values of a unit's section, several of one name in their order.
fn unit<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systemd_unit_takes_a_snapshot_and_sees_that_it_is_there() {
    let Some((world, _turn)) = world().await else { return };
    let sandbox = world.checkout();
    let here = text("deploy/systemd/seedbed-snapshot.service")
        .replace("/srv/factory", sandbox.project().as_str())
        .replace("%C/seedbed", sandbox.cache().as_str())
        .replace("/usr/local/bin/seedbed", sandbox::PROGRAM);
    assert_eq!(unit(&here, "EnvironmentFile"), ["/etc/seedbed/job.env"]);
    let mut variables = world.job_variables();
    for pair in unit(&here, "Environment").iter().flat_map(|line| line.split(' ')) {
        let (name, value) = pair.split_once('=').expect("NAME=value");
        variables.insert(name.to_owned(), value.to_owned());
    }
    variables.extend(world.places().map_into());
    // systemd's own default.
    variables.insert("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned());
    let folder = unit(&here, "WorkingDirectory")[0].to_owned();
    let before = listed(world);
    let commands: Vec<&str> =
        unit(&here, "ExecStart").into_iter().chain(unit(&here, "ExecStartPost")).collect();
    assert_eq!(commands.len(), 2);
    for command in commands {
        // systemd splits at blanks; there are no quotes in these.
        assert!(!command.contains(['"', '\'', '$']), "{command}");
        let words: Vec<&str> = command.split(' ').collect();
        let mut job = bare(words[0], &words[1..], &variables);
        job.current_dir(&folder);
        let run = run(&sandbox, job, command).succeeds();
        if command.contains("--json") {
            assert_eq!(run.json()["database"], "factory");
        }
    }
    assert_eq!(listed(world), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cron_jobs_of_kubernetes_take_a_snapshot_and_look_whether_there_is_one() {
    let Some(documents) = yaml("deploy/kubernetes/snapshot.yaml") else { return };
    let Some((world, _turn)) = world().await else { return };
    let sandbox = world.checkout();
    let mut variables = world.job_variables();
    variables.extend(world.places().map_into());
    variables.insert("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned());
    variables.insert("HOME".to_owned(), "/tmp".to_owned());
    variables.insert("SEEDBED_CACHE_DIR".to_owned(), sandbox.cache().into_string());
    let before = listed(world);
    let mut jobs = 0;
    for document in documents.iter().filter(|document| document["kind"] == "CronJob") {
        for container in containers(document) {
            jobs += 1;
            let args = words(&container["args"]);
            let mut job = bare(sandbox::PROGRAM, &args, &variables);
            job.current_dir(sandbox.project());
            run(&sandbox, job, &args.join(" ")).succeeds();
        }
    }
    assert_eq!(jobs, 2);
    assert_eq!(listed(world), before + 1);
}

pub(super) fn containers(job: &Value) -> &Vec<Value> {
    job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("a CronJob has containers")
}

/// `${{ secrets.NAME }}` and `${{ vars.NAME }}` filled in.
fn evaluated(world: &World, text: &str, reader: bool) -> String {
    let account = if reader { &world.reader } else { &world.writer };
    let prefix = if reader { "SNAPSHOT_READER" } else { "SNAPSHOT_WRITER" };
    let values = [
        ("secrets.FACTORY_DB_PASSWORD".to_owned(), PASSWORD.to_owned()),
        (format!("secrets.{prefix}_KEY_ID"), account.access_key_id.clone()),
        (format!("secrets.{prefix}_SECRET"), account.secret_access_key.clone()),
        ("vars.SEEDBED_STORE_URL".to_owned(), "s3://acme-snapshots/factory".to_owned()),
        ("vars.AWS_REGION".to_owned(), "eu-central-1".to_owned()),
    ];
    let mut out = text.to_owned();
    for (name, value) in values {
        out = out.replace(&format!("${{{{ {name} }}}}"), &value);
    }
    assert!(!out.contains("${{"), "unknown expression: {out}");
    out
}

fn variables(world: &World, env: &Value, reader: bool) -> BTreeMap<String, String> {
    let env = env.as_object().expect("variables");
    let text = |value: &Value| evaluated(world, value.as_str().expect("a string"), reader);
    env.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// Runs the `run` steps of a job as GitHub's runner does: by `bash -e`, in the checkout.
fn steps(
    world: &World,
    sandbox: &Sandbox,
    job: &Value,
    variables: &BTreeMap<String, String>,
    reader: bool,
) -> Vec<Run> {
    let mut runs = Vec::new();
    for step in job["steps"].as_array().expect("a job has steps") {
        let Some(script) = step["run"].as_str() else { continue };
        let script = evaluated(world, script, reader);
        let mut command = bare("/bin/bash", &["-e", "-c", &script], variables);
        command.current_dir(sandbox.project());
        runs.push(run(sandbox, command, &script).succeeds());
    }
    runs
}

/// The runner's own variables and loopback.
fn runner(world: &World, sandbox: &Sandbox, variables: &mut BTreeMap<String, String>) {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", sandbox.project().join("bin"));
    let summary = sandbox.project().join("summary.md").into_string();
    variables.insert("PATH".to_owned(), path);
    variables.insert(
        "HOME".to_owned(),
        sandbox.project().parent().expect("a root").join("home").into_string(),
    );
    variables.insert("GITHUB_STEP_SUMMARY".to_owned(), summary);
    variables.insert("SEEDBED_CACHE_DIR".to_owned(), sandbox.cache().into_string());
    variables
        .extend(world.places().map_into().filter(|(name, _)| name.starts_with("SEEDBED_STORE")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workflow_of_the_snapshot_takes_one_and_sees_that_it_is_there() {
    let Some(documents) = yaml("deploy/github/snapshot.yml") else { return };
    let Some((world, _turn)) = world().await else { return };
    let sandbox = world.checkout();
    let job = &documents[0]["jobs"]["snapshot"];
    let mut variables = variables(world, &job["env"], false);
    runner(world, &sandbox, &mut variables);
    variables.extend(world.places().map_into());
    let before = listed(world);
    let runs = steps(world, &sandbox, job, &variables, false);
    assert_eq!(runs.len(), 2);
    assert_eq!(listed(world), before + 1);
    assert!(runs[0].stdout.contains("of `factory`, schema version 010"), "{}", runs[0].stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workflow_of_a_pull_request_proves_its_migrations_on_the_newest_snapshot() {
    let Some(documents) = yaml("deploy/github/ci.yml") else { return };
    let job = &documents[0]["jobs"]["migrations"];
    let service = &job["services"]["postgres"];
    let image = service["image"].as_str().expect("an image");
    if !has_image(image) {
        return;
    }
    let Some((world, _turn)) = world().await else { return };
    // Somebody took a snapshot before.
    let mut production = world.checkout();
    for (name, value) in world.job_variables() {
        production.set(&name, &value);
    }
    for (name, value) in world.places() {
        production.set(name, &value);
    }
    production.run(&["snapshot", "create", "--env", "prod"]).succeeds();

    let sandbox = world.checkout();
    let mut variables = variables(world, &job["env"], true);
    runner(world, &sandbox, &mut variables);
    let port = start_service(service);
    variables.insert("SEEDBED_DATABASE_PORT".to_owned(), port);
    // The branch brings a script that the snapshot lacks.
    sandbox.write("sql/V011__colour.sql", "alter table factory.machines add colour text;\n");
    let runs = steps(world, &sandbox, job, &variables, true);
    assert_eq!(runs.len(), 2);
    assert!(runs[0].stdout.contains("V011__colour.sql"), "{}", runs[0].stdout);
    assert!(sandbox.read("summary.md").contains("V011__colour.sql"));
    assert!(sandbox.read("seedbed.xml").contains("<testsuite"), "the artifact is there");
}

pub(super) fn has_image(image: &str) -> bool {
    let output = Command::new("docker").args(["image", "inspect", image]).output();
    let there = output.is_ok_and(|output| output.status.success());
    harness::require(&format!("a Docker daemon with the image {image}"), there)
}

/// Starts a service container with the options of the workflow, on a free port, and waits until it is
/// healthy, as the runner does.
fn start_service(service: &Value) -> String {
    let name = harness::unique("seedbed-test-service").replace('_', "-");
    let port = postgres::free_port();
    let ports = words(&service["ports"]);
    let (_, inside) = ports[0].split_once(':').expect("HOST:CONTAINER");
    let mut command = format!("docker run -d --name {name} -p 127.0.0.1:{port}:{inside}");
    for (variable, value) in service["env"].as_object().expect("variables") {
        command.push_str(&format!(" -e {variable}={}", value.as_str().expect("a string")));
    }
    let options = service["options"].as_str().expect("options");
    let image = service["image"].as_str().expect("an image");
    watchdog::at_exit(&format!("docker rm -fv {name}"));
    sh(&format!("{command} {options} {image}"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let state = format!("docker inspect --format '{{{{.State.Health.Status}}}}' {name}");
    while sh(&state) != "healthy" {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            sh(&format!("docker logs {name} 2>&1"))
        );
        std::thread::park_timeout(std::time::Duration::from_millis(200));
    }
    port.to_string()
}

pub(super) fn sh(command: &str) -> String {
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .current_dir(file(""))
        .stdin(Stdio::null())
        .output()
        .expect("every Unix has sh");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Pairs as a map of variables takes them.
trait MapInto {
    fn map_into(self) -> impl Iterator<Item = (String, String)>;
}

impl MapInto for Vec<(&'static str, String)> {
    fn map_into(self) -> impl Iterator<Item = (String, String)> {
        self.into_iter().map(|(name, value)| (name.to_owned(), value))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_is_an_exit_code_a_line_and_a_document() {
    let Some((world, _turn)) = world().await else { return };
    let mut sandbox = world.checkout();
    for (name, value) in world.job_variables() {
        sandbox.set(&name, &value);
    }
    for (name, value) in world.places() {
        sandbox.set(name, &value);
    }
    // A bucket that this account may not write to.
    sandbox.set("AWS_ACCESS_KEY_ID", &world.reader.access_key_id);
    sandbox.set("AWS_SECRET_ACCESS_KEY", &world.reader.secret_access_key);
    let create = ["snapshot", "create", "--env", "prod", "--no-progress", "--json", "--quiet"];
    let run = sandbox.run(&create).exits(9);
    let error = &run.json()["error"];
    assert_eq!(error["kind"], "store");
    let message = error["message"].as_str().expect("words");
    assert!(message.contains("denies `s3:PutObject` on `factory/chunks/"), "{message}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines[0], format!("error: {message}"));
    assert_eq!(lines.iter().filter(|line| line.starts_with("error")).count(), 1, "{lines:?}");
    assert!(lines[1..].iter().all(|line| line.starts_with("  ")), "{lines:?}");

    // Production that does not answer.
    let dead = format!("postgresql://127.0.0.1:{}/factory", postgres::free_port());
    sandbox.set("SEEDBED_DATABASE_URL", &dead);
    let run = sandbox.run(&create).exits(4);
    assert_eq!(run.json()["error"]["kind"], "server");
}

/// The committed sample as if it had been taken long ago.
fn age_the_sample(sandbox: &Sandbox) {
    let folder = sandbox.project().join("seed/snapshots/snapshots");
    let entry = folder.read_dir_utf8().expect("a folder").next().expect("one").expect("readable");
    let name = entry.file_name().to_owned();
    let text = std::fs::read_to_string(entry.path()).expect("a manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    manifest["taken_at"] = Value::from("2020-02-03T04:05:06.000007Z");
    let (_, rest) = name.split_once('_').expect("time, version, history, id");
    std::fs::remove_file(entry.path()).expect("ours");
    let path = folder.join(format!("20200203T040506.000007Z_{rest}"));
    std::fs::write(path, manifest.to_string()).expect("ours");
}

#[test]
fn a_run_that_never_happened_is_noticed_by_the_age_of_the_newest() {
    let sandbox = Sandbox::new();
    sandbox.write("conf/dev.toml", "");
    let look = ["snapshot", "list", "--max-age", "8d"];
    let run = sandbox.run(&look).exits(13);
    assert!(run.stderr.contains("no snapshot is newer than 8d (`--max-age`)"), "{}", run.stderr);

    sandbox.copy_from_repository("seed");
    age_the_sample(&sandbox);
    let run = sandbox.run(&look).exits(13);
    assert!(run.stdout.contains("2020-02-03 04:05:06Z"), "{}", run.stdout);
    let run = sandbox.run(&["snapshot", "list", "--max-age", "8d", "--json", "--quiet"]).exits(13);
    let listed = run.json()["result"].clone();
    assert!(listed[0]["age_seconds"].as_u64() > Some(8 * 86_400), "{listed}");
    // Older than any limit that one would set; a limit that covers it is met.
    sandbox.run(&["snapshot", "list", "--max-age", "36500d"]).succeeds();
    sandbox.run(&["snapshot", "list"]).succeeds();
    let run = sandbox.run(&["snapshot", "list", "--max-age", "8 weeks"]).exits(2);
    assert!(run.stderr.contains("as 8d, 12h or 90m"), "{}", run.stderr);
}
