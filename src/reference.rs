//! `users check` where nothing may be made beside the database: a protected environment, a server of
//! somebody else's. The reference is made on a scratch server.
//!
//! The source is read by one transaction that can only read, and by `pg_dump`. Its schema without
//! privileges, the owners in it and the server's roles without passwords are made again; there the
//! files are carried out. So what the files do not decide is the same on both sides.

use std::sync::Arc;

use bytes::Bytes;

use crate::connect;
use crate::context::Context;
use crate::database::{Locale, Scratch};
use crate::engine::Server;
use crate::error::Error;
use crate::pg::names::DatabaseName;
use crate::pg::tools::Tools;
use crate::pg::{self, Session, quote};
use crate::scratch_server::{self, Home, Purpose};
use crate::snapshot::restore::Refusal;
use crate::snapshot::{schema, source};
use crate::users;

/// Refused statements that are named; the first ones tell what is not here.
const REFUSALS_SHOWN: usize = 5;

/// From this version on PUBLIC may not create in the schema `public` of a new database.
const CLOSED_PUBLIC: i32 = 150_000;

/// Compares the effective privileges in the environment's database with what the files give.
///
/// # Errors
/// When the source cannot be read, no scratch server can be started, or the files cannot be carried out
/// there.
pub(crate) async fn compare_grants(
    ctx: &Context,
    names: &DatabaseName,
) -> Result<users::Drift, Error> {
    let target = connect::database(ctx).await?;
    let step = ctx.report.step(format!("read roles and privileges of `{}`", target.database));
    let source = ctx.until_cancelled(Source::read(ctx, &target, names)).await?;
    step.done(format!("{} roles in the files", source.accounts.roles().len()));

    let major = u32::try_from(source.live.version_num() / 10_000).unwrap_or(0);
    let step = ctx.report.step(format!("read the schema of `{}`", target.database));
    let tools = Tools::find(ctx, major).await?;
    let archive = schema::read(ctx, &target, &tools).await?;
    step.done("");

    ctx.report.note(format!(
        "nothing is made on `{}`: what the files give is tried on a scratch server",
        target.host
    ));
    let purpose = Purpose { home: Home::Folder("check"), verb: "users check", major };
    scratch_server::with(ctx, purpose, async |there, _, server| {
        let Source { facts, accounts, mut live, roles } = source;
        let step = there.report.step("build a reference for the grants");
        let made = there.until_cancelled(async {
            roles.make(&server.admin).await.map_err(doing("make the roles of the source"))
        });
        let users::Made { admin, unknown } = made.await?;
        live.leave_out(unknown);
        let server = Server { admin, ..server.clone() };
        let reference = facts.make_database(there, &server, names, &archive).await?;
        step.done("");
        live.compare(there, &reference.admin(), names, &accounts).await
    })
    .await
}

/// What is read of the source, but for its schema.
struct Source {
    facts: Facts,
    accounts: users::Plan,
    live: users::Live,
    roles: users::ServerRoles,
}

impl Source {
    async fn read(ctx: &Context, target: &pg::Target, names: &DatabaseName) -> Result<Self, Error> {
        let session = source::open(target).await.map_err(Error::Server)?;
        let what = || doing("read roles and privileges");
        session.batch(users::LOOK_ONLY).await.map_err(what())?;
        let facts = Facts::read(&session, &ctx.config.database.user).await.map_err(what())?;
        let accounts = users::read(&facts.as_who_migrates(ctx), names)?;
        let live = users::Live::read(&session, &accounts).await.map_err(what())?;
        let roles = users::ServerRoles::read(&session, &accounts).await.map_err(what())?;
        session.close().await;
        Ok(Self { facts, accounts, live, roles })
    }
}

/// Who owns what, as far as the files do not say it.
struct Facts {
    version_num: i32,
    /// The owner of the database.
    owner: String,
    /// The owner of the schema `public`, where there is one.
    public_owner: Option<String>,
    /// Whether the configured account owns the database or a table in it.
    account_owns: bool,
}

const FACTS: &str = "
select current_setting('server_version_num')::int4,
       pg_get_userbyid(d.datdba)::text,
       (select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = 'public'),
       exists (select from pg_roles r
               where r.rolname = $1
                 and (r.oid = d.datdba
                      or exists (select from pg_class c
                                 where c.relowner = r.oid and c.relkind in ('r', 'p')
                                   -- What initdb makes is below; what an extension makes is its own.
                                   and c.oid >= 16384
                                   and not exists (select from pg_depend
                                                   where classid = 'pg_class'::regclass
                                                     and objid = c.oid and deptype = 'e'))))
from pg_database d
where d.datname = current_database()";

impl Facts {
    async fn read(session: &Session, account: &str) -> Result<Self, pg::Error> {
        let row = session.query_one(FACTS, &[&account]).await?;
        Ok(Self {
            version_num: row.get(0),
            owner: row.get(1),
            public_owner: row.get(2),
            account_owns: row.get(3),
        })
    }

    /// The files mean the account that migrates where they say nothing else (default privileges,
    /// `current_user`). One that only reads is not it: then the owner of the database is.
    fn as_who_migrates(&self, ctx: &Context) -> Context {
        if self.account_owns {
            return ctx.clone();
        }
        let mut config = (*ctx.config).clone();
        ctx.report.note(format!(
            "`{}` owns nothing there: default privileges are meant for `{}`, who owns the database",
            config.database.user, self.owner
        ));
        config.database.user.clone_from(&self.owner);
        config.database.password = None;
        Context { config: Arc::new(config), ..ctx.clone() }
    }

    /// The database and its schema, on a server that has the roles. No privilege is given yet but those
    /// that a new database of the source's version has.
    async fn make_database(
        &self,
        ctx: &Context,
        server: &Server,
        names: &DatabaseName,
        archive: &Bytes,
    ) -> Result<Scratch, Error> {
        let name = &names.final_name;
        let made = Scratch::create(ctx, server, name, &self.owner, &Locale::default()).await?;
        let target = made.admin();
        let prepared = async {
            let session = Session::connect(&target).await?;
            session.batch(&self.public_schema()).await?;
            session.close().await;
            Ok::<_, pg::Error>(())
        };
        let what = doing("prepare the schema `public`");
        ctx.until_cancelled(async { prepared.await.map_err(what) }).await?;
        let refused = schema::make(ctx, &target, &server.tools, archive).await?;
        warn(ctx, &refused);
        Ok(made)
    }

    fn public_schema(&self) -> String {
        let Some(owner) = &self.public_owner else { return String::new() };
        let mut sql = format!("alter schema public owner to {};", quote::ident(owner));
        if self.version_num < CLOSED_PUBLIC {
            sql.push_str("grant create on schema public to public;");
        }
        sql
    }
}

/// Objects that are not on the scratch server: nothing can be said about them.
fn warn(ctx: &Context, refused: &[Refusal]) {
    for refusal in refused.iter().take(REFUSALS_SHOWN) {
        ctx.report.warn(format!("the scratch server lacks a part of the schema: {refusal}"));
    }
    let more = refused.len().saturating_sub(REFUSALS_SHOWN);
    if more > 0 {
        ctx.report.warn(format!("{more} more statements of the schema were refused there"));
    }
}

fn doing(what: &'static str) -> impl FnOnce(pg::Error) -> Error {
    move |error| Error::Database { what: what.to_owned(), error }
}
