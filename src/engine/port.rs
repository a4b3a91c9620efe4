//! Which port the server is published on, and who has it when it is taken.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::{Error, ready};
use crate::config::Config;
use crate::context::Context;

/// A server on loopback answers its first byte at once.
const PROBE: Duration = Duration::from_secs(1);
/// After a container's removal its port can stay taken for a moment (PITFALLS, fact 9).
pub(super) const RELEASE: Duration = Duration::from_secs(5);

/// The port that the configuration names: `engine.port`, or that of a database URL that points at
/// this machine.
pub(super) fn named(config: &Config) -> Option<u16> {
    let database = &config.database;
    config.engine.port.or_else(|| {
        (database.named && database.target().is_loopback()).then_some(database.port).flatten()
    })
}

/// The port that a server is started on. `was_ours`: it has served there until a moment ago.
///
/// # Errors
/// [`Error::PortTaken`], where one is named; a remembered one is given up for any that is free.
pub(super) async fn choose(
    ctx: &Context,
    named: Option<u16>,
    remembered: Option<u16>,
    was_ours: bool,
) -> Result<u16, Error> {
    match (named, remembered.filter(|&port| port != 0)) {
        (Some(port), _) => match is_free_soon(ctx, port, was_ours).await? {
            true => Ok(port),
            false => Err(Error::PortTaken { port, by: taken_by(port) }),
        },
        (None, Some(port)) if is_free_soon(ctx, port, was_ours).await? => Ok(port),
        (None, _) => any(),
    }
}

fn any() -> Result<u16, Error> {
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    any.map(|address| address.port()).map_err(|error| Error::NoPort { reason: error.to_string() })
}

/// Ports that somebody else takes between a look and a start.
pub(super) const TRIES: usize = 5;

/// Whether a server could listen there.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether a server can listen there, after a moment's patience with what goes by itself: what served
/// until just now, where the port `was_ours`, or a client that has come by this port (on loopback it may
/// even have reached itself, while the server was down).
///
/// # Errors
/// [`Error::Interrupted`].
async fn is_free_soon(ctx: &Context, port: u16, was_ours: bool) -> Result<bool, Error> {
    let look = async || match is_free(port) {
        true => Ok(true),
        false if was_ours || !is_served(port) => Err(None),
        false => Ok(false),
    };
    match ready::until(ctx, RELEASE, look).await {
        Ok(free) => Ok(free),
        Err(None) => Ok(false),
        Err(Some(error)) => Err(error),
    }
}

/// Whether somebody accepts connections there.
fn is_served(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, PROBE).is_ok()
}

/// Who answers on a port that is taken, in words.
pub(super) fn taken_by(port: u16) -> String {
    if speaks_postgres(port) {
        "a PostgreSQL server that is not this project's".to_owned()
    } else {
        "another program".to_owned()
    }
}

/// Asks for TLS as a PostgreSQL client does: only a PostgreSQL server says one byte, S or N.
fn speaks_postgres(port: u16) -> bool {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let ask = || -> std::io::Result<u8> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut socket = TcpStream::connect_timeout(&address, PROBE)?;
        socket.set_read_timeout(Some(PROBE))?;
        socket.write_all(&SSL_REQUEST)?;
        let mut answer = [0_u8; 1];
        socket.read_exact(&mut answer)?;
        Ok(answer[0])
    };
    matches!(ask(), Ok(b'S' | b'N'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_seen_and_another_is_found() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = holder.local_addr().expect("bound").port();
        assert!(!is_free(port) && is_served(port));
        assert_ne!(any().expect("another"), port);
        drop(holder);
        assert!(is_free(port) && !is_served(port));
    }

    #[test]
    fn a_silent_program_is_not_taken_for_postgres() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = holder.local_addr().expect("bound").port();
        assert_eq!(taken_by(port), "another program");
    }
}
