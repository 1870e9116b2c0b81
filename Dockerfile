# All services and hookctl in one image; the command chooses:
#   docker build -t pleo-webhooks . && docker run pleo-webhooks ingest
# Works with BuildKit and with the older builder. RUST_IMAGE and DEBIAN_IMAGE name the images below it,
# for instance copies in a registry of your own.
ARG RUST_IMAGE=rust:1-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

# What dependencies are compiled from: the manifests, and of every program an empty one. It is the
# same after a change of the sources, so the layer of the dependencies below stays cached.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN echo 'fn main() {}' > /empty.rs \
    && find . -name '*.rs' ! -path '*/src/lib.rs' ! -path '*/src/main.rs' ! -path '*/src/bin/*' \
        ! -path '*/tests/*/main.rs' ! -path '*/benches/*' ! -name build.rs -delete \
    && find . -name '*.rs' -exec cp /empty.rs {} ';' \
    && find . -type f ! -name '*.rs' ! -name Cargo.toml ! -name Cargo.lock -delete \
    && find . -type d -empty -delete

FROM ${RUST_IMAGE} AS build
WORKDIR /src
# `dev` compiles faster and runs slower.
ARG PROFILE=release
COPY --from=manifests /src .
RUN cargo build --locked --profile "$PROFILE" --bins -p ingest -p worker -p hookctl -p web-console
COPY . .
# Files have the time of the checkout, which may be before that of the empty programs. What build
# scripts have written keeps its time, else dependencies would be compiled again.
RUN find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --locked --profile "$PROFILE" --bins -p ingest -p worker -p hookctl -p web-console \
    && case "$PROFILE" in dev) folder=debug ;; *) folder=$PROFILE ;; esac \
    && mkdir /programs \
    && for program in ingest export-job-worker vendor-worker other-worker hookctl console; do \
         strip --strip-debug -o "/programs/$program" "target/$folder/$program" || exit 1; \
       done

# A bill of materials of each program, where it is asked for: it takes some minutes.
FROM ${RUST_IMAGE} AS sbom
ARG SBOM=false
RUN [ "$SBOM" != true ] || cargo install --locked cargo-cyclonedx
WORKDIR /src
COPY . .
RUN mkdir /sbom && { [ "$SBOM" != true ] || deploy/sbom /sbom; }

FROM ${DEBIAN_IMAGE}
COPY --from=sbom /sbom /usr/local/share/sbom
COPY --from=build /programs /usr/local/bin
# Inside a container the private port has to be reachable from its neighbours. Do not publish it.
ENV LISTEN=0.0.0.0:8080 PRIVATE_LISTEN=0.0.0.0:9100
EXPOSE 8080 9100
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["hookctl", "health"]
CMD ["hookctl", "--help"]
