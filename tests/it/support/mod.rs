//! Servers and helpers that the tests share. Each server starts on a free port or socket and ends on drop.

pub mod bigquery;
pub mod daemon;
pub mod fault_proxy;
pub mod http_sink;
pub mod postgres;
pub mod redis;
pub mod rig;
