//! The certificate that the application is served with: whether it and its key belong together, hold, and can be read by the
//! workers; and a client that asks a worker of this machine whatever its certificate says.
//!
//! Blocks: called elsewhere.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::Tls;
use crate::plan::Identity;
use crate::process::identity;

const CERT: &str = "workers.tls_cert";
const KEY: &str = "workers.tls_key";
const CA: &str = "workers.tls_ca";

/// Days before the end of a certificate from which on its end is told.
const DAYS_WARNED: u64 = 14;
const DAY: u64 = 24 * 60 * 60;
/// After every certificate's end: the last second of the year 9999 is the last that one can name (RFC 5280, 4.1.2.5).
const AFTER_ALL: Duration = Duration::from_secs(253_402_300_800);

/// What a look at the files found.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Each with its key, and what to do.
    pub wrong: Vec<(&'static str, String, String)>,
    pub notices: Vec<String>,
    pub not_after: Option<SystemTime>,
}

/// Look at the files of `tls`, which workers read as `user`.
pub fn inspect(tls: &Tls, user: Option<&Identity>, now: SystemTime) -> Inspection {
    let mut found = Inspection::default();
    let chain = found.read(CERT, &tls.cert, user).and_then(|pem| found.certificates(CERT, &tls.cert, &pem));
    let key = found.read(KEY, &tls.key, user).and_then(|pem| found.key(&tls.key, &pem));
    if let Some(ca) = &tls.ca
        && let Some(pem) = found.read(CA, ca, user)
    {
        found.certificates(CA, ca, &pem);
    }
    if let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) {
        found.validity(leaf, &tls.cert, now);
    }
    if let (Some(chain), Some(key)) = (chain, key) {
        found.pair(chain, key, tls);
    }
    found
}

impl Inspection {
    fn add(&mut self, key: &'static str, message: String, help: impl Into<String>) {
        self.wrong.push((key, message, help.into()));
    }

    fn read(&mut self, key: &'static str, path: &Path, user: Option<&Identity>) -> Option<Vec<u8>> {
        let shown = path.display();
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let refused = identity::refused(path, &error);
                self.add(
                    key,
                    format!("cannot read {shown}{refused}: {error}"),
                    "name a file of PEM that Tandem may read",
                );
                return None;
            }
        };
        if let Some(user) = user.filter(|user| !identity::may_read(path, user)) {
            let (name, gid) = (&user.name, user.gid);
            let help =
                format!("chgrp {gid} {shown}; chmod g+r {shown}; and let that group pass its directories (chmod g+x)");
            self.add(key, format!("workers run as `{name}`, who may not read {shown}"), help);
        }
        Some(bytes)
    }

    fn certificates(&mut self, key: &'static str, path: &Path, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Some(chain),
            _ => {
                let help = "a file of PEM has lines -----BEGIN CERTIFICATE-----";
                self.add(key, format!("{} holds no certificate", path.display()), help);
                None
            }
        }
    }

    fn key(&mut self, path: &Path, pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
        let shown = path.display();
        if let Ok(key) = PrivateKeyDer::from_pem_slice(pem) {
            if identity::is_open_to_all(path) {
                self.notices.push(format!("{KEY}: every user of this machine may read {shown}: chmod o-r {shown}"));
            }
            return Some(key);
        }
        if String::from_utf8_lossy(pem).contains("ENCRYPTED") {
            let help = format!("write it without its password: openssl pkey -in {shown} -out NEW; chmod 600 NEW");
            self.add(KEY, format!("the private key in {shown} is encrypted"), help);
        } else {
            let help = "a file of PEM has a line -----BEGIN PRIVATE KEY-----; where it is not that of workers.tls_cert, write workers.tls_key";
            self.add(KEY, format!("{shown} holds no private key"), help);
        }
        None
    }

    fn validity(&mut self, leaf: &CertificateDer<'_>, path: &Path, now: SystemTime) {
        let shown = path.display();
        if let Some(not_before) = not_before(leaf, now) {
            let begins = humantime::format_rfc3339_seconds(not_before);
            self.notices
                .push(format!("{CERT}: {shown} is not valid before {begins}: does this machine's clock go right?"));
        }
        let Some(not_after) = not_after(leaf) else {
            self.notices.push(format!("{CERT}: until when {shown} is valid cannot be read"));
            return;
        };
        self.not_after = Some(not_after);
        let ends = humantime::format_rfc3339_seconds(not_after);
        match not_after.duration_since(now) {
            Err(_) => self.add(CERT, format!("{shown} expired at {ends}"), "renew it, then `tandem reload`"),
            Ok(left) if left.as_secs() < DAYS_WARNED * DAY => {
                let days = left.as_secs() / DAY;
                self.notices
                    .push(format!("{CERT}: {shown} expires at {ends}, in {days} days: renew it, then `tandem reload`"));
            }
            Ok(_) => {}
        }
    }

    fn pair(&mut self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>, tls: &Tls) {
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            // A kind of key that is not known here is OpenSSL's to judge, in the worker.
            Ok(_) | Err(rustls::Error::General(_)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let (cert, key) = (tls.cert.display(), tls.key.display());
                let help = "name the key that the certificate was made for; after a renewal both files are new";
                self.add(KEY, format!("{key} is not the key of the certificate in {cert}"), help);
            }
            // X.509 version 1, for example, which OpenSSL serves.
            Err(error) => self.notices.push(format!(
                "{CERT}: whether {} and its key belong together cannot be checked: {error}",
                tls.cert.display()
            )),
        }
    }
}

/// Until when the certificate holds. It is judged as at the end of all time, for the error says when its own end was.
fn not_after(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
    match judge(leaf, UnixTime::since_unix_epoch(AFTER_ALL))? {
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
        }
        _ => None,
    }
}

/// From when on it holds, if that is not yet.
fn not_before(leaf: &CertificateDer<'_>, now: SystemTime) -> Option<SystemTime> {
    let now = now.duration_since(UNIX_EPOCH).ok()?;
    match judge(leaf, UnixTime::since_unix_epoch(now))? {
        CertificateError::NotValidYetContext { not_before, .. } => {
            Some(UNIX_EPOCH + Duration::from_secs(not_before.as_secs()))
        }
        _ => None,
    }
}

/// What is wrong with the certificate at a moment, where no authority is trusted: its time is looked at first.
fn judge(leaf: &CertificateDer<'_>, at: UnixTime) -> Option<CertificateError> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], at, algorithms) {
        Err(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}

/// How Tandem asks a worker of this machine over TLS. Who answers is known by its process, so that any certificate will do:
/// it is made out for another name than this machine's own.
///
/// # Errors
/// No version of TLS is known.
pub fn client() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
