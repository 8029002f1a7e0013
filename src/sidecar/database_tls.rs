//! The certificate of our own PostgreSQL while it serves: new files at a reload, and renewal in time. Sessions go on: the
//! server reads its files again at SIGHUP and shows new sessions what it read (PostgreSQL documentation, 19.9).

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::context::Current;
use super::orders::Operator;
use super::services::ServiceKind;
use crate::config::{PostgresTls, Settings};
use crate::event_loop::within;
use crate::exit::{Code, Failure, in_words};
use crate::postgres::tls::{self, Certificate};
use crate::process;

/// How long reading the files may take.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at whether the certificate ends soon.
const INTERVAL: Duration = Duration::from_hours(12);

impl Operator {
    /// The certificate that `current` asks for; changes nothing.
    ///
    /// # Errors
    /// It cannot be served, or it is not one that the workers' connections would take.
    pub(super) async fn look_at_certificate(&self, current: &Current) -> anyhow::Result<Option<Certificate>> {
        let (postgres, loaded) = (current.settings().postgres.clone(), (*current.loaded()).clone());
        let home = self.context.home.clone();
        let look = move || tls::look(&postgres, &loaded, &home, SystemTime::now());
        let found = within(READ_LIMIT, "read the certificate of postgres.tls", look).await??;
        let said = self.context.url().parameters;
        if let Some(certificate) = found.as_ref().filter(|certificate| certificate.parameters != said) {
            let mode = |parameters: &[(String, String)]| {
                parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
            };
            let text = format!(
                "postgres.tls: the workers' DATABASE_URL says {}, and with these files it would say {}: workers that run \
                 could not connect; restart Tandem to change over",
                mode(&said),
                mode(&certificate.parameters)
            );
            return Err(Failure::new(Code::Config, text).into());
        }
        Ok(found)
    }

    /// Let the server serve `certificate` to new sessions; what was done, in words, if there was anything to do.
    ///
    /// # Errors
    /// A file cannot be written, or the server goes on with the certificate of before.
    pub(super) async fn serve_certificate(&self, certificate: Certificate) -> anyhow::Result<Option<String>> {
        let home = self.context.home.clone();
        let put = move || {
            let is_new = !certificate.is_in_place(&home);
            certificate.put(&home).map(|()| (certificate, is_new))
        };
        let (certificate, is_new) = within(READ_LIMIT, "write the certificate of postgres.tls", put).await??;
        let not_after = certificate.not_after;
        if !is_new {
            self.context.database_certificate.set(not_after);
            return Ok(None);
        }
        let server =
            self.tree.borrow().standing().find(|it| it.kind == Some(ServiceKind::Postgres)).and_then(|it| it.pid);
        if let Some(pid) = server {
            process::signal(pid, Signal::SIGHUP);
            let (listen, port) = (self.context.settings().postgres.listen, self.context.url().port);
            certificate.wait_served(listen, port).await?;
            let home = self.context.home.clone();
            let settle = move || certificate.settle(&home);
            within(READ_LIMIT, "write what clients check PostgreSQL by", settle).await??;
        }
        self.context.database_certificate.set(not_after);
        let until = not_after.map(|end| format!(", which holds until {}", humantime::format_rfc3339_seconds(end)));
        Ok(Some(format!("PostgreSQL shows new sessions the new certificate{}", until.unwrap_or_default())))
    }

    /// Renew Tandem's own certificate in time, and tell when a file's ends soon, for ever.
    pub async fn keep_certificate(self: Rc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let current = self.context.current();
            let kept = async {
                let Some(certificate) = self.look_at_certificate(&current).await? else { return Ok(None) };
                certificate.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
                match current.settings().postgres.tls {
                    PostgresTls::SelfSigned(_) => self.serve_certificate(certificate).await.context("renew it"),
                    // New files are taken by a reload: a pair may be half written now.
                    PostgresTls::Files(_) | PostgresTls::Off => Ok(None),
                }
            };
            match kept.await {
                Ok(done) => done.iter().for_each(|words| tracing::info!("{words}")),
                Err(error) => tracing::warn!("the certificate of PostgreSQL: {}", in_words(&error)),
            }
        }
    }
}

/// Whether there is a certificate to keep.
pub fn has_certificate(settings: &Settings) -> bool {
    !settings.postgres.tls.is_off()
}
