//! The only door to OS processes: spawn, run to the end, read output, change identity, find orphans.
//!
//! Must not decide anything: what to run is `plan/`'s, when to restart is `supervise/`'s.

mod aside;
mod child;
mod descriptors;
pub mod fd_channel;
mod foreground;
pub mod handed;
pub mod heap;
pub mod identity;
pub mod keeper;
pub mod lease;
pub mod limits;
mod lines;
pub mod look;
pub mod mark;
pub mod memory;
pub mod oom;
mod orderly;
pub mod orphans;
pub mod ports;
pub mod priority;
mod run;
pub mod sockets;
mod spawn;
mod stranger;
mod stream;
pub mod umask;
mod wait;

pub use aside::spawn_aside;
pub use child::{Child, Exit, Output, adopt};
pub use foreground::{Foreground, has_terminal, spawn_foreground, take_back};
pub use lines::{lines, live_lines};
pub use run::{Finished, OUTPUT_LIMIT, RunError, run, run_with};
pub use spawn::{InheritedFd, Streams, group_of, os_signal, replace, signal, signal_group, spawn, spawn_with};
pub use stranger::{Identifier, Stranger};
pub use stream::{Streamed, Streaming};
pub use wait::ended;
