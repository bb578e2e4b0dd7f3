# The sidecar and the Kamailio shim in one image; both start with `sipnap`.
#
#   docker build -t sipnap .
#   docker run --network container:kamailio -v sipnap:/var/lib/sipnap sipnap    the sidecar, for a proxy in that network
#   docker run --network container:kamailio sipnap shim kamailio                the shim beside it
#   docker run -p 5600:5600 -v ./sipnap.toml:/etc/sipnap/sipnap.toml:ro -v ./tls:/etc/sipnap/tls:ro \
#       -e SIPNAP_CONFIG=/etc/sipnap/sipnap.toml sipnap                         the sidecar with TLS, for other machines
#
# Without settings the sidecar listens on the container's own loopback: who shares its network namespace (a pod, or
# `--network container:`) reaches it, nobody else does. To be reached from elsewhere it needs a certificate, or --insecure
# in so many words, as on any machine. The health check asks the sidecar for its status, and takes its settings from the
# same file, table [status], and the same environment: with TLS, say there by what name and authority to reach it.
# A shim is healthy also while its sidecar is away: run it with --no-healthcheck.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/sipnap
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY sidecar sidecar
COPY shim shim
RUN /opt/sipnap/bin/pip install --no-cache-dir '.[sidecar,redis,http,enum]'

FROM python:3.13-slim-bookworm
RUN groupadd --system --gid 5600 sipnap && \
    useradd --system --uid 5600 --gid 5600 --no-create-home --shell /usr/sbin/nologin sipnap && \
    install --directory --mode=0700 --owner=sipnap --group=sipnap /var/lib/sipnap
COPY --from=build /opt/sipnap /opt/sipnap
ENV PATH=/opt/sipnap/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/var/lib/sipnap
USER 5600:5600
# The journal: name the volume, and what was accepted survives the container.
VOLUME /var/lib/sipnap
EXPOSE 5600
# The first SIGTERM drains; what still waits after --drain-seconds is named in the log.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["sipnap", "status"]
ENTRYPOINT ["sipnap"]
CMD ["serve"]
