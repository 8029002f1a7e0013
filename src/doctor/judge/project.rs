//! The project: its configuration, its Tandem, its ports, its programs. Pure.

use super::{Judged, few, seen, size};
use crate::doctor::facts::{Facts, LocalTime, NoStatus, Unseen};
use crate::doctor::verdict::Finding;
use crate::project::versions;

/// States of a service in which it does not work, and will not by itself.
const GAVE_UP: [&str; 2] = ["gave-up", "abandoned"];
/// So many restarts of one service are worth a word.
const RESTARTS: u32 = 5;
/// The launcher and its table of options know Uvicorn from 0.22 on.
const UVICORN_OLD: &str = "<0.22";

pub fn configuration(facts: &Facts) -> Judged {
    let found = &facts.configuration;
    if !found.is_project {
        let nothing = format!("there is no project in {}", found.directory.display());
        return Ok(vec![
            Finding::notice(nothing).then("run this in a project's directory, or make one: `tandem init`"),
        ]);
    }
    let wrong = found.problems.iter().map(|reason| {
        let next = reason.help.clone().unwrap_or_else(|| "`tandem check` shows all of it".to_owned());
        Finding::error(reason.sentence(), next)
    });
    let notices = found.notices.iter().map(Finding::notice);
    let mut all: Vec<Finding> = wrong.chain(notices).collect();
    if all.is_empty() {
        let place = found.file.as_ref().unwrap_or(&found.directory);
        all.push(Finding::ok(format!("{} is good", place.display())));
    }
    Ok(all)
}

pub fn tandem(facts: &Facts) -> Judged {
    let running = seen(&facts.tandem)?;
    let status = match (&running.status, &running.holder) {
        (Some(Ok(status)), _) => status,
        (Some(Err(NoStatus::Refused(why))), _) => return Err(Unseen::unknown(why.clone())),
        (Some(Err(NoStatus::Silent(why))), _) => {
            let next = "look at its log; `tandem stop` twice, or end the process, and start it again";
            return Ok(vec![Finding::error(format!("tandem runs and does not answer: {why}"), next)]);
        }
        (None, Some(holder)) => {
            let text = format!("{holder} holds the state directory, and listens on no control socket");
            return Ok(vec![Finding::warning(text, "wait for its end, or end it")]);
        }
        (None, None) => return of_data(running.data_holder.as_deref()),
    };
    let mut all = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let text = format!("version {} runs here, and this is {own}", status.version);
        all.push(Finding::notice(text).then("`tandem stop` and `tandem up` change to this version"));
    }
    for service in &status.services {
        let why = service.last_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        if GAVE_UP.contains(&service.state.as_str()) {
            let text = format!("{} is {}{why}", service.name, service.state);
            all.push(Finding::error(text, format!("`tandem logs {}`, then `tandem reload`", service.name)));
        } else if service.restarts >= RESTARTS {
            let text = format!("{} was restarted {} times{why}", service.name, service.restarts);
            all.push(Finding::warning(text, format!("`tandem logs {}` says why", service.name)));
        }
    }
    if let Some(why) = &status.hook {
        all.push(Finding::warning(format!("hooks.after_ready failed: {why}"), "run the command by hand"));
    }
    // Other checks say these in more words.
    let of_others = |why: &str| ["disk of the ", "the last backup failed"].iter().any(|start| why.starts_with(start));
    let more = "`tandem status` and `tandem logs` show more";
    let reasons = running.reasons.iter().filter(|why| !of_others(why));
    all.extend(reasons.map(|why| Finding::warning(format!("health: {why}"), more)));
    all.push(Finding::ok(format!("process {} is {}", status.pid, status.phase)));
    Ok(all)
}

fn of_data(holder: Option<&str>) -> Judged {
    let Some(holder) = holder else { return Err(Unseen::nothing("no tandem runs here")) };
    let text = format!("{holder} holds the data directory, from another state directory or a container");
    Ok(vec![Finding::error(text, "stop that one before anything is started here: two servers destroy the data")])
}

pub fn ports(facts: &Facts) -> Judged {
    let ports = seen(&facts.ports)?;
    let machine = seen(&facts.machine)?;
    let mut all = Vec::new();
    for used in ports {
        let (key, port) = (used.key, used.port);
        match &used.holder {
            // A socket that systemd hands down is Tandem's.
            Some(holder) if holder.starts_with("systemd ") => {
                all.push(Finding::notice(format!("port {port} ({key}) is held by {holder}, for a socket unit")));
            }
            Some(holder) if used.moves => {
                let text = format!("port {port} ({key}) is taken by {holder}: PostgreSQL gets another one");
                all.push(Finding::notice(text));
            }
            Some(holder) => {
                let text = format!("port {port} is taken by {holder}");
                all.push(Finding::error(text, format!("stop that program, or set {key}")));
            }
            None if port < machine.first_free_port && !machine.is_root => {
                let text = format!("port {port} ({key}) needs a privilege: ports below {} do", machine.first_free_port);
                let next = format!("set {key} to a higher port, and let a proxy or a systemd socket have the low one");
                all.push(Finding::warning(text, next));
            }
            None => {}
        }
    }
    Ok(all)
}

pub fn libraries(facts: &Facts) -> Judged {
    let programs = seen(&facts.programs)?;
    if let Some(lacks) = &programs.lacks {
        return Ok(vec![Finding::error(lacks.clone(), "install what is named, or bring another PostgreSQL")]);
    }
    let modules = programs.modules.iter().map(|module| {
        Finding::notice(format!("PostgreSQL's module {module}")).then("only an extension that uses it needs that")
    });
    let good =
        Finding::ok(format!("PostgreSQL {} in {} finds all that it needs", programs.version, programs.bin.display()));
    Ok(modules.chain([good]).collect())
}

pub fn time_zones(facts: &Facts) -> Judged {
    Ok(match &seen(&facts.machine)?.local_time {
        LocalTime::Usable => Vec::new(),
        LocalTime::Dangling(target) => vec![Finding::warning(
            format!("/etc/localtime leads to {}, which is not there: times are shown in UTC", target.display()),
            "install tzdata, or set the link anew (timedatectl set-timezone)",
        )],
        LocalTime::NoZones => vec![Finding::warning(
            "there is no time zone database in /usr/share/zoneinfo: schedules and Python's zoneinfo need it",
            "install tzdata",
        )],
    })
}

pub fn python(facts: &Facts) -> Judged {
    let python = seen(&facts.python)?;
    let mut all = Vec::new();
    match &python.changed {
        Some(Err(why)) => all.push(Finding::error(why.clone(), "correct it, and run `tandem install`")),
        Some(Ok(file)) if python.is_made => {
            let text = format!("the Python environment was not made from {} as it is now", file.display());
            all.push(Finding::warning(text, "`tandem deploy` takes it up, or `tandem install` before the next start"));
        }
        Some(Ok(_)) => all.push(Finding::ok("the Python environment is made by the first start, or `tandem install`")),
        None => {}
    }
    if !python.is_there {
        let text = format!("the Python interpreter {} is not there", python.interpreter.display());
        all.push(Finding::error(text, "install it, or name another one with python.interpreter"));
    }
    Ok(all)
}

pub fn uvicorn(facts: &Facts) -> Judged {
    let python = seen(&facts.python)?;
    if !python.is_uvicorn {
        return Err(Unseen::nothing("another server runs the application (workers.command)"));
    }
    let Some(version) = &python.uvicorn else {
        if !python.is_made {
            return Err(Unseen::nothing("there is no Python environment yet"));
        }
        let text = format!("the environment of {} has no uvicorn", python.interpreter.display());
        return Ok(vec![Finding::error(text, "add uvicorn to the requirements of the application")]);
    };
    if versions::fits(UVICORN_OLD, version) == Some(true) {
        let text = format!("uvicorn {version} is older than 0.22, the first that Tandem's launcher knows");
        return Ok(vec![Finding::warning(text, "ask for uvicorn>=0.22 in the requirements, then `tandem deploy`")]);
    }
    Ok(vec![Finding::ok(format!("uvicorn {version}"))])
}

pub fn caches(facts: &Facts) -> Judged {
    let caches = seen(&facts.caches)?;
    let found = caches.iter().map(|old| {
        let text = format!("{} of an earlier version of Tandem takes {}", old.path.display(), size(old.bytes));
        Finding::notice(text).then(format!("if no other project uses it: rm -r {}", old.path.display()))
    });
    Ok(found.collect())
}

pub fn migrations(facts: &Facts) -> Judged {
    let revisions = match &facts.server {
        Ok(server) => seen(&server.revisions)?,
        Err(unseen) => return Err(unseen.clone()),
    };
    if let Some(refused) = &revisions.refused {
        return Ok(vec![Finding::error(refused.clone(), "start the version that made it, or restore a backup")]);
    }
    if revisions.pending > 0 {
        let text = match revisions.pending {
            1 => "1 migration is not applied".to_owned(),
            count => format!("{count} migrations are not applied"),
        };
        return Ok(vec![behind(&text)]);
    }
    let Some((known, heads)) = &revisions.known else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    if heads.len() > 1 {
        let text =
            format!("the migrations have {} heads ({}): `alembic upgrade head` is refused", heads.len(), few(heads));
        all.push(Finding::error(text, "join them: `tandem run alembic merge heads`"));
    }
    let unknown: Vec<String> = revisions.current.iter().filter(|one| !known.contains(one)).cloned().collect();
    if !unknown.is_empty() {
        let text =
            format!("the database is at {}, which this code does not know: newer code migrated it", few(&unknown));
        all.push(Finding::error(text, "deploy that code, or restore a backup of before"));
    } else if revisions.current.is_empty() {
        all.push(behind("no migration is applied"));
    } else if let Some(missing) = heads.iter().find(|head| !revisions.current.contains(head)) {
        all.push(behind(&format!(
            "the database is at {}, and the newest revision is {missing}",
            few(&revisions.current)
        )));
    }
    Ok(all)
}

fn behind(evidence: &str) -> Finding {
    Finding::warning(evidence, "`tandem migrate up`, or `tandem deploy`")
}

pub fn leftovers(facts: &Facts) -> Judged {
    use crate::backup::doctor::Kind;
    let on_disks = seen(&facts.room)?;
    let in_server = facts.server.as_ref().ok().and_then(|server| server.kept.as_ref().ok()).into_iter().flatten();
    let found = on_disks.iter().chain(in_server).map(|one| {
        let word = match one.kind {
            Kind::Leftover => "left over",
            Kind::Kept => "kept",
            Kind::Incomplete => "no backup",
        };
        let text = format!("{word}: {}, {}: {}", one.what, size(one.bytes), one.why);
        match one.kind {
            Kind::Leftover => Finding::warning(text, "`tandem doctor --fix` removes it"),
            Kind::Kept => {
                Finding::notice(text).then("`tandem doctor --fix --yes` removes it, and with it the way back")
            }
            Kind::Incomplete => Finding::warning(text, "import it, or remove it"),
        }
    });
    Ok(found.collect())
}
