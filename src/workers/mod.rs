//! Uvicorn workers on listening sockets that all share, and the Python environment they run in.

mod addresses;
pub mod care;
pub mod environment;
pub mod gate;
pub mod launch;
pub mod life;
pub mod listener;
pub mod notify;
pub mod policy;
pub mod readiness;
pub mod serving;
pub mod slot;
pub mod socket_file;
pub mod surroundings;
pub mod template;
