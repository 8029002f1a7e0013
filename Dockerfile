# Tandem with the reference backend: PostgreSQL 16, the migrations, the workers and the health port in one container.
#
#   docker build -t backend .            (BuildKit; before Docker 23: DOCKER_BUILDKIT=1)
#   docker run -p 8000:8000 -p 8001:8001 -v backend-state:/var/lib/tandem backend
#   docker run --rm -v backend-state:/var/lib/tandem backend check       any other command; options of `up` follow the word
#   docker build --target slim -t backend:slim .                          without the sources of other locales
#
# Any user will do (--user 12345:0, OpenShift, Kubernetes' runAsUser with fsGroup), and so will --read-only with a volume.
# Parallel queries are faster with the --shm-size that the log names: Docker's /dev/shm of 64 MB is too small for them.
# For another application: change what is copied to /srv/app, and config/tandem.toml in it. Or build FROM this image: as
# root COPY a tandem.toml and the requirements, RUN tandem install, COPY the application, and USER 10001:10001 again.
# Behind a proxy with a certificate of its own: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt

# Both of one Debian release: the binary must not need a newer glibc than the runtime has.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${RUST_IMAGE} AS builder
WORKDIR /build
# The dependencies by themselves, around empty sources: this layer is made anew only when Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
COPY migration/Cargo.toml migration/
COPY src/supervise/Cargo.toml src/supervise/
RUN mkdir -p src migration/src && touch src/lib.rs src/supervise/lib.rs migration/src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs >src/build.rs
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export CARGO_HTTP_CAINFO=/run/secrets/ca; fi; \
    cargo build --profile dist --locked
COPY src src
COPY migration migration
# `tandem docs` prints it.
COPY docs docs
# Newer than what was built from the empty ones, whatever times the checkout gave them.
RUN find src migration -name '*.rs' -exec touch {} + && cargo build --profile dist --locked --offline

# All that runs, without the application and what it needs.
FROM ${PYTHON_IMAGE} AS runtime
# What PostgreSQL's binaries load, and the time zones: without those the server refuses every `SET timezone`. nss-wrapper
# gives a user without an entry in /etc/passwd the name that initdb asks for.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        libgssapi-krb5-2 liblz4-1 libnss-wrapper libreadline8 libssl3 libxml2 libzstd1 tzdata zlib1g \
    && rm -rf /var/lib/apt/lists/*
# A number of its own keeps a volume readable over rebuilds. Any other user gets into the volume by the group 0, which is
# what a container's arbitrary user has (OpenShift's convention).
RUN groupadd --gid 10001 tandem \
    && useradd --uid 10001 --gid tandem --home-dir /var/lib/tandem --no-create-home --shell /usr/sbin/nologin tandem \
    && install -d -o tandem -g 0 -m 0775 /var/lib/tandem
COPY --from=builder /build/target/dist/tandem /usr/local/bin/tandem

# Programs lie in the image, owned by root and closed to the application's writes; what changes lies in the volume.
# Docker and Compose grant 10 s to stop (--stop-timeout, stop_grace_period): the workers' share leaves PostgreSQL its own.
# With more, raise all three.
ENV TANDEM_CACHE_DIR=/opt/tandem/cache \
    TANDEM_PYTHON__VENV=/opt/tandem/venv \
    TANDEM_STATE_DIR=/var/lib/tandem \
    TANDEM_STOP__GRACE=3s \
    TANDEM_STOP__POSTGRES_GRACE=4s \
    TANDEM_STOP__PLATFORM_GRACE=10s \
    TANDEM_POSTGRES__RUN_AS=tandem \
    TANDEM_WORKERS__RUN_AS=tandem \
    TANDEM_WORKERS__LISTEN=0.0.0.0:8000 \
    TANDEM_HEALTH__LISTEN=0.0.0.0:8001
WORKDIR /srv/app
EXPOSE 8000 8001
# Docker's default, written down because the order of the stop hangs on it.
STOPSIGNAL SIGTERM
# A failure within the start period does not count, and the first success ends it: it covers the recovery of a large
# database, which a platform must not cut short. Docker 25 and newer ask sooner with --start-interval=1s.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30m CMD ["tandem", "health"]
ENTRYPOINT ["tandem"]
CMD ["up"]

# PostgreSQL and the Python packages. The compiler is for packages without a wheel, and stays here.
FROM runtime AS packages
# Clusters that docker-library/postgres made, and dumps of them, have the locale en_US.utf8.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc g++ libc6-dev locales \
    && localedef -i en_US -c -f UTF-8 -A /usr/share/locale/locale.alias en_US.UTF-8
COPY config/tandem.toml config/
COPY examples/backend/requirements.txt examples/backend/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \
    PIP_NO_CACHE_DIR=1 tandem install

FROM runtime AS slim
COPY --from=packages /usr/lib/locale/locale-archive /usr/lib/locale/
COPY --from=packages /opt/tandem /opt/tandem
COPY config/tandem.toml config/
COPY examples/backend examples/backend
USER 10001:10001
VOLUME /var/lib/tandem

# The same with what `localedef` makes other locales from.
FROM runtime
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends locales \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages /usr/lib/locale/locale-archive /usr/lib/locale/
COPY --from=packages /opt/tandem /opt/tandem
COPY config/tandem.toml config/
COPY examples/backend examples/backend
USER 10001:10001
VOLUME /var/lib/tandem
