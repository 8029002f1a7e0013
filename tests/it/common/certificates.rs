//! Certificates for a test, and clients that speak TLS.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::exchange::{self, Answer};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An authority that only this test knows.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key.
pub struct Made {
    pub cert: String,
    pub key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a test");
        let certificate = params.self_signed(&key).unwrap();
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, pem }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this machine that ends in so many days, less than zero: that ended.
    pub fn make(&self, days: i64) -> Made {
        self.make_for(&["localhost", "127.0.0.1"], -1000, days)
    }

    /// A certificate for these names that begins and ends in so many days.
    pub fn make_for(&self, names: &[&str], first: i64, days: i64) -> Made {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let day = |number: i64| {
            let now = SystemTime::now();
            let by = DAY * u32::try_from(number.unsigned_abs()).unwrap();
            if number < 0 { now - by } else { now + by + DAY / 2 }
        };
        params.not_before = day(first).into();
        params.not_after = day(days).into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Made {
            cert: certificate.pem() + &self.pem,
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// A client that believes this authority alone, with a certificate of its own if that is given.
    pub fn client(&self, own: Option<&Made>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key_der.clone()));
                builder.with_client_auth_cert(vec![own.der.clone()], key).unwrap()
            }
        })
    }
}

impl Made {
    /// Write both into `dir`, readable for every user of this machine: workers run as another one where the tests are root.
    pub fn write(&self, dir: &Path) {
        for (name, text) in [("cert.pem", &self.cert), ("key.pem", &self.key)] {
            fs::write(dir.join(name), text).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
    }

    /// Whether it is the one that was `seen`.
    pub fn is(&self, seen: &CertificateDer<'_>) -> bool {
        self.der == *seen
    }
}

/// One request over TLS to `port` of this machine: the answer, and the certificate that was shown.
pub fn get(client: &Arc<ClientConfig>, port: u16, path: &str) -> io::Result<(Answer, CertificateDer<'static>)> {
    get_over(client, TcpStream::connect(("127.0.0.1", port))?, path)
}

/// As [`get`], over a connection that is there.
pub fn get_over(
    client: &Arc<ClientConfig>,
    stream: TcpStream,
    path: &str,
) -> io::Result<(Answer, CertificateDer<'static>)> {
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    let connection =
        ClientConnection::new(client.clone(), "localhost".try_into().unwrap()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let answer = exchange::get(&mut stream, path, "")?;
    let shown = stream.conn.peer_certificates().and_then(|chain| chain.first()).cloned();
    Ok((answer, shown.ok_or_else(|| io::Error::other("no certificate was shown"))?.into_owned()))
}
