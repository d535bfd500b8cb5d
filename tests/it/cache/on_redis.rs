//! What only a Redis can do.
