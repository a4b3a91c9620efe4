//! From the command line to a journey, and from its outcome to standard output and an exit code.

mod args;
mod db;
mod flyway;
mod run;
mod show;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use args::Cli;

use crate::config;
use crate::context::Context;
use crate::engine;
use crate::env::Env;
use crate::error::{Error, Exit};
use crate::guard;
use crate::report::{self, Failure, Reporter, json};

/// What a command ended with: a result to print, and an exit code that may still be a failure (a
/// check that did not hold).
pub(crate) struct Outcome {
    /// For people, without a final newline.
    pub text: String,
    /// For machines.
    pub json: serde_json::Value,
    pub exit: u8,
    /// What it failed with after it had done something; `json` stands beside it.
    pub failure: Option<Error>,
}

impl Outcome {
    pub(crate) fn done(text: String, json: impl serde::Serialize) -> Result<Self, Error> {
        let json = serde_json::to_value(json)
            .map_err(|error| Error::CommandLine(format!("write JSON: {error}")))?;
        Ok(Self { text, json, exit: Exit::Done as u8, failure: None })
    }

    /// With what was done before the failure, for machines.
    pub(crate) fn failed(json: impl serde::Serialize, failure: Error) -> Result<Self, Error> {
        let exit = failure.exit() as u8;
        let done = Self::done(String::new(), json)?;
        Ok(Self { exit, failure: Some(failure), ..done })
    }
}

/// Runs the program on the process's own arguments.
pub fn main() -> ExitCode {
    let env = Env::from_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are answers, not mistakes; clap knows where each is printed.
            let code = if error.use_stderr() { Exit::CommandLine } else { Exit::Done };
            let _ = error.print();
            if error.use_stderr() && std::env::args().any(|argument| argument == "--json") {
                let text = error.render().to_string();
                let message = text.trim().trim_start_matches("error: ").to_owned();
                let failure = Failure::of(&Error::CommandLine(message));
                let _ = report::stdout(&json::document::<()>(None, Some(&failure)));
            }
            return ExitCode::from(code as u8);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report::stderr(&format!("error: start threads: {error}\n"));
            return ExitCode::from(Exit::Bug as u8);
        }
    };
    let code = runtime.block_on(run_with_signals(&cli, env));
    // Blocking work that was abandoned (a hash, a compression) must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn run_with_signals(cli: &Cli, env: Env) -> u8 {
    let (cancel, hurry) = (CancellationToken::new(), CancellationToken::new());
    let signals = watch_signals(cancel.clone(), hurry.clone());
    let look = cli.global.look();
    let color = look.color.on_stderr(&env);
    let reporter = report::reporter(&env, look);
    let began = Timestamp::now();
    let result = tokio::select! {
        biased;
        result = dispatch(cli, env, &reporter, cancel, began) => result,
        // What was begun is not undone then; the next run does.
        () = hurry.cancelled() => Err(Error::Interrupted),
    };
    drop(reporter);
    if let Some(signals) = signals {
        signals.abort();
    }
    let (done, error) = match result {
        Ok(Outcome { json, failure: Some(error), .. }) => (Some(json), error),
        Ok(outcome) => match print(cli, outcome) {
            Ok(exit) => return exit,
            Err(error) => (None, error),
        },
        Err(error) => (None, error),
    };
    let failure = Failure::of(&error);
    report::stderr(&failure.text(color));
    if cli.global.json {
        // Nobody is left to tell when standard output is gone as well.
        let _ = report::stdout(&json::document(done.as_ref(), Some(&failure)));
    }
    error.exit() as u8
}

fn print(cli: &Cli, outcome: Outcome) -> Result<u8, Error> {
    if cli.global.json {
        report::stdout(&json::document(Some(&outcome.json), None))?;
    } else if !outcome.text.is_empty() {
        report::stdout(&format!("{}\n", outcome.text))?;
    }
    Ok(outcome.exit)
}

async fn dispatch(
    cli: &Cli,
    env: Env,
    reporter: &Reporter,
    cancel: CancellationToken,
    began: Timestamp,
) -> Result<Outcome, Error> {
    if let Some(outcome) = run::without_project(&cli.command, &cli.global, &env)? {
        return Ok(outcome);
    }
    let flags = config::Flags {
        project: cli.global.project.clone(),
        env: cli.global.env.clone(),
        overrides: run::overrides(&cli.command, &cli.global)?,
    };
    let config = match config::load(&env, &flags) {
        Ok(config) => config,
        Err(error) => {
            // A protected environment is refused as such, also where its secrets are not at hand.
            if let Some(verb) = cli.command.replaces()
                && let Some(environment) = config::protected_environment(&env, &flags)
            {
                return Err(guard::protected(verb, &environment));
            }
            return Err(error.into());
        }
    };
    let config = match config::branch(&env, cli.global.branch.as_deref(), &config.project)? {
        Some(branch) if !cli.command.is_about_all() => {
            guard::branch(&config, &branch)?;
            config.on_branch(branch)
        }
        Some(_) | None => config,
    };
    for note in &config.notes {
        reporter.note(note.clone());
    }
    let ctx = Context {
        config: Arc::new(config),
        env: Arc::new(env),
        report: reporter.clone(),
        cancel,
        yes: cli.global.yes,
    };
    match run::command(&ctx, &cli.command, &cli.global).await {
        Ok(outcome) => {
            let failure = match outcome.failure {
                Some(error) => Some(with_hint(&ctx, error, began).await),
                None => None,
            };
            Ok(Outcome { failure, ..outcome })
        }
        Err(error) => Err(with_hint(&ctx, error, began).await),
    }
}

/// The same with what is known of the environment's server: the place that is full, how it has crashed.
async fn with_hint(ctx: &Context, error: Error, began: Timestamp) -> Error {
    let hint = if error.is_about_space() {
        engine::room::hint(ctx)
    } else if error.is_about_a_crash() {
        engine::crash::hint(ctx, began).await
    } else {
        None
    };
    match hint {
        Some(hint) => Error::Hinted { error: Box::new(error), hint },
        None => error,
    }
}

/// The first SIGINT or SIGTERM asks for an orderly end, the second for one at once; installed before any
/// resource exists.
fn watch_signals(
    cancel: CancellationToken,
    hurry: CancellationToken,
) -> Option<tokio::task::JoinHandle<()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        Some(tokio::spawn(async move {
            for token in [cancel, hurry] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        }))
    }
    #[cfg(not(unix))]
    {
        Some(tokio::spawn(async move {
            for token in [cancel, hurry] {
                if tokio::signal::ctrl_c().await.is_err() {
                    break;
                }
                token.cancel();
            }
        }))
    }
}
