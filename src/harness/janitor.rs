//! Cleans up after a run, however that ended: a small shell that outlives it, and waits for the end of a pipe.
//!
//! What ends a run in an orderly way does the same as `kill -9`: nothing. So its caller waits for no shutdown, and there is
//! one way to clean up, which every run tests. The server itself dies with Tandem (PR_SET_PDEATHSIG); the shell makes
//! sure of that, ends what the command left, removes the directory and the kernel's shared memory, and lays out a spare
//! data directory. Where there is none and no other run, it removes the place of all runs as well.

use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::process::Stdio;

use super::place::RunDir;
use super::remains;
use crate::plan::CommandLine;
use crate::process::{self, Child, Streams};

/// Arguments: the run's directory, its data directory, an image or nothing, where its spare is to be if there is none then.
///
/// A process of PostgreSQL works in its data directory, which nothing else does. SIGQUIT is the immediate shutdown, after
/// which the postmaster removes its shared memory itself.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
dir=$1 data=$2 image=$3 spare=$4
workers() { find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$data" 2>/dev/null | cut -d/ -f3; }
read -r order
if [ "$order" = keep ]; then
    while [ -n "$(workers)" ]; do sleep 1; done
else
    # What the command started, wherever it went: a session of its own hides it from the end of a group.
    tries=0
    while left=$(grep -lsF "TANDEM_TEST_SOCKET=$dir/" /proc/[0-9]*/environ | cut -d/ -f3) && [ -n "$left" ] && [ $tries -lt 20 ]; do
        kill -KILL $left 2>/dev/null
        tries=$((tries + 1))
    done
    kill -QUIT $(head -n 1 "$data/postmaster.pid" 2>/dev/null | grep -xF "$(workers)") 2>/dev/null
    tries=0
    while left=$(workers) && [ -n "$left" ] && [ $tries -lt 600 ]; do
        [ $tries -lt 60 ] || kill -KILL $left 2>/dev/null
        tries=$((tries + 1))
        sleep 0.05
    done
fi
# By the directory's inode, as `remains::segments`: a server that had only begun to start has not written it down.
key=$(stat -c %i "$data" 2>/dev/null)
awk -v key="${key:-0}" '($1 - key) % 4294967296 == 0 && $7 == 0 {print $2}' /proc/sysvipc/shm 2>/dev/null |
    while read -r segment; do ipcrm --shmem-id "$segment" 2>/dev/null; done
rm -rf "$dir"
if [ -n "$image" ] && [ ! -e "$spare" ]; then
    new=${spare%/*}/making-$$
    if mkdir -m 700 "$new" && tar --numeric-owner -xpf "$image" -C "$new" 2>/dev/null; then
        chown --reference="$new/PG_VERSION" "$new" && mv -T "$new" "$spare" 2>/dev/null
    fi
    rm -rf "$new"
fi
# As `leave` in place.rs: what waits for this lock looks afterwards whether it still is the one at its path.
base=${dir%/*} lock=${dir%/*}/lock
others() { find "$base" -mindepth 1 -maxdepth 1 ! -name lock 2>/dev/null; }
[ -z "$(others)" ] && command -v flock >/dev/null || exit 0
umask 077
exec 9<>"$lock"
if flock -w 10 9 && [ "/proc/$$/fd/9" -ef "$lock" ] && [ -z "$(others)" ]; then
    rm -f "$lock"
    rmdir "$base"
fi 2>/dev/null
"#;

/// The janitor of one run. Dropping it, as every end of this process does, sets it to work.
#[derive(Debug)]
pub struct Janitor {
    orders: PipeWriter,
    _shell: Child,
}

impl Janitor {
    /// Let a janitor wait for the end of the run in `place`; `spare` is an image, and where to lay it out.
    ///
    /// # Errors
    /// No shell can be started.
    pub fn hire(place: &RunDir, spare: Option<(&Path, &Path)>) -> io::Result<Self> {
        let (listens, orders) = io::pipe()?;
        let (image, spare) = spare.unwrap_or((Path::new(""), Path::new("")));
        let command = CommandLine::new("/bin/sh")
            .args(["-c", SCRIPT, "tandem-janitor"])
            .arg(&place.dir)
            .arg(remains::data(&place.dir))
            .arg(image)
            .arg(spare)
            .dir("/");
        let streams = Streams::new(Stdio::from(listens), Stdio::null(), Stdio::null());
        Ok(Self { orders, _shell: process::spawn_with(&command, None, streams)? })
    }

    /// Let the server live on. The directory goes when it has ended.
    ///
    /// # Errors
    /// The janitor was killed.
    pub fn let_live(&mut self) -> io::Result<()> {
        self.orders.write_all(b"keep\n")
    }
}
