//! `postgres.tls` and its files: whether PostgreSQL serves over TLS, and with which certificate.

use std::path::PathBuf;

use super::values::Values;

/// How PostgreSQL serves over TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PostgresTls {
    #[default]
    Off,
    /// With a certificate by an authority of Tandem's own, made out for these names besides those of this machine.
    SelfSigned(Vec<String>),
    Files(PostgresTlsFiles),
}

impl PostgresTls {
    pub fn of(values: &Values) -> Self {
        match (values.word("postgres.tls").as_str(), values.path("postgres.tls_cert")) {
            ("self-signed", _) => Self::SelfSigned(values.list("postgres.tls_names").unwrap_or_default()),
            ("files", Some(cert)) => Self::Files(PostgresTlsFiles {
                key: values.path("postgres.tls_key").unwrap_or_else(|| cert.clone()),
                cert,
                ca: values.path("postgres.tls_ca"),
            }),
            _ => Self::Off,
        }
    }

    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// The same kind, as a reload may take it up from `new`: another kind needs another start of the server.
    pub fn renewed(&self, new: &Self) -> Self {
        match (self, new) {
            (Self::SelfSigned(_), Self::SelfSigned(_)) | (Self::Files(_), Self::Files(_)) => new.clone(),
            _ => self.clone(),
        }
    }
}

/// The files of `postgres.tls = "files"`, all as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresTlsFiles {
    /// The certificate, and those of the authorities between it and a root.
    pub cert: PathBuf,
    /// Its private key; may be the same file.
    pub key: PathBuf,
    /// The authority by which clients check the certificate.
    pub ca: Option<PathBuf>,
}
