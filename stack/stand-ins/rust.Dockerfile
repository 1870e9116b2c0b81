# A stand-in for `rust:1-bookworm`: a Debian with a linker, and the toolchain and the downloaded crates of the
# machine that it is built on.
ARG DEBIAN
FROM $DEBIAN
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/rustup/toolchain/bin:$PATH
COPY certificates /etc/ssl/certs
COPY toolchain /usr/local/rustup/toolchain
COPY registry /usr/local/cargo/registry
