//! Life while the history database is away.
