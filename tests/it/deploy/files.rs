//! Files of `deploy/` against the schemas and programs of those who read them.

use std::process::Command;

use serde_json::Value;

use super::{file, text, words, yaml};
use crate::harness::{Sandbox, python_tool, require, sandbox};

/// Runs a checker on files; it must be content.
fn checks(tool: &str, args: &[&str], files: &[&str]) {
    let program = python_tool(tool);
    if !require(&format!("{tool} (installed by scripts/test)"), program.is_some()) {
        return;
    }
    let Some(program) = program else { return };
    let output = Command::new(program)
        .args(args)
        .args(files.iter().map(|path| file(path)))
        .output()
        .expect("it was found");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_workflows_are_what_github_reads() {
    let files = ["deploy/github/ci.yml", "deploy/github/snapshot.yml"];
    checks("check-jsonschema", &["--builtin-schema", "vendor.github-workflows"], &files);
    checks(
        "check-jsonschema",
        &["--builtin-schema", "custom.github-workflows-require-timeout"],
        &files,
    );
}

#[test]
fn the_cron_jobs_are_what_kubernetes_reads() {
    checks("kubernetes-validate", &["--strict"], &["deploy/kubernetes/snapshot.yaml"]);
    checks(
        "kubernetes-validate",
        &["--strict", "--kubernetes-version", "1.28.0"],
        &["deploy/kubernetes/snapshot.yaml"],
    );
}

#[test]
fn the_workflows_have_no_right_but_to_read_the_repository() {
    for path in ["deploy/github/ci.yml", "deploy/github/snapshot.yml"] {
        let Some(documents) = yaml(path) else { return };
        assert_eq!(documents[0]["permissions"], serde_json::json!({ "contents": "read" }));
        for job in documents[0]["jobs"].as_object().expect("jobs").values() {
            assert_eq!(job["permissions"], Value::Null, "{path}");
            let steps = job["steps"].as_array().expect("steps");
            let checkout = steps.iter().find(|step| {
                step["uses"].as_str().is_some_and(|uses| uses.starts_with("actions/checkout@"))
            });
            assert_eq!(checkout.expect("a checkout")["with"]["persist-credentials"], false);
        }
    }
}

#[test]
fn the_pods_have_no_capability_no_token_and_a_root_that_cannot_be_written() {
    let Some(documents) = yaml("deploy/kubernetes/snapshot.yaml") else { return };
    let account = documents.iter().find(|document| document["kind"] == "ServiceAccount");
    assert_eq!(account.expect("an account")["automountServiceAccountToken"], false);
    for job in documents.iter().filter(|document| document["kind"] == "CronJob") {
        let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(job["spec"]["concurrencyPolicy"], "Forbid");
        for container in super::jobs::containers(job) {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"]);
        }
    }
}

#[test]
fn the_units_are_what_systemd_reads() {
    let there = Command::new("systemd-analyze").arg("--version").output().is_ok();
    if !require("systemd-analyze (installed by scripts/test)", there) {
        return;
    }
    let sandbox = Sandbox::new();
    let service = text("deploy/systemd/seedbed-snapshot.service");
    // It looks whether the program is there.
    let service = service.replace("/usr/local/bin/seedbed", sandbox::PROGRAM);
    sandbox.write("seedbed-snapshot.service", &service);
    sandbox.write("seedbed-snapshot.timer", text("deploy/systemd/seedbed-snapshot.timer"));
    let analyze = |args: &[&str]| {
        let mut command = sandbox.other_command("systemd-analyze");
        command.args(args).env("SYSTEMD_COLORS", "0");
        let output = command.output().expect("it was found");
        sandbox.ended(args, output).succeeds()
    };
    let run =
        analyze(&["verify", "--man=no", "seedbed-snapshot.service", "seedbed-snapshot.timer"]);
    assert_eq!(run.stderr, "", "an unknown key is only a warning there");
    // 0.0 is a service that may nothing, 9.6 one without any limit.
    analyze(&["security", "--offline=true", "--threshold=20", "seedbed-snapshot.service"]);
    let timer = sandbox.read("seedbed-snapshot.timer");
    let when = timer.lines().find_map(|line| line.strip_prefix("OnCalendar="));
    analyze(&["calendar", when.expect("a time")]);
}

/// The actions of all statements that allow something, with their resources.
fn allowed(path: &str) -> Vec<(String, String)> {
    let policy: Value = serde_json::from_str(&text(path)).expect("a policy is JSON");
    assert_eq!(policy["Version"], "2012-10-17");
    let mut allowed = Vec::new();
    for statement in policy["Statement"].as_array().expect("statements") {
        if statement["Effect"] != "Allow" {
            continue;
        }
        let resources = match &statement["Resource"] {
            Value::String(resource) => vec![resource.as_str()],
            list => words(list),
        };
        let actions = match &statement["Action"] {
            Value::String(action) => vec![action.as_str()],
            list => words(list),
        };
        // A listing is of the bucket; only its condition keeps it to the prefix.
        if actions.iter().any(|action| action.starts_with("s3:ListBucket")) {
            let prefix = &statement["Condition"]["StringLike"]["s3:prefix"];
            assert_eq!(words(prefix), ["factory/*"], "{path}");
        }
        for resource in resources {
            let pair = |action: &&str| ((*action).to_owned(), resource.to_owned());
            allowed.extend(actions.iter().map(pair));
        }
    }
    allowed.sort();
    allowed
}

#[test]
fn the_policies_allow_what_the_two_jobs_need_and_no_more() {
    let (objects, bucket) =
        ("arn:aws:s3:::acme-snapshots/factory/*", "arn:aws:s3:::acme-snapshots");
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(action, on)| ((*action).to_owned(), (*on).to_owned())).collect()
    };
    assert_eq!(
        allowed("deploy/aws/writer-policy.json"),
        // Manifests and the notes of `prune`: what is there, and no row of it.
        pairs(&[
            ("s3:GetObject", "arn:aws:s3:::acme-snapshots/factory/prune/*"),
            ("s3:GetObject", "arn:aws:s3:::acme-snapshots/factory/snapshots/*"),
            ("s3:ListBucket", bucket),
            ("s3:PutObject", objects),
            ("s3:PutObjectTagging", objects),
        ])
    );
    assert_eq!(
        allowed("deploy/aws/reader-policy.json"),
        pairs(&[
            ("s3:GetObject", objects),
            ("s3:GetObjectTagging", objects),
            ("s3:ListBucket", bucket),
        ])
    );
}

#[test]
fn the_page_about_rights_shows_the_policies_and_the_role_as_they_are() {
    let page = text("docs/iam.md");
    for file in ["deploy/aws/writer-policy.json", "deploy/aws/reader-policy.json"] {
        let block = format!("```json\n{}\n```", text(file).trim_end());
        assert!(page.contains(&block), "docs/iam.md does not show {file} as it is");
    }
    let statements: Vec<String> = text("deploy/snapshot-role.sql")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("--"))
        .map(str::to_owned)
        .collect();
    let block = format!("```sql\n{}\n```", statements.join("\n"));
    assert!(page.contains(&block), "docs/iam.md does not show the role as it is");
}
