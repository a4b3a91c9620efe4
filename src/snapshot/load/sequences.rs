//! Where sequences stand, and which of them a copy has.

use super::super::manifest::{Manifest, Sequence};
use super::rows::leaves_out;
use super::{Error, Run, doing};
use crate::context::Context;
use crate::pg::{self, Session, quote};

impl Run<'_> {
    pub(super) async fn sequences(&self, session: &Session) -> Result<(), Error> {
        let failed = || doing("set sequences");
        let sequences =
            present_sequences(self.ctx, session, self.manifest).await.map_err(failed())?;
        let names: Vec<String> = sequences.iter().map(|sequence| quoted(sequence)).collect();
        let values: Vec<i64> = sequences.iter().map(|sequence| sequence.last_value).collect();
        let called: Vec<bool> = sequences.iter().map(|sequence| sequence.is_called).collect();
        session
            .query_one(
                "select count(setval(name::regclass, value, called))
                 from unnest($1::text[], $2::int8[], $3::bool[]) as s (name, value, called)",
                &[&names, &values, &called],
            )
            .await
            .map_err(failed())?;
        Ok(())
    }
}

/// The sequences whose positions a load sets: those of an extension that it leaves out are not among them.
///
/// # Errors
/// What the server said.
pub(in crate::snapshot) async fn present_sequences<'m>(
    ctx: &Context,
    session: &Session,
    manifest: &'m Manifest,
) -> Result<Vec<&'m Sequence>, pg::Error> {
    let left_out = |sequence: &Sequence| {
        sequence.extension.as_ref().is_some_and(|extension| leaves_out(ctx, extension))
    };
    let mut sequences: Vec<&Sequence> =
        manifest.sequences.iter().filter(|sequence| !left_out(sequence)).collect();
    // An older program did not write whose a sequence is. Where an extension is missing because the
    // configuration says so, its sequences are; all others are errors.
    let ignored = &ctx.config.restore.ignore_extensions;
    let extensions = manifest.extensions.iter().map(|extension| &extension.name);
    let ignored: Vec<&String> = extensions.filter(|name| ignored.contains(name)).collect();
    if ignored.is_empty() {
        return Ok(sequences);
    }
    let names: Vec<String> = sequences.iter().map(|sequence| quoted(sequence)).collect();
    let row = session
        .query_one(
            "select exists (select from unnest($1::text[]) as name
                            where not exists (select from pg_extension where extname = name)),
                    array(select to_regclass(name) is not null
                          from unnest($2::text[]) with ordinality as s (name, place)
                          order by place)",
            &[&ignored, &names],
        )
        .await?;
    let (some_lack, there): (bool, Vec<bool>) = (row.get(0), row.get(1));
    if some_lack {
        let mut there = there.into_iter();
        sequences.retain(|_| there.next().unwrap_or(true));
    }
    Ok(sequences)
}

fn quoted(sequence: &Sequence) -> String {
    quote::qualified(&sequence.schema, &sequence.name)
}
