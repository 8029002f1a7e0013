//! The data directory: its cluster, its processes, its files. Nothing in it is changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use super::{DEEP_LIMIT, LOOK_LIMIT, apart};
use crate::doctor::facts::{Data, Look, PidFile, Unseen};
use crate::doctor::subject::Subject;
use crate::exit::in_words;
use crate::plan::CommandLine;
use crate::postgres::binaries::Installation;
use crate::postgres::data::{DataDirectory, inspect};
use crate::postgres::home::Home;
use crate::postgres::{conf, settings, stale};
use crate::process::{self, look::apart as among_processes};

/// The data directory of `subject`.
pub async fn data(subject: &Subject) -> Look<Data> {
    let home = subject.home.clone()?;
    if !subject.is_managed() {
        return Err(Unseen::nothing("the server is not Tandem's own (postgres.mode = \"attach\")"));
    }
    let (place, given) = (home.clone(), subject.settings.clone().ok().map(|settings| settings.postgres));
    let found = apart("look at the data directory", move || {
        if let Err(error) = fs::read_dir(&place.data)
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            let data = place.data.display();
            return Err(Unseen::unknown(format!("this user may not read {data}: ask as root, or as its owner")));
        }
        let cluster = inspect(&place).map(|found| found == DataDirectory::Cluster);
        let altered = conf::altered(&place.data);
        let altered = given.map(|postgres| settings::overrides(&altered, &postgres)).unwrap_or_default();
        let cluster = Some(cluster.map_err(|error| in_words(&error)));
        Ok(Data { cluster, altered, pid_file: pid_file(&place), path: place.data, ..Data::default() })
    });
    let mut data = found.await??;
    let place = home.data.clone();
    // Only names and directories of processes are read.
    let processes = among_processes("look for PostgreSQL's processes", move || stale::working_in(&place)).await;
    let (own, foreign) = processes.ok_or_else(|| Unseen::unknown("the processes of this machine do not answer"))?;
    (data.processes, data.foreign) = (own, foreign);
    Ok(data)
}

fn pid_file(home: &Home) -> PidFile {
    match fs::read_to_string(home.data.join("postmaster.pid")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => PidFile::Absent,
        Ok(text) if text.lines().next().is_some_and(|line| line.trim().parse::<i32>().is_ok()) => PidFile::Whole,
        _ => PidFile::Damaged,
    }
}

/// `data` with what pg_controldata says of it and, of a stopped cluster on demand, its checksums.
pub async fn control(subject: &Subject, data: Look<Data>, programs: Option<&Installation>, runs: bool) -> Look<Data> {
    let mut data = data?;
    let (Some(programs), Ok(home)) = (programs, &subject.home) else { return Ok(data) };
    if !matches!(data.cluster, Some(Ok(true))) {
        return Ok(data);
    }
    let said = run(home, programs, "pg_controldata", &[], LOOK_LIMIT).await;
    data.control = Some(said.and_then(|(said, _)| fields(&said)));
    if subject.deep && !runs {
        let checked = run(home, programs, "pg_checksums", &["--check"], DEEP_LIMIT).await;
        data.checksums = Some(checked.map(|(said, good)| if good { String::new() } else { said }));
    }
    Ok(data)
}

/// What one of PostgreSQL's programs says of the cluster, and whether it ended well.
async fn run(
    home: &Home,
    programs: &Installation,
    name: &str,
    args: &[&str],
    limit: Duration,
) -> Result<(String, bool), String> {
    let command: CommandLine = programs.command(name).args(args).arg("-D").arg(&home.data);
    let command = command.env("LC_ALL", "C").dir("/").identity(home.server.clone());
    match process::run(&command, limit).await {
        Ok(ended) => Ok((format!("{}{}", ended.stdout, ended.stderr), ended.exit.success())),
        Err(error) => Err(error.to_string()),
    }
}

/// The lines `name: value` of pg_controldata.
fn fields(said: &str) -> Result<BTreeMap<String, String>, String> {
    let broken = said.lines().find(|line| line.starts_with("WARNING:") || line.starts_with("pg_controldata: error"));
    if let Some(line) = broken {
        return Err(line.to_owned());
    }
    let fields = said.lines().filter_map(|line| line.split_once(':'));
    Ok(fields.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect())
}

/// The rules of the cluster's pg_hba.conf by which the server lets clients in, as they are written.
pub async fn hba(subject: &Subject) -> Look<Vec<String>> {
    let home = subject.home.clone()?;
    if !subject.is_managed() {
        return Err(Unseen::nothing("the server is not Tandem's own (postgres.mode = \"attach\")"));
    }
    apart("look at pg_hba.conf", move || {
        let text = fs::read_to_string(home.data.join("pg_hba.conf"));
        let text = text.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unseen::nothing("there is no cluster yet"),
            _ => Unseen::unknown(format!("read pg_hba.conf: {error}")),
        })?;
        let rules = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(rules.map(str::to_owned).collect())
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_controldata_says_is_read_and_what_it_doubts_is_told() {
        let said = "pg_control version number:            1300\nDatabase cluster state:               shut down\n\
                    pg_control last modified:             Mon 30 Nov 2026 07:00:00 PM UTC\n";
        let fields_found = fields(said).unwrap();
        assert_eq!(fields_found["Database cluster state"], "shut down");
        assert_eq!(fields_found["pg_control last modified"], "Mon 30 Nov 2026 07:00:00 PM UTC");
        let doubted =
            "WARNING: Calculated CRC checksum does not match value stored in file.\nEither the file is corrupt";
        assert!(fields(doubted).unwrap_err().contains("CRC"));
    }
}
