//! Files that are whole under their name or not there, and locks on files: the only door to rename(2) and flock(2).
//!
//! ```text
//! write     a file's new content beside the old one, flushed, renamed into its place
//! names     renaming: over another file, never over another file, two names exchanged; flushing files and names
//! lock      a lock that the kernel releases with the process that holds it
//! holder    which process that is, by the kernel's word
//! ```
//!
//! A name that changes on disk is safe after a power cut only when three things were flushed in this order: the content,
//! the rename, and the directory (fsync(2)). Each caller used to write that sequence by hand.
//!
//! This room knows nothing of what the files hold, and logs nothing.

mod holder;
mod lock;
mod names;
mod write;

pub use holder::Holder;
pub use lock::{Lock, LockError};
pub use names::{
    exchange, open_itself, remove, rename, rename_new, sync_dir, sync_file_system, sync_parent, sync_tree,
};
pub use write::{WriteOptions, put, replace, replace_if_changed};
