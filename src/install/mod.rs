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

/// Write an executable script for a test. A child writes it: had this process the file open for writing while
/// another test forks, executing it could fail with ETXTBSY.
#[cfg(test)]
pub(crate) async fn script(path: &std::path::Path, content: &str) {
    let write = "printf '%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let command = crate::plan::CommandLine::new("sh").args(["-c", write, "sh", content]).arg(path);
    let finished = crate::process::run(&command, std::time::Duration::from_secs(10)).await.unwrap();
    assert!(finished.exit.success(), "{finished:?}");
}
