//! `db create | list | drop`: options to a call, the call's outcome to text and JSON.

use std::time::Duration;

use super::{Outcome, args};
use crate::config;
use crate::context::Context;
use crate::error::Error;
use crate::lend::{self, Listed, Which, Wish};
use crate::report::format::{self, Align};

/// Runs one verb.
pub(super) async fn db(ctx: &Context, verb: &args::Db) -> Result<Outcome, Error> {
    match verb {
        args::Db::Create { count, ttl, label } => {
            let ttl_seconds = config::read_duration(ttl).ok_or_else(|| {
                Error::CommandLine(format!(
                    "`--ttl {ttl}`: expected a number and a unit, as 90m, 12h or 2d"
                ))
            })?;
            let owner = label.clone().unwrap_or_else(asking_process);
            let lent = lend::create(ctx, &Wish { count: *count, ttl_seconds, owner }).await?;
            let urls: Vec<&str> = lent.iter().map(|lent| lent.url.as_str()).collect();
            Outcome::done(urls.join("\n"), serde_json::json!({ "databases": lent }))
        }
        args::Db::List => {
            let listed = lend::list(ctx).await?;
            Outcome::done(table(&listed), serde_json::json!({ "databases": listed }))
        }
        args::Db::Drop { databases, all } => {
            let which = if *all { Which::All } else { Which::Named(databases.clone()) };
            let dropped = lend::drop(ctx, &which).await?;
            let text = match dropped.as_slice() {
                [] => "no database is lent".to_owned(),
                names => format!("dropped {}", names.join(", ")),
            };
            Outcome::done(text, serde_json::json!({ "dropped": dropped }))
        }
    }
}

/// This process is gone when somebody reads it; the one that asked tells more.
fn asking_process() -> String {
    #[cfg(unix)]
    {
        format!("process {}", std::os::unix::process::parent_id())
    }
    #[cfg(not(unix))]
    {
        format!("process {}", std::process::id())
    }
}

fn table(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "no database is lent: `seedbed db create` lends one".to_owned();
    }
    let rows: Vec<[String; 6]> = listed
        .iter()
        .map(|lent| {
            [
                lent.name.clone(),
                format::age(Duration::from_secs(lent.age_seconds)),
                match lent.left_seconds {
                    None => "never".to_owned(),
                    Some(0) => "now".to_owned(),
                    Some(left) => format!("in {}", format::age(Duration::from_secs(left))),
                },
                lent.sessions.to_string(),
                format::bytes(u64::try_from(lent.bytes).unwrap_or(0)),
                lent.owner.clone(),
            ]
        })
        .collect();
    let columns = [
        ("database", Align::Left),
        ("age", Align::Right),
        ("ends", Align::Left),
        ("sessions", Align::Right),
        ("size", Align::Right),
        ("lent to", Align::Left),
    ];
    format::table(columns, &rows).trim_end().to_owned()
}
