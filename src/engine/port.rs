//! Which port the server is published on, and who has it when it is taken.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::Error;
use crate::config::Config;

/// A server on loopback answers its first byte at once.
const PROBE: Duration = Duration::from_secs(1);

/// The port that the configuration names: `engine.port`, or that of a database URL that points at
/// this machine.
pub(super) fn named(config: &Config) -> Option<u16> {
    let database = &config.database;
    config.engine.port.or_else(|| {
        (database.named && database.target().is_loopback()).then_some(database.port).flatten()
    })
}

/// A port for a server that has none yet: the remembered one while it is free, else any.
pub(super) fn find(remembered: Option<u16>) -> Result<u16, Error> {
    if let Some(port) = remembered.filter(|&port| port != 0 && is_free(port)) {
        return Ok(port);
    }
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    any.map(|address| address.port()).map_err(|error| Error::NoPort { reason: error.to_string() })
}

/// Whether a server could listen there.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
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
        assert!(!is_free(port));
        assert_ne!(find(Some(port)).expect("another"), port);
        drop(holder);
        assert_eq!(find(Some(port)).expect("the same"), port);
    }

    #[test]
    fn a_silent_program_is_not_taken_for_postgres() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        let port = holder.local_addr().expect("bound").port();
        assert_eq!(taken_by(port), "another program");
    }
}
