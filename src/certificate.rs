//! The certificate that something is served with: whether it and its key belong together, hold, and can be read by the user
//! that serves with them; and a client that asks a server of this machine whatever its certificate says.
//!
//! Must not know what is served. Blocks: called elsewhere.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::plan::{Identity, Secret};
use crate::process::identity;

/// Days before the end of a certificate from which on its end is told.
const DAYS_WARNED: u64 = 14;
const DAY: u64 = 24 * 60 * 60;
/// After every certificate's end: the last second of the year 9999 is the last that one can name (RFC 5280, 4.1.2.5).
const AFTER_ALL: Duration = Duration::from_secs(253_402_300_800);

/// A chain of certificates, the server's own first.
pub type Chain = Vec<CertificateDer<'static>>;

/// The keys of the configuration that name the files.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    pub cert: &'static str,
    pub key: &'static str,
    pub ca: &'static str,
}

/// The files, all as PEM.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    pub keys: Keys,
    /// The certificate, and those of the authorities between it and a root.
    pub cert: &'a Path,
    /// Its private key; may be the same file.
    pub key: &'a Path,
    pub ca: Option<&'a Path>,
    /// Who reads them; `None`: Tandem itself.
    pub user: Option<&'a Identity>,
    /// Whether a certificate that does not hold yet is refused, and not only told.
    pub must_hold: bool,
}

/// What a look at the files found.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Each with its key, and what to do.
    pub wrong: Vec<(&'static str, String, String)>,
    pub notices: Vec<String>,
    pub not_after: Option<SystemTime>,
    pub chain: Chain,
    pub authorities: Chain,
    /// The certificate and the key as they were read, in one text.
    pub pem: Option<Secret>,
}

/// Look at the `files`.
pub fn inspect(files: &Files<'_>, now: SystemTime) -> Inspection {
    let mut found = Inspection::default();
    let Keys { cert: cert_key, key: key_key, ca: ca_key } = files.keys;
    let cert_pem = found.read(cert_key, files.cert, files.user);
    let key_pem = found.read(key_key, files.key, files.user);
    let chain = cert_pem.as_ref().and_then(|pem| found.certificates(cert_key, files.cert, pem));
    let key = key_pem.as_ref().and_then(|pem| found.key(files, pem));
    if let Some(ca) = files.ca
        && let Some(pem) = found.read(ca_key, ca, files.user)
    {
        found.authorities = found.certificates(ca_key, ca, &pem).unwrap_or_default();
    }
    if let Some(leaf) = chain.as_ref().and_then(|chain| chain.first()) {
        found.validity(leaf, files, now);
    }
    if let (Some(chain), Some(key)) = (&chain, key) {
        found.pair(chain.clone(), key, files);
    }
    if let (Some(cert), Some(key)) = (cert_pem, key_pem) {
        let [cert, key] = [cert, key].map(|pem| String::from_utf8_lossy(&pem).into_owned());
        found.pem = Some(Secret::new(if cert == key { cert } else { format!("{}\n{}", cert.trim_end(), key) }));
    }
    found.chain = chain.unwrap_or_default();
    found
}

/// Whether `chain` leads to one of `authorities` at the moment `now`, as clients of rustls see it.
///
/// # Errors
/// Why it does not.
pub fn leads_to(chain: &Chain, authorities: &Chain, now: SystemTime) -> Result<(), rustls::Error> {
    let Some((leaf, between)) = chain.split_first() else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let parsed = ParsedCertificate::try_from(leaf)?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, now, algorithms)
}

/// Whether `leaf` is made out for `name`, a name or an address.
pub fn is_for(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(leaf), ServerName::try_from(name)) else { return false };
    verify_server_name(&parsed, &name).is_ok()
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

    fn key(&mut self, files: &Files<'_>, pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
        let (shown, name) = (files.key.display(), files.keys.key);
        if let Ok(key) = PrivateKeyDer::from_pem_slice(pem) {
            if identity::is_open_to_all(files.key) {
                self.notices.push(format!("{name}: every user of this machine may read {shown}: chmod o-r {shown}"));
            }
            return Some(key);
        }
        if String::from_utf8_lossy(pem).contains("ENCRYPTED") {
            let help = format!("write it without its password: openssl pkey -in {shown} -out NEW; chmod 600 NEW");
            self.add(name, format!("the private key in {shown} is encrypted"), help);
        } else {
            let cert = files.keys.cert;
            let help = format!(
                "a file of PEM has a line -----BEGIN PRIVATE KEY-----; where it is not that of {cert}, write {name}"
            );
            self.add(name, format!("{shown} holds no private key"), help);
        }
        None
    }

    fn validity(&mut self, leaf: &CertificateDer<'_>, files: &Files<'_>, now: SystemTime) {
        let (shown, name) = (files.cert.display(), files.keys.cert);
        if let Some(not_before) = not_before(leaf, now) {
            let begins = humantime::format_rfc3339_seconds(not_before);
            let (why, help) = (format!("{shown} is not valid before {begins}"), "does this machine's clock go right?");
            match files.must_hold {
                true => self.add(name, why, help),
                false => self.notices.push(format!("{name}: {why}: {help}")),
            }
        }
        let Some(not_after) = not_after(leaf) else {
            self.notices.push(format!("{name}: until when {shown} is valid cannot be read"));
            return;
        };
        self.not_after = Some(not_after);
        let ends = humantime::format_rfc3339_seconds(not_after);
        match not_after.duration_since(now) {
            Err(_) => self.add(name, format!("{shown} expired at {ends}"), "renew it, then `tandem reload`"),
            Ok(left) if left.as_secs() < DAYS_WARNED * DAY => {
                let days = left.as_secs() / DAY;
                self.notices
                    .push(format!("{name}: {shown} expires at {ends}, in {days} days: renew it, then `tandem reload`"));
            }
            Ok(_) => {}
        }
    }

    fn pair(&mut self, chain: Chain, key: PrivateKeyDer<'static>, files: &Files<'_>) {
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            // A kind of key that is not known here is OpenSSL's to judge, in the server.
            Ok(_) | Err(rustls::Error::General(_)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let (cert, key) = (files.cert.display(), files.key.display());
                let help = "name the key that the certificate was made for; after a renewal both files are new";
                self.add(files.keys.key, format!("{key} is not the key of the certificate in {cert}"), help);
            }
            // X.509 version 1, for example, which OpenSSL serves.
            Err(error) => self.notices.push(format!(
                "{}: whether {} and its key belong together cannot be checked: {error}",
                files.keys.cert,
                files.cert.display()
            )),
        }
    }
}

/// Whole days from `now` until `moment`, less than zero where that has passed.
pub fn days_left(moment: SystemTime, now: SystemTime) -> i64 {
    let days = |time: Duration| i64::try_from(time.as_secs() / DAY).unwrap_or(i64::MAX);
    match moment.duration_since(now) {
        Ok(left) => days(left),
        Err(past) => -1 - days(past.duration()),
    }
}

/// Until when the certificate holds. It is judged as at the end of all time, for the error says when its own end was.
pub fn not_after(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
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

/// How Tandem asks a server of this machine over TLS. Who answers is known by its process, so that any certificate will do:
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
