//! How soon readiness follows the database.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::project::Project;
use crate::common::readiness::{Idle, follow as course};
use crate::parts::Bench;
use crate::table::{Goal, Table};
use crate::up::{Up, ms};

const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(30);

/// A backend is killed while the health port is asked as fast as it answers.
pub fn follow(_: &mut Bench, table: &mut Table) {
    let project = Project::backend();
    let (up, _) = Up::ready(&project);
    let (mut withdrawn, mut back) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let idle = Idle::open(&project);
        let kill = || kill(Pid::from_raw(idle.backend), Signal::SIGKILL).unwrap();
        let course = course(project.health, (LIMIT, LIMIT), kill, || ());
        withdrawn.push(ms(course.withdrawn.expect("a refusal")));
        back.push(ms(course.back.expect("a yes")));
    }
    up.stop();
    let what = "`kill -9` of a backend: `/ready` says no";
    table.row(what, "ms", &withdrawn, None, Goal::Below(10.0));
    table.row("— and yes again", "ms", &back, None, Goal::None);
}
