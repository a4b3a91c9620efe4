//! The two rights: who may replace a database, who may deploy to one (DESIGN §11).
//!
//! *Replace* is for databases that this tool made, on a server that it started, a loopback one or one
//! marked `disposable`; never in a protected environment, nor on a server that a snapshot names as its
//! source or that a protected environment of the project names. No flag overrides that. *Deploy* is open everywhere; in a protected environment it shows
//! and asks.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{self, Branch, Config, EngineKind, Protected};
use crate::context::Context;
use crate::engine::Server;
use crate::error::Error;
use crate::pg::{self, Target};
use crate::report;

/// A resolver that does not answer within this time does not know the name either.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// The part of the replace rule that the configuration alone decides. Asked before a server is
/// started or even looked for.
///
/// # Errors
/// [`Error::Refused`].
pub fn replace_in_environment(ctx: &Context, verb: &str) -> Result<(), Error> {
    let database = &ctx.config.database;
    if ctx.config.protected {
        return Err(protected(verb, &ctx.config.environment));
    }
    if database.named && !ctx.config.disposable && !database.target().is_loopback() {
        return Err(Error::Refused {
            message: format!(
                "`{verb}` builds and replaces databases, and `{}` is neither a server that seedbed \
                 started nor on this machine",
                database.host
            ),
            hint: Some(format!(
                "if its databases may be thrown away: `disposable = true` in conf/{}.toml",
                ctx.config.environment
            )),
        });
    }
    Ok(())
}

/// Whether a branch can have an environment of its own: that is a server that we start.
///
/// # Errors
/// [`Error::Refused`].
pub fn branch(config: &Config, branch: &Branch) -> Result<(), Error> {
    let database = &config.database;
    let why = if config.protected {
        "it is protected: it is only ever read".to_owned()
    } else if config.engine.kind == EngineKind::External {
        "its server is not started by seedbed".to_owned()
    } else if database.named && !database.target().is_loopback() {
        format!("its server is `{}`, and not started by seedbed", database.host)
    } else {
        return Ok(());
    };
    Err(Error::Refused {
        message: format!(
            "environment `{}` has no branches, and `{}` is asked for: {why}",
            config.environment,
            branch.name()
        ),
        hint: Some("leave the branch out: `--branch default`".to_owned()),
    })
}

/// Why `verb` does not run in this environment.
pub(crate) fn protected(verb: &str, environment: &str) -> Error {
    Error::Refused {
        message: format!(
            "`{verb}` builds and replaces databases, and environment `{environment}` is protected: \
             it is only ever read"
        ),
        hint: Some(format!("use a local environment: `seedbed {verb} --env dev`")),
    }
}

/// The part that depends on the server: ours, or none that anything else calls production.
///
/// # Errors
/// [`Error::Refused`]; what is wrong with the files of the other environments.
pub async fn replace_on_server(
    ctx: &Context,
    server: &Server,
    sources: &[String],
    verb: &str,
) -> Result<(), Error> {
    if server.started_by_us {
        return Ok(());
    }
    replace_at(ctx, &server.admin, &server.system_identifier, sources, verb).await
}

/// [`replace_on_server`] for a server that is none of ours. `system_identifier` is empty where it
/// may not be read.
///
/// # Errors
/// As [`replace_on_server`].
pub async fn replace_at(
    ctx: &Context,
    target: &Target,
    system_identifier: &str,
    sources: &[String],
    verb: &str,
) -> Result<(), Error> {
    let elsewhere = || Some("point the environment at another server: `seedbed config`".to_owned());
    if sources.iter().any(|source| source == system_identifier) {
        return Err(Error::Refused {
            message: format!(
                "`{verb}` builds and replaces databases, and this server (system identifier {}) is \
                 the source of a snapshot",
                system_identifier
            ),
            hint: elsewhere(),
        });
    }
    if system_identifier.is_empty() && !ctx.config.disposable {
        return Err(Error::Refused {
            message: format!(
                "`{verb}` builds and replaces databases, and `{}` may not read which server this is: \
                 it could be the source of a snapshot",
                target.user
            ),
            hint: Some(format!(
                "as its superuser: `grant execute on function pg_control_system to {}`",
                pg::quote::ident(&target.user)
            )),
        });
    }
    let ours = Place::of(&target.host, target.port).await;
    for protected in config::protected_elsewhere(&ctx.env, &ctx.config)? {
        if protected.port != target.port {
            continue;
        }
        if ours.is_same(&Place::of(&protected.host, protected.port).await) {
            return Err(Error::Refused {
                message: refused_as(&protected, verb),
                hint: elsewhere(),
            });
        }
    }
    Ok(())
}

fn refused_as(protected: &Protected, verb: &str) -> String {
    let Protected { environment, host, port, database } = protected;
    format!(
        "`{verb}` builds and replaces databases, and `{host}:{port}` is the server of the protected \
         environment `{environment}` (database `{database}`)"
    )
}

/// Where a server is, as far as names and addresses tell.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Without its case and a final dot.
    host: String,
    port: u16,
    /// What the name stands for; every loopback address is the same one.
    addresses: BTreeSet<IpAddr>,
}

impl Place {
    async fn of(host: &str, port: u16) -> Self {
        let looked_up = tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, port)));
        let addresses = match looked_up.await {
            Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
            // A name that cannot be resolved here is still compared as it is written.
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        Self::new(host, port, &addresses)
    }

    fn new(host: &str, port: u16, addresses: &[IpAddr]) -> Self {
        const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let mut addresses: BTreeSet<IpAddr> = addresses
            .iter()
            .map(|address| if address.is_loopback() { LOOPBACK } else { address.to_canonical() })
            .collect();
        // A socket's folder is on this machine.
        if host.starts_with('/') {
            addresses.insert(LOOPBACK);
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        Self { host, port, addresses }
    }

    fn is_same(&self, other: &Self) -> bool {
        let shared = self.addresses.intersection(&other.addresses).next().is_some();
        self.port == other.port && (self.host == other.host || shared)
    }
}

/// Before a deploy verb changes a protected environment: shows host, database and plan, then asks.
///
/// # Errors
/// [`Error::Refused`] when the answer is no, or when nobody can answer and `--yes` is absent.
pub fn deploy(ctx: &Context, target: &Target, verb: &str, plan: &[String]) -> Result<(), Error> {
    if !ctx.config.protected || plan.is_empty() {
        return Ok(());
    }
    ctx.report.note(format!(
        "environment `{}` is protected: database `{}` on `{}:{}`",
        ctx.config.environment, target.database, target.host, target.port
    ));
    for line in plan {
        ctx.report.note(format!("  {line}"));
    }
    if ctx.yes {
        return Ok(());
    }
    if !ctx.env.stdin_is_terminal {
        return Err(Error::Refused {
            message: format!(
                "`{verb}` on the protected environment `{}` needs an answer, and nobody is there \
                 to give it",
                ctx.config.environment
            ),
            hint: Some(format!(
                "look at the plan, then run `seedbed {verb} --env {} --yes`",
                ctx.config.environment
            )),
        });
    }
    if report::ask(&format!("run `{verb}` there?")) {
        return Ok(());
    }
    Err(Error::Refused { message: format!("`{verb}` was not confirmed"), hint: None })
}

#[cfg(test)]
mod tests {
    use super::Place;

    fn place(host: &str, port: u16, addresses: &[&str]) -> Place {
        let addresses: Vec<_> =
            addresses.iter().map(|text| text.parse().expect("an address")).collect();
        Place::new(host, port, &addresses)
    }

    #[test]
    fn a_server_is_known_by_any_of_its_names() {
        let source = place("db.factory.example", 5432, &["10.1.2.3", "fd00::3"]);
        let table = [
            (place("DB.factory.example.", 5432, &[]), true),
            (place("replica.example", 5432, &["fd00::3"]), true),
            (place("10.1.2.3", 5432, &["10.1.2.3"]), true),
            (place("mapped", 5432, &["::ffff:10.1.2.3"]), true),
            (place("db.factory.example", 5433, &["10.1.2.3"]), false),
            (place("other.example", 5432, &["10.1.2.4"]), false),
            (place("unknown.example", 5432, &[]), false),
        ];
        for (other, same) in table {
            assert_eq!(source.is_same(&other), same, "{other:?}");
        }
    }

    #[test]
    fn loopback_is_one_place() {
        let tunnel = place("localhost", 5432, &["127.0.0.1", "::1"]);
        for other in [
            place("127.0.0.1", 5432, &["127.0.0.1"]),
            place("::1", 5432, &["::1"]),
            place("127.8.8.8", 5432, &["127.8.8.8"]),
            place("/var/run/postgresql", 5432, &[]),
        ] {
            assert!(tunnel.is_same(&other), "{other:?}");
        }
    }
}
