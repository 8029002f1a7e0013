//! An authority of Tandem's own, and the certificates that it signs.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Context;
use chrono::{DateTime, Datelike, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};

use crate::install::hexadecimal;
use crate::plan::Secret;

/// How long an authority holds: clients keep its certificate, and a new one reaches none of them by itself.
const AUTHORITY_DAYS: u64 = 3650;
/// How long a certificate of it holds. It is renewed long before, and no client notices.
const DAYS: u64 = 365;
/// Days before now from which on both hold: a client's clock may be behind.
const BEHIND: u64 = 2;

/// An authority. Its certificate follows from its key, but for the days.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub key: Secret,
}

/// A certificate for a server.
pub struct Issued {
    pub der: CertificateDer<'static>,
    /// With its key.
    pub pem: Secret,
}

impl Authority {
    /// A new one, and its certificate as PEM.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new(now: DateTime<Utc>) -> anyhow::Result<(Self, String)> {
        let key = KeyPair::generate().context("make the key of an authority")?;
        let mut params = params(&key)?;
        between(&mut params, now, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).context("sign the certificate of an authority")?;
        let authority = Self { key: Secret::new(key.serialize_pem()), issuer: Issuer::new(params, key) };
        Ok((authority, certificate.pem()))
    }

    /// That of `key`.
    ///
    /// # Errors
    /// It is no key.
    pub fn of_key(key: &Secret) -> anyhow::Result<Self> {
        let pair = KeyPair::from_pem(key.expose()).context("read the key of the authority")?;
        let params = params(&pair)?;
        Ok(Self { key: key.clone(), issuer: Issuer::new(params, pair) })
    }

    /// A certificate for a server of these names and addresses.
    ///
    /// # Errors
    /// One of them is none; the system has no randomness to give.
    pub fn issue(&self, names: &[String], now: DateTime<Utc>) -> anyhow::Result<Issued> {
        let key = KeyPair::generate().context("make the server's key")?;
        let mut params = CertificateParams::new(names.to_vec()).context("make out the server's certificate")?;
        params.distinguished_name.push(DnType::CommonName, "PostgreSQL of Tandem");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        between(&mut params, now, DAYS);
        let certificate = params.signed_by(&key, &self.issuer).context("sign the server's certificate")?;
        let pem = Secret::new(certificate.pem() + &key.serialize_pem());
        Ok(Issued { der: certificate.der().clone(), pem })
    }
}

fn params(key: &KeyPair) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Authorities that follow each other must be told apart: OpenSSL looks for an issuer by its name.
    let number = hexadecimal(&Sha256::digest(key.public_key_raw())[..6]);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Tandem's authority {number}"));
    Ok(params)
}

fn between(params: &mut CertificateParams, now: DateTime<Utc>, days: u64) {
    let (from, to) = (now - Days::new(BEHIND), now + Days::new(days + 1));
    let date = |day: DateTime<Utc>| date_time_ymd(day.year(), day.month() as u8, day.day() as u8);
    (params.not_before, params.not_after) = (date(from), date(to));
}

/// The names and addresses under which this machine's server may be reached, `more` among them.
pub fn names(listen: IpAddr, more: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), Ipv6Addr::LOCALHOST.to_string()];
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    names.extend(host.filter(|host| ServerName::try_from(host.as_str()).is_ok()));
    if listen.is_unspecified() {
        names.extend(interfaces().map(|address| address.to_string()));
    } else {
        names.push(listen.to_string());
    }
    names.extend(more.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The addresses of this machine that others may reach.
fn interfaces() -> impl Iterator<Item = IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| address.ip());
        // A link-local address is nothing without its zone, which no certificate has.
        v4.or_else(|| v6.filter(|address| !address.is_unicast_link_local()).map(IpAddr::from))
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::certificate;

    #[test]
    fn what_an_authority_issues_leads_to_it_after_it_was_read_again() {
        let now = Utc::now();
        let (made, pem) = Authority::new(now).unwrap();
        let roots = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
        let again = Authority::of_key(&made.key).unwrap();
        for authority in [made, again] {
            let issued = authority.issue(&["localhost".into(), "127.0.0.1".into(), "::1".into()], now).unwrap();
            let chain = vec![issued.der.clone()];
            certificate::leads_to(&chain, &roots, SystemTime::now()).unwrap();
            assert!(certificate::is_for(&issued.der, "127.0.0.1") && certificate::is_for(&issued.der, "::1"));
            assert!(certificate::is_for(&issued.der, "localhost") && !certificate::is_for(&issued.der, "other"));
            let days = certificate::not_after(&issued.der).unwrap().duration_since(SystemTime::now()).unwrap();
            assert!((DAYS..DAYS + 2).contains(&(days.as_secs() / 86400)), "{days:?}");
            let (_, stranger) = Authority::new(now).unwrap();
            let stranger = vec![CertificateDer::from_pem_slice(stranger.as_bytes()).unwrap()];
            assert!(certificate::leads_to(&chain, &stranger, SystemTime::now()).is_err());
        }
        assert!(Authority::of_key(&Secret::new("no key")).is_err());
    }

    #[test]
    fn names_are_those_of_the_machine_and_those_that_are_asked_for_each_once() {
        let of = |listen: &str| names(listen.parse().unwrap(), &["db.example".into(), "localhost".into()]);
        let all = of("0.0.0.0");
        for name in ["localhost", "127.0.0.1", "::1", "db.example"] {
            assert_eq!(all.iter().filter(|one| *one == name).count(), 1, "{all:?}");
        }
        assert!(!all.contains(&"0.0.0.0".to_owned()) && of("10.1.2.3").contains(&"10.1.2.3".to_owned()), "{all:?}");
    }
}
