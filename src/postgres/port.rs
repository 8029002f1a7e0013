//! Choose the port that the server listens on: the configured one, or else the next free one.

use std::io;
use std::net::{IpAddr, TcpListener};

use anyhow::bail;

use super::settings::client_address;
use crate::config::Port;
use crate::exit::{Code, Failure};
use crate::process::ports;

/// How many ports after the default one are tried.
const TRIES: u16 = 100;

/// Choose a port for a server that listens on `listen`. Port 0 lets the kernel choose.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when a configured port is taken, with [`Code::Config`] when `listen` is
/// not an address of this machine.
pub fn choose(listen: IpAddr, port: Port) -> anyhow::Result<u16> {
    let first = port.number;
    let taken = match bind(listen, first) {
        Ok(number) => return Ok(number),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let message = format!("postgres.listen: {listen} is not an address of this machine");
            bail!(anyhow::Error::new(error).context(Failure::new(Code::Config, message)));
        }
        Err(error) => error,
    };
    let holder = ports::holder(first).map(|holder| format!(" by {holder}")).unwrap_or_default();
    if port.chosen {
        let message = format!("postgres.port: port {first} is taken{holder}: stop that, or choose another port");
        bail!(anyhow::Error::new(taken).context(Failure::new(Code::Temporary, message)));
    }
    let last = first.saturating_add(TRIES);
    match (first..=last).skip(1).find(|&number| bind(listen, number).is_ok()) {
        Some(number) => {
            tracing::info!("port {first} is taken{holder}; PostgreSQL listens on {number} instead");
            Ok(number)
        }
        None => bail!(Failure::new(Code::Temporary, format!("the ports {first} to {last} are all taken"))),
    }
}

/// Try both addresses that the server will bind. The sockets are closed again: PostgreSQL takes no inherited one.
fn bind(listen: IpAddr, number: u16) -> io::Result<u16> {
    let asked = TcpListener::bind((listen, number))?;
    let number = asked.local_addr()?.port();
    let local = client_address(listen);
    if local != listen && !listen.is_unspecified() {
        TcpListener::bind((local, number))?;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[test]
    fn a_taken_port_moves_unless_it_was_configured() {
        let _alone = crate::forks::none();
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let holder = TcpListener::bind((local, 0)).unwrap();
        let number = holder.local_addr().unwrap().port();
        assert!(choose(local, Port { number, chosen: false }).is_ok_and(|chosen| chosen != number));
        let error = choose(local, Port { number, chosen: true }).unwrap_err();
        assert_eq!(code_of(&error), Code::Temporary);
        let message = error.to_string();
        assert!(
            message.contains(&number.to_string()) && message.contains(&std::process::id().to_string()),
            "{message}"
        );
        drop(holder);
        assert_eq!(choose(local, Port { number, chosen: true }).unwrap(), number);
        assert_ne!(choose(local, Port { number: 0, chosen: false }).unwrap(), 0);
        let elsewhere = choose("192.0.2.1".parse().unwrap(), Port { number, chosen: false }).unwrap_err();
        assert_eq!(code_of(&elsewhere), Code::Config);
    }
}
