//! Servers and helpers that the tests share. Each server starts on a free port or socket and ends on drop.

pub(crate) mod bigquery;
pub(crate) mod daemon;
pub(crate) mod fault_proxy;
pub(crate) mod http_sink;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod rig;
