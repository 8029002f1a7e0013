//! Shared by everything that installs files: a lock that is waited for, digests, modes that let every user read, and plain
//! words for the output of pip and uv.
//!
//! Must not know what is installed: that is `postgres::binaries` and `workers::environment`.

mod complaint;
mod digest;
mod layers;
mod lock;
mod shared;

pub use complaint::{Complaint, last_lines};
pub use digest::{hexadecimal, sha256, sha256_file};
pub use layers::{copy_dir, is_of_a_lower_layer};
pub use lock::lock;
pub use shared::{keep_out_of_git, make_shared_dir, open_to_all, write_whole};
