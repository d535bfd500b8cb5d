//! The integration tests, laid out like the source. One binary, so that it links once.

mod alerts;
mod architecture;
mod cache;
mod cli;
mod crash;
mod history;
mod runner;
mod schedule;
mod scheduler;
mod settings;
mod support;
mod upload;
mod warehouse;
mod web;
