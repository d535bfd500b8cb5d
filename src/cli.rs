//! x
mod output; mod times; mod tables; mod logs;
