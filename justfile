# What people type most. `just` alone lists it.

_default:
    @just --list

# everything that CI runs; the first time it installs what is missing
ci:
    scripts/test

# the tests, or some of them: just test upload::
test *filter:
    scripts/test packages emulator
    cargo test --locked --features failpoints {{ filter }}

# the upload beside three ways to do it in Python
bench *options:
    scripts/bench-upload {{ options }}

# a whole night's work, without any server
demo:
    cargo run --release --locked -- demo

# known weaknesses of our dependencies; asks the RustSec database on the internet
advisories:
    cargo deny check advisories
