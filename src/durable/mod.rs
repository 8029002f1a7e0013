//! Files that appear under their name only when they are complete, and locks on files. The only room that calls rename(2) and
//! flock(2).
//!
//! ```text
//! write     a file's new content beside the old one, flushed, renamed into its place
//! reserve   a file that gives way when a small file finds the disk full
//! names     renaming: over another file, never over another file, two names exchanged; flushing files and names
//! lock      a lock that the kernel releases with the process that holds it
//! holder    the process that holds a lock, as the kernel reports it
//! ```
//!
//! A change survives a power cut only if the content is flushed before the rename, and the directory after it (fsync(2)).
//!
//! This room does not know what the files contain, and logs nothing.

mod holder;
mod lock;
mod names;
mod reserve;
mod write;

pub use holder::{Holder, held_by};
pub use lock::{Lock, LockError};
pub use names::{
    exchange, open_itself, remove, rename, rename_new, sync_dir, sync_file_system, sync_parent, sync_tree,
};
pub use reserve::keep as keep_reserve;
pub use write::{WriteOptions, create, put, replace, replace_if_changed};
