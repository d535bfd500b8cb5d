//! Lamplighter, the night watch of an ML prediction cache.
//!
//! The rooms, from the top down; imports point down this list and never up:
//!
//! | room | what it is for |
//! |---|---|
//! | [`cli`] | commands, their output and exit codes |
//! | [`app`] | picks the backends and wires everything |
//! | [`settings`], [`scheduler`], [`web`] | `jobs.toml` and the environment; what is due when; what is said over HTTP |
//! | [`runner`] | one run from claim to alert |
//! | [`jobs`], [`alerts`] | the job kinds; what people are told |
//! | [`history`], [`warehouse`], [`cache`] | runs and dead letters; where uploads land; what producers filled |
//! | [`clock`], [`schedule`], [`units`], `document` | time, cron semantics, durations and sizes, TOML with places |

pub mod alerts;
pub mod app;
pub mod cache;
pub mod cli;
pub mod clock;
pub(crate) mod document;
pub mod history;
pub mod jobs;
pub mod runner;
pub mod schedule;
pub mod scheduler;
pub mod settings;
pub mod units;
pub mod warehouse;
pub mod web;
