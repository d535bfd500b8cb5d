//! A TOML document that remembers where each value was written, and reads structs out of it finding every mistake.
//!
//! serde stops at the first mistake and forgets the place. Here a struct is still an ordinary `Deserialize`, but it is read
//! again and again, each time without the values that were found wrong ([`Reading::read`]), and every fault keeps its path.

mod fault;
mod fields;
mod fill;
mod node;
mod read;

pub(crate) use self::fault::{Fault, What, add_further, clip};
pub(crate) use self::fields::keys_of;
pub(crate) use self::node::{Entry, Node, Origin, Path, Step, SyntaxError, Table, Value, parse};
pub(crate) use self::read::{Reading, Scope};
