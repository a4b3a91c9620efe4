//! Scripts that are programs: `V2__x.sh`, `.bash`, `.py`, `.ps1`, `.cmd`, `.bat`, or no ending.
//!
//! They are given the connection and the placeholders as variables, with Flyway's names; what they
//! write is shown, and an exit code other than 0 is a failure.

use std::process::Stdio;

use secrecy::ExposeSecret;

use super::Error;
use super::apply::Run;
use super::resolve::shown;
use super::script::Script;

/// Runs the program to its end.
///
/// # Errors
/// [`Error::Program`], [`Error::Interrupted`].
pub(super) async fn run(run: &Run<'_>, script: &Script) -> Result<(), Error> {
    let path = shown(&script.path, &run.ctx.config.project).to_owned();
    let fail =
        |reason: String| Error::Program { path: path.clone(), reason, left: super::Left::Nothing };
    let mut command = command(script);
    command
        .current_dir(&run.ctx.config.project)
        .envs(variables(run))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::select! {
        biased;
        () = run.ctx.cancel.cancelled() => return Err(Error::Interrupted),
        output = command.output() => output.map_err(|error| fail(error.to_string()))?,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    for line in out.lines().chain(err.lines()) {
        run.ctx.report.detail(format!("`{}` says: {line}", script.script));
    }
    if output.status.success() {
        return Ok(());
    }
    let said = [err, out].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let last = said.lines().last().unwrap_or("it says nothing").to_owned();
    Err(fail(format!("ended with {}: {last}", output.status)))
}

fn command(script: &Script) -> tokio::process::Command {
    let extension = script.path.extension().map(str::to_ascii_lowercase);
    let through = |program: &str, first: &[&str]| {
        let mut command = tokio::process::Command::new(program);
        command.args(first).arg(&script.path);
        command
    };
    match extension.as_deref() {
        Some("bash") => through("bash", &[]),
        Some("py") => through("python3", &[]),
        Some("ps1") => through("pwsh", &["-File"]),
        Some("cmd" | "bat") => through("cmd", &["/c"]),
        _ => through("sh", &[]),
    }
}

/// `FLYWAY_URL`, `FLYWAY_USER`, `FLYWAY_PASSWORD`, and `FP__name__` for each placeholder.
fn variables(run: &Run<'_>) -> Vec<(String, String)> {
    let target = run.target;
    let host =
        if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let url = format!("jdbc:postgresql://{host}:{}/{}", target.port, target.database);
    let mut variables =
        vec![("FLYWAY_URL".to_owned(), url), ("FLYWAY_USER".to_owned(), target.user.clone())];
    if let Some(password) = &target.password {
        variables.push(("FLYWAY_PASSWORD".to_owned(), password.expose_secret().to_owned()));
    }
    for (name, value) in run.scripts.placeholders.all() {
        let name: String =
            name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        variables.push((format!("FP__{name}__"), value.to_owned()));
    }
    variables
}
