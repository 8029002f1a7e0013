//! The machine or the container. Pure.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Judged, seen, size, span};
use crate::config::PostgresMode;
use crate::doctor::facts::{Facts, Machine, Unseen};
use crate::doctor::verdict::Finding;

/// PostgreSQL's own cache may take so much of the memory, in parts of ten.
const BUFFERS_MANY: u64 = 5;
/// A process that has fewer files soon refuses clients.
const OPEN_FILES_MIN: u64 = 1024;
/// Files that Tandem itself has open, and those of each process of PostgreSQL that serves a client.
const OPEN_FILES_OWN: u64 = 64;
/// Less than this is no limit that a database keeps to.
const FILE_SIZE_MIN: u64 = 2 << 30;
/// Free shared memory below which parallel queries fail.
const SHARED_LOW: u64 = 8 << 20;
/// A clock that is off by more is wrong.
const CLOCK_OFF: f64 = 5.0;
const CLOCK_WRONG: f64 = 300.0;
/// No clock of a machine that this version runs on is earlier.
const BUILT_AFTER: i64 = 1_767_225_600;

pub fn memory(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    let settings = seen(&facts.settings)?;
    if settings.postgres.mode == PostgresMode::Attach {
        return Err(Unseen::nothing("the server is on another machine"));
    }
    let running = facts.server.as_ref().ok().and_then(|server| server.settings.as_ref().ok());
    let running = running.and_then(|settings| settings.get("shared_buffers")?.parse::<u64>().ok());
    let Some(buffers) = running.or(settings.postgres.shared_buffers) else {
        return Ok(vec![Finding::ok(format!("{} may be used", size(machine.memory)))]);
    };
    Ok(vec![of_buffers(buffers, machine)])
}

fn of_buffers(buffers: u64, machine: &Machine) -> Finding {
    let (limit, text) = (machine.memory, format!("shared_buffers is {} of {}", size(buffers), size(machine.memory)));
    let where_from = match machine.memory_total.is_some_and(|total| limit < total) {
        true => "that the control group may use",
        false => "that the machine has",
    };
    let next = "set postgres.shared_buffers to a quarter of it, or raise the limit";
    if buffers >= limit {
        return Finding::error(format!("{text} {where_from}"), next);
    }
    if buffers.saturating_mul(10) > limit.saturating_mul(BUFFERS_MANY) {
        return Finding::warning(format!("{text} {where_from}: little is left for workers and queries"), next);
    }
    Finding::ok(format!("{text} {where_from}"))
}

pub fn out_of_memory(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    if machine.oom_kills == 0 {
        return Ok(Vec::new());
    }
    let limited = machine.memory_total.is_some_and(|total| machine.memory < total);
    let text = format!("the kernel has killed {} processes for want of memory", machine.oom_kills);
    // The count of a whole machine tells of other people's processes too.
    match limited {
        true => Ok(vec![Finding::warning(
            format!("{text} in this control group"),
            "raise its limit, run fewer workers, or set workers.max_memory",
        )]),
        false => Ok(vec![Finding::notice(format!("{text} since the machine started")).then("see dmesg for which")]),
    }
}

pub fn swap(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    let used = machine.swap_total.saturating_sub(machine.swap_free);
    if machine.swap_total > 0 && used.saturating_mul(2) > machine.swap_total {
        let text = format!(
            "{} of {} of swap is in use: what is swapped out answers slowly",
            size(used),
            size(machine.swap_total)
        );
        return Ok(vec![Finding::warning(text, "give the machine more memory, or run fewer workers")]);
    }
    Ok(vec![Finding::ok(format!("{} of {} of swap is in use", size(used), size(machine.swap_total)))])
}

pub fn hugepages(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    match machine.hugepages.as_deref() {
        Some(said) if said.contains("[always]") => {
            let text = "transparent huge pages are \"always\": PostgreSQL and Python may take more memory, and pause";
            Ok(vec![Finding::notice(text).then("echo madvise >/sys/kernel/mm/transparent_hugepage/enabled")])
        }
        _ => Ok(Vec::new()),
    }
}

pub fn shared_memory(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    let Some((free, total)) = machine.shared_memory else {
        let text = "there is no /dev/shm: PostgreSQL shares memory between parallel queries in its data directory";
        return Ok(vec![Finding::notice(text)]);
    };
    if free < SHARED_LOW {
        let text = format!("/dev/shm has {} free of {}: parallel queries may fail", size(free), size(total));
        return Ok(vec![Finding::warning(
            text,
            "give the container more (docker run --shm-size=256m), or remove what fills it",
        )]);
    }
    Ok(vec![Finding::ok(format!("/dev/shm has {} free of {}", size(free), size(total)))])
}

pub fn open_files(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    let mut all = Vec::new();
    let connections = facts.settings.as_ref().map_or(0, |settings| u64::from(settings.postgres.max_connections));
    if let Some(most) = machine.open_files.hard {
        let needed = OPEN_FILES_MIN.max(connections + OPEN_FILES_OWN);
        let text = format!("a process may open at most {most} files");
        let next = "raise the limit: `ulimit -Hn`, LimitNOFILE= of the systemd unit, --ulimit nofile= of the container";
        all.push(match most < needed {
            true => Finding::warning(format!("{text}, and {needed} are needed for the clients of one worker"), next),
            false => Finding::ok(text),
        });
    }
    if let Some(most) = machine.file_size.soft.filter(|most| *most < FILE_SIZE_MIN) {
        let text = format!("a file may have at most {} (RLIMIT_FSIZE): tables and backups stop there", size(most));
        all.push(Finding::warning(text, "take the limit away: ulimit -f unlimited, LimitFSIZE=infinity"));
    }
    Ok(all)
}

pub fn clock(facts: &Facts) -> Judged {
    let machine = seen(&facts.machine)?;
    let now = facts.now;
    let next = "set the clock, and let a time service keep it (systemd-timesyncd, chrony)";
    let mut all = Vec::new();
    if now.timestamp() < BUILT_AFTER {
        all.push(Finding::error(format!("the clock says {}, which is in the past", now.format("%F %T")), next));
    }
    if let Some((path, at)) = &machine.newest_file {
        all.extend(ahead(now, DateTime::<Utc>::from(*at), &path.display().to_string()));
    }
    if let Some(last) = facts.backups.as_ref().ok().and_then(|backups| backups.all.last()) {
        all.extend(ahead(now, last.taken, &format!("the backup {}", last.name)));
    }
    if let Some(off) = facts.server.as_ref().ok().and_then(|server| server.clock.as_ref().ok()) {
        let text = format!("the server's clock is {} {}", span(off.abs()), if *off > 0.0 { "ahead" } else { "behind" });
        match off.abs() {
            off if off > CLOCK_WRONG => all.push(Finding::warning(text, next)),
            off if off > CLOCK_OFF => all.push(Finding::notice(text).then(next)),
            _ => {}
        }
    }
    if machine.unsynchronised {
        all.push(
            Finding::notice("a time service runs, and has not set the clock yet").then("timedatectl timesync-status"),
        );
    }
    Ok(all)
}

fn ahead(now: DateTime<Utc>, at: DateTime<Utc>, what: &str) -> Option<Finding> {
    (at > now + TimeDelta::minutes(5)).then(|| {
        let text =
            format!("{what} is of {}, and the clock says {}: it was set back", at.format("%F %T"), now.format("%F %T"));
        Finding::warning(text, "set the clock; ages of backups are counted from the newest one meanwhile")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Limit;
    use crate::doctor::verdict::Verdict;

    #[test]
    fn buffers_are_held_against_the_limit_of_the_control_group() {
        let machine = Machine { memory: 1 << 30, memory_total: Some(8 << 30), ..Machine::default() };
        let of = |megabytes: u64| of_buffers(megabytes << 20, &machine);
        assert_eq!([of(256), of(600), of(1024)].map(|it| it.verdict), [Verdict::Ok, Verdict::Warning, Verdict::Error]);
        assert!(of(1024).evidence.contains("1.0 GB of 1.0 GB that the control group may use"), "{:?}", of(1024));
    }

    #[test]
    fn what_a_machine_lacks_is_told() {
        let of = |machine: Machine| {
            let facts = Facts { machine: Ok(machine), ..Facts::unseen() };
            let worst = |judge: fn(&Facts) -> Judged| {
                judge(&facts).unwrap().iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
            };
            [out_of_memory, swap, hugepages, shared_memory, open_files].map(worst)
        };
        let well = Machine { shared_memory: Some((64 << 20, 64 << 20)), ..Machine::default() };
        assert_eq!(of(well.clone()), [Verdict::Ok; 5]);
        let limits = |number| Limit { soft: Some(number), hard: Some(number) };
        let lacking = Machine {
            oom_kills: 2,
            memory: 1 << 30,
            memory_total: Some(8 << 30),
            swap_total: 100,
            swap_free: 49,
            hugepages: Some("[always] madvise never".into()),
            shared_memory: Some((1 << 20, 64 << 20)),
            open_files: limits(256),
            ..well.clone()
        };
        let [notice, warning] = [Verdict::Notice, Verdict::Warning];
        assert_eq!(of(lacking.clone()), [warning, warning, notice, warning, warning]);
        let whole_machine = Machine { memory: 8 << 30, shared_memory: None, file_size: limits(1), ..lacking };
        assert_eq!(of(whole_machine), [notice, warning, notice, notice, warning]);
    }

    #[test]
    fn what_is_of_the_future_tells_of_a_clock_that_was_set_back() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        assert_eq!(ahead(now, now + TimeDelta::minutes(4), "x"), None);
        assert!(ahead(now, now + TimeDelta::hours(1), "x").unwrap().evidence.contains("it was set back"));
    }
}
