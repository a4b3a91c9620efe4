//! A data directory as the archive that a container's `tar` unpacks. The names come from us, so it
//! holds plain files and folders and nothing else.

use std::pin::Pin;

use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};

use crate::engine::images::{CutOff, Incoming};

/// Small files are sent together.
const BUFFER: usize = 1 << 20;
const BLOCK: usize = 512;

/// Why an archive was not sent to its end.
#[derive(Debug)]
pub(super) enum Unsent {
    /// Its bytes ended too early.
    CutOff,
    /// Whoever reads it has gone.
    NotRead,
}

impl From<CutOff> for Unsent {
    fn from(CutOff: CutOff) -> Self {
        Self::CutOff
    }
}

impl From<std::io::Error> for Unsent {
    fn from(_: std::io::Error) -> Self {
        Self::NotRead
    }
}

/// What is in one.
pub(in crate::engine::docker) struct Archive<'a> {
    /// What comes in, as the folder `data`.
    pub incoming: Incoming,
    /// A file of that folder: its name and its text.
    pub marker: (&'a str, &'a str),
    /// Of `image.json`, which comes last.
    pub facts: &'a str,
}

/// Sends it; closes `output` in any case.
pub(super) async fn send(
    output: Pin<Box<dyn AsyncWrite + Send>>,
    archive: Archive<'_>,
) -> Result<(), Unsent> {
    let mut output = BufWriter::with_capacity(BUFFER, output);
    let sent = send_all(&mut output, archive).await;
    let closed = output.shutdown().await;
    sent?;
    Ok(closed?)
}

async fn send_all(
    output: &mut (impl AsyncWrite + Unpin),
    archive: Archive<'_>,
) -> Result<(), Unsent> {
    let Archive { mut incoming, marker: (marker, text), facts } = archive;
    let folder = |name: &str| header(&format!("data/{name}"), 0, tar::EntryType::Directory);
    output.write_all(&folder("")?).await?;
    for name in &incoming.folders {
        output.write_all(&folder(&format!("{name}/"))?).await?;
    }
    for (name, size) in &incoming.files {
        let name = format!("data/{name}");
        output.write_all(&header(&name, *size, tar::EntryType::Regular)?).await?;
        let mut left = *size;
        while left > 0 {
            let bytes = incoming.bytes.next(left).await?;
            output.write_all(&bytes).await?;
            left -= bytes.len() as u64;
        }
        output.write_all(padding(*size)).await?;
    }
    for (name, text) in [(format!("data/{marker}"), text), ("image.json".to_owned(), facts)] {
        let size = text.len() as u64;
        output.write_all(&header(&name, size, tar::EntryType::Regular)?).await?;
        output.write_all(text.as_bytes()).await?;
        output.write_all(padding(size)).await?;
    }
    output.write_all(&[0; 2 * BLOCK]).await?;
    Ok(())
}

fn header(name: &str, size: u64, kind: tar::EntryType) -> std::io::Result<[u8; BLOCK]> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o700 } else { 0o600 });
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// What fills the last block of a file.
fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    match over {
        0 => &[],
        over => &ZEROS[over..],
    }
}
