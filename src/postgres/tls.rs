//! The server's certificate: looked at or made, put where the server reads it, and seen to be served.
//!
//! Whatever its files are, the server reads a copy: one file with certificate and key, replaced in one step, so that a server
//! that starts again in the middle of a renewal finds a pair that belongs together. PostgreSQL refuses a key that others may
//! read or that another user owns (documentation, 19.9.2); the copy is its user's alone.
//!
//! ```text
//! state/tls/ca.key       the authority's key, Tandem's alone       (self-signed)
//! state/tls/ca.crt       what clients check the server by          (self-signed, or files with postgres.tls_ca)
//! state/tls/server.pem   the server's certificate and its key
//! ```

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::authority::{self, Authority};
use super::files::{read_if_there, write_whole};
use super::home::{Home, make_dir};
use super::probe::SSL_REQUEST;
use super::settings::client_address;
use crate::certificate::{self, Chain, Files, Keys};
use crate::config::{Loaded, Postgres, PostgresMode, PostgresTls, PostgresTlsFiles};
use crate::plan::Secret;

/// The keys that name the files.
const KEYS: Keys = Keys { cert: "postgres.tls_cert", key: "postgres.tls_key", ca: "postgres.tls_ca" };
/// How long before its end a certificate of Tandem's own is renewed.
const RENEWED: Duration = Duration::from_secs(30 * DAY);
/// How long before its end an authority of Tandem's own is: its certificates must not outlive it.
const AUTHORITY_RENEWED: Duration = Duration::from_secs(400 * DAY);
const DAY: u64 = 24 * 60 * 60;
/// How long the server may take to serve what it was told to read again, and the pause between two looks.
const SERVED_LIMIT: Duration = Duration::from_secs(10);
const SERVED_POLL: Duration = Duration::from_millis(20);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// A certificate that can be served, not put in place yet.
#[derive(Debug)]
pub struct Certificate {
    pub notices: Vec<String>,
    pub not_after: Option<SystemTime>,
    chain: Chain,
    /// With its key.
    pem: Secret,
    /// What clients check it by, as PEM.
    authorities: Option<String>,
    /// The key of a new authority of Tandem's own.
    authority_key: Option<Secret>,
    /// What `DATABASE_URL` says of TLS.
    pub parameters: Vec<(String, String)>,
}

fn dir(home: &Home) -> PathBuf {
    home.state.join("tls")
}

/// The server's certificate and key.
pub fn server_file(home: &Home) -> PathBuf {
    dir(home).join("server.pem")
}

/// What clients check it by.
fn authorities_file(home: &Home) -> PathBuf {
    dir(home).join("ca.crt")
}

pub(super) fn authority_key_file(home: &Home) -> PathBuf {
    dir(home).join("ca.key")
}

/// The certificate that `postgres` asks for; changes nothing. `None`: the server serves without TLS. `loaded` says where what is
/// wrong was written.
///
/// # Errors
/// [`crate::exit::Failure`] with [`crate::exit::Code::Config`] that tells all that is wrong with the files.
pub fn look(postgres: &Postgres, loaded: &Loaded, home: &Home, now: SystemTime) -> anyhow::Result<Option<Certificate>> {
    match &postgres.tls {
        _ if postgres.mode == PostgresMode::Attach => Ok(None),
        PostgresTls::Off => Ok(None),
        PostgresTls::SelfSigned(names) => own(home, &authority::names(postgres.listen, names), now).map(Some),
        PostgresTls::Files(files) => match of_files(files, postgres.listen, home, now) {
            Ok(certificate) => Ok(Some(certificate)),
            Err(wrong) => {
                let wrong = wrong.into_iter().map(|(key, message, help)| (key.to_owned(), message, Some(help)));
                Err(loaded.refusal(wrong.collect()))
            }
        },
    }
}

type Wrong = Vec<(&'static str, String, String)>;

fn of_files(files: &PostgresTlsFiles, listen: IpAddr, home: &Home, now: SystemTime) -> Result<Certificate, Wrong> {
    let PostgresTlsFiles { cert, key, ca } = files;
    let mut found =
        certificate::inspect(&Files { keys: KEYS, cert, key, ca: ca.as_deref(), user: None, must_hold: true }, now);
    if let Some(ca) = ca.as_ref().filter(|_| found.wrong.is_empty())
        && let Err(error) = certificate::leads_to(&found.chain, &found.authorities, now)
    {
        let message = format!("the certificate in {} does not lead to {}: {error}", cert.display(), ca.display());
        let help = "name the authority that signed it, with the certificates between both in postgres.tls_cert; without \
                    postgres.tls_ca clients encrypt, and do not check whom they speak to";
        found.wrong.push((KEYS.ca, message, help.to_owned()));
    }
    match found.pem {
        Some(pem) if found.wrong.is_empty() => Ok(Certificate {
            notices: found.notices,
            not_after: found.not_after,
            parameters: parameters(&found.chain, ca.is_some(), listen, home),
            authorities: ca.is_some().then(|| as_pem(&found.authorities)),
            chain: found.chain,
            pem,
            authority_key: None,
        }),
        _ => Err(found.wrong),
    }
}

/// Until when the certificate holds that the server of `home` has, or is to have; `None` where there is none. Blocks.
pub fn held_until(postgres: &Postgres, home: &Home) -> Option<SystemTime> {
    let file = match &postgres.tls {
        PostgresTls::Off => return None,
        PostgresTls::SelfSigned(_) => server_file(home),
        PostgresTls::Files(files) => files.cert.clone(),
    };
    certificate::not_after(of_pem(&fs::read(file).ok()?).first()?)
}

/// What `DATABASE_URL` says where the server serves `chain`: as much as can be checked.
fn parameters(chain: &Chain, has_authority: bool, listen: IpAddr, home: &Home) -> Vec<(String, String)> {
    let host = client_address(listen).to_string();
    let mode = match chain.first() {
        _ if !has_authority => "require",
        Some(leaf) if certificate::is_for(leaf, &host) => "verify-full",
        _ => "verify-ca",
    };
    let root = || authorities_file(home).display().to_string();
    let root = has_authority.then(|| ("sslrootcert".to_owned(), root()));
    [("sslmode".to_owned(), mode.to_owned())].into_iter().chain(root).collect()
}

/// What `DATABASE_URL` says of TLS, without a look at a key: for commands beside the server.
pub fn of_url(postgres: &Postgres, home: &Home) -> Vec<(String, String)> {
    match &postgres.tls {
        _ if postgres.mode == PostgresMode::Attach => Vec::new(),
        PostgresTls::Off => Vec::new(),
        PostgresTls::SelfSigned(_) => {
            let root = authorities_file(home).display().to_string();
            vec![("sslmode".into(), "verify-full".into()), ("sslrootcert".into(), root)]
        }
        PostgresTls::Files(files) => {
            let chain = fs::read(&files.cert).map(|pem| of_pem(&pem)).unwrap_or_default();
            parameters(&chain, files.ca.is_some(), postgres.listen, home)
        }
    }
}

/// The certificate of Tandem's own authority for `names`: the one that is there while it serves, else a new one.
fn own(home: &Home, names: &[String], now: SystemTime) -> anyhow::Result<Certificate> {
    let mut notices = Vec::new();
    let (moment, until) = (DateTime::<Utc>::from(now), |leaf: &CertificateDer<'_>| certificate::not_after(leaf));
    let lasts = |leaf: &CertificateDer<'_>, more: Duration| until(leaf).is_some_and(|end| end > now + more);
    let (authority, authorities, is_new) = match existing_authority(home)? {
        Some((authority, pem)) if of_pem(pem.as_bytes()).first().is_some_and(|it| lasts(it, AUTHORITY_RENEWED)) => {
            (authority, pem, false)
        }
        other => {
            if other.is_some() {
                notices.push(format!(
                    "the authority of the server's certificate was renewed, for it ends soon: clients of other machines need \
                     the new {}",
                    authorities_file(home).display()
                ));
            }
            let (authority, pem) = Authority::new(moment)?;
            (authority, pem, true)
        }
    };
    let roots = of_pem(authorities.as_bytes());
    let kept = read_if_there(&server_file(home)).context("read the server's certificate")?;
    let kept = kept.map(|pem| (of_pem(&pem), Secret::new(String::from_utf8_lossy(&pem))));
    let serves = |(chain, _): &(Chain, Secret)| {
        let is_for_all = |leaf: &CertificateDer<'_>| names.iter().all(|name| certificate::is_for(leaf, name));
        chain.first().is_some_and(|leaf| lasts(leaf, RENEWED) && is_for_all(leaf))
            && certificate::leads_to(chain, &roots, now).is_ok()
    };
    let (chain, pem) = match kept.filter(serves) {
        Some(kept) => kept,
        None => {
            let issued = authority.issue(names, moment)?;
            (vec![issued.der], issued.pem)
        }
    };
    let root = authorities_file(home).display().to_string();
    Ok(Certificate {
        notices,
        not_after: chain.first().and_then(until),
        chain,
        pem,
        authorities: Some(authorities),
        authority_key: is_new.then_some(authority.key),
        parameters: vec![("sslmode".into(), "verify-full".into()), ("sslrootcert".into(), root)],
    })
}

/// Tandem's own authority with its certificate, if it was made yet. `None` also where one of the two is lost: then they are
/// worth nothing.
fn existing_authority(home: &Home) -> anyhow::Result<Option<(Authority, String)>> {
    let read = |path: PathBuf| {
        let text = read_if_there(&path).with_context(|| format!("read {}", path.display()))?;
        anyhow::Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
    };
    let (Some(key), Some(all)) = (read(authority_key_file(home))?, read(authorities_file(home))?) else {
        return Ok(None);
    };
    let Ok(authority) = Authority::of_key(&Secret::new(key)) else { return Ok(None) };
    // The first is the newest; the key decides whether it is the key's.
    let Some(newest) = of_pem(all.as_bytes()).into_iter().next() else { return Ok(None) };
    let probe = authority.issue(&["localhost".to_owned()], Utc::now())?;
    let is_its = certificate::leads_to(&vec![probe.der], &vec![newest.clone()], SystemTime::now()).is_ok();
    Ok(is_its.then(|| (authority, as_pem(&vec![newest]))))
}

impl Certificate {
    /// Put it where the server and its clients read it. Clients believe the authorities of before as well until
    /// [`Self::settle`]: until the server has read its files again it shows what those have signed.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn put(&self, home: &Home) -> anyhow::Result<()> {
        make_dir(&dir(home), 0o755, None)?;
        // The authority's key before its certificate: alone it is worth nothing, and a new one is made.
        if let Some(key) = &self.authority_key {
            write_whole(&authority_key_file(home), key.expose(), 0o600, None)?;
        }
        if let Some(authorities) = &self.authorities {
            let before = read_if_there(&authorities_file(home)).context("read the authorities of before")?;
            let mut all = of_pem(authorities.as_bytes());
            all.extend(of_pem(&before.unwrap_or_default()));
            let mut seen = std::collections::BTreeSet::new();
            all.retain(|one| seen.insert(one.to_vec()));
            write_whole(&authorities_file(home), &as_pem(&all), 0o644, None)?;
        }
        write_whole(&server_file(home), self.pem.expose(), 0o600, home.server.as_ref())
    }

    /// Let clients believe its own authorities alone: the server serves it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn settle(&self, home: &Home) -> anyhow::Result<()> {
        match &self.authorities {
            Some(authorities) => write_whole(&authorities_file(home), authorities, 0o644, None),
            None => Ok(()),
        }
    }

    /// Whether it is the one that lies where the server reads it.
    pub fn is_in_place(&self, home: &Home) -> bool {
        fs::read(server_file(home)).is_ok_and(|there| there == self.pem.expose().as_bytes())
    }

    /// Wait until the server on `port` serves it.
    ///
    /// # Errors
    /// It does not, within a limit.
    pub async fn wait_served(&self, listen: IpAddr, port: u16) -> anyhow::Result<()> {
        let began = tokio::time::Instant::now();
        loop {
            let looked = tokio::time::timeout(LOOK_LIMIT, shown(client_address(listen), port)).await;
            let why = match looked {
                Ok(Ok(leaf)) if self.chain.first() == Some(&leaf) => return Ok(()),
                Ok(Ok(_)) => "it shows the one of before".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {LOOK_LIMIT:?}"),
            };
            if began.elapsed() > SERVED_LIMIT {
                bail!("PostgreSQL does not serve the new certificate within {SERVED_LIMIT:?}: {why}");
            }
            tokio::time::sleep(SERVED_POLL).await;
        }
    }
}

/// The certificate that the server shows.
async fn shown(address: IpAddr, port: u16) -> anyhow::Result<CertificateDer<'static>> {
    let mut stream = TcpStream::connect((address, port)).await?;
    stream.write_all(&SSL_REQUEST).await?;
    if stream.read_u8().await? != b'S' {
        bail!("it serves without TLS");
    }
    let connector = TlsConnector::from(certificate::client()?);
    let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    Ok(shown.context("it shows no certificate")?.into_owned())
}

fn of_pem(pem: &[u8]) -> Chain {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

fn as_pem(chain: &Chain) -> String {
    use base64::Engine;
    let mut text = String::new();
    for one in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(one);
        // RFC 7468, section 2: lines of 64 characters.
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Whether `path`, as the rendered configuration has it, is the copy that Tandem makes.
pub(super) fn is_server_file(path: &str) -> bool {
    Path::new(path).ends_with("tls/server.pem")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        (temp, home)
    }

    fn names(more: &[&str]) -> Vec<String> {
        ["localhost", "127.0.0.1"].iter().chain(more).map(|name| (*name).to_owned()).collect()
    }

    fn later(days: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(days * DAY)
    }

    #[test]
    fn what_was_made_is_kept_until_it_ends_soon_or_a_name_is_new() {
        let (_temp, home) = home();
        let first = own(&home, &names(&[]), SystemTime::now()).unwrap();
        assert!(!dir(&home).exists(), "a look makes nothing");
        first.put(&home).unwrap();
        let again = own(&home, &names(&[]), later(300)).unwrap();
        assert!(again.chain == first.chain && again.authority_key.is_none() && again.is_in_place(&home));
        for other in [own(&home, &names(&["db.example"]), SystemTime::now()), own(&home, &names(&[]), later(340))] {
            let other = other.unwrap();
            assert!(other.chain != first.chain && !other.is_in_place(&home));
            assert_eq!((other.authorities.as_ref(), other.authority_key.is_none()), (first.authorities.as_ref(), true));
        }
        let ends = own(&home, &names(&[]), later(3300)).unwrap();
        assert!(ends.authority_key.is_some() && ends.notices[0].contains("ca.crt"), "{:?}", ends.notices);
    }

    #[test]
    fn an_authority_whose_key_is_lost_or_anothers_is_made_anew() {
        let (_temp, home) = home();
        let first = own(&home, &names(&[]), SystemTime::now()).unwrap();
        first.put(&home).unwrap();
        let other = Authority::new(Utc::now()).unwrap().0.key;
        for key in ["", "no key", other.expose()] {
            fs::write(authority_key_file(&home), key).unwrap();
            let made = own(&home, &names(&[]), SystemTime::now()).unwrap();
            assert!(made.authority_key.is_some() && made.chain != first.chain, "{key}");
        }
        let made = own(&home, &names(&[]), SystemTime::now()).unwrap();
        made.put(&home).unwrap();
        // Until the server shows the new one, clients believe both.
        assert_eq!(of_pem(&fs::read(authorities_file(&home)).unwrap()).len(), 2);
        assert!(own(&home, &names(&[]), SystemTime::now()).unwrap().chain == made.chain);
        made.settle(&home).unwrap();
        assert_eq!(fs::read_to_string(authorities_file(&home)).unwrap(), *made.authorities.as_ref().unwrap());
    }
}
