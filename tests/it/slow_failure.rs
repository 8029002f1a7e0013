//! An application whose startup takes its time to fail: it is given up as one that fails fast.

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem};

/// Each start fails only after the period in which failures are counted.
const APP: &str = "import asyncio\n\n\nasync def app(scope, receive, send):\n    await receive()\n    await asyncio.sleep(1.5)\n    \
                   raise RuntimeError('slow_failure: the exchange did not answer')\n";

#[test]
fn a_startup_that_fails_slowly_trips_the_breaker_too() {
    let lines = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1\nworkers.count = 1\n\
                 workers.restart_period = '1s'\nworkers.restart_intensity = 2\nworkers.backoff_first = '10ms'\n\
                 workers.backoff_max = '10ms'";
    let project = Project::app_with("slow_failure:app", lines).without("workers.app_dir");
    project.write("slow_failure.py", APP);
    let mut tandem = Tandem::start(&project);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    let (tries, error) = log.rsplit_once("gave up").unwrap_or_else(|| panic!("no word of the end:\n{log}"));
    assert!(error.contains("slow_failure: the exchange did not answer"), "its last lines:\n{log}");
    assert_eq!(tries.matches("; restart ").count(), 2, "{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}
