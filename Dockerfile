# A small image: the binary, a jobs.toml, and the C library. No shell, no package manager, not root.
#   docker build -t lamplighter . && docker run --rm -v "$PWD/data:/data" lamplighter

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src

# The dependencies first, with an empty program in our place: this layer is built again only when Cargo.lock changes.
# (rust-toolchain.toml stays outside: it would make rustup fetch a second toolchain.)
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' >src/main.rs \
    && cargo build --release --locked --bin lamplighter

# Ours. The empty files above may be younger than the real ones, so cargo is told that these have changed.
COPY migrations migrations
COPY jobs.toml ./
COPY src src
RUN touch src/lib.rs src/main.rs && cargo build --release --locked --bin lamplighter && mkdir /data

# glibc, libgcc, CA certificates (Google's sign-in is checked against them) and an unprivileged user.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/lamplighter /usr/local/bin/lamplighter
COPY --from=build /src/jobs.toml /etc/lamplighter/jobs.toml
COPY --from=build --chown=65532:65532 /data /data
ENV LAMPLIGHTER_CONFIG=/etc/lamplighter/jobs.toml LAMPLIGHTER_DATA=/data
USER 65532:65532
# The list form: no shell in between, so the binary is PID 1 and receives SIGTERM itself.
CMD ["lamplighter", "serve"]
