//! Uvicorn workers on one listening socket.

pub mod listener;
pub mod notify;
