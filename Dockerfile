# Two images of one source: `--target node` is the client of a node, the default target is the gateway.
# No BuildKit needed. A registry of your own: --build-arg PYTHON_IMAGE=HOST/python:3.13-slim-trixie
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY blockgate blockgate
COPY gateway gateway
COPY nbd_client nbd_client
RUN python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The locked versions are constraints: each image takes only what its program needs of them.
FROM wheel AS gateway-environment
COPY requirements/test.lock .
RUN python3 -m venv /opt/blockgate \
 && /opt/blockgate/bin/python -m pip install --no-cache-dir --constraint test.lock "$(echo /wheels/*.whl)[gateway]" \
 && /opt/blockgate/bin/python -m pip uninstall --yes pip

FROM wheel AS node-environment
COPY requirements/test.lock .
RUN python3 -m venv /opt/blockgate \
 && /opt/blockgate/bin/python -m pip install --no-cache-dir --constraint test.lock "$(echo /wheels/*.whl)[node]" \
 && /opt/blockgate/bin/python -m pip uninstall --yes pip

# Holds NBD devices, which takes CAP_SYS_ADMIN and /dev: it runs as root (deploy/kubernetes/node.yaml says with what).
FROM ${PYTHON_IMAGE} AS node
COPY --from=node-environment /opt/blockgate /opt/blockgate
ENV PATH=/opt/blockgate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
HEALTHCHECK --interval=30s --timeout=10s --start-period=15s \
  CMD ["test", "-S", "/run/blockgate-nbd/agent.sock"]
CMD ["python3", "-m", "nbd_client.agent_main", "--run-dir", "/run/blockgate-nbd"]

FROM ${PYTHON_IMAGE} AS gateway
RUN groupadd --system --gid 10001 blockgate \
 && useradd --system --uid 10001 --gid blockgate --home-dir /var/lib/blockgate --shell /usr/sbin/nologin blockgate \
 && install -d -o blockgate -g blockgate -m 0750 /var/lib/blockgate
COPY --from=gateway-environment /opt/blockgate /opt/blockgate
# Without tokens the gateway refuses to listen on all addresses, and says what to do.
ENV PATH=/opt/blockgate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BLOCKGATE_HOST=0.0.0.0 \
    BLOCKGATE_DATA_DIR=/var/lib/blockgate
USER 10001:10001
WORKDIR /var/lib/blockgate
EXPOSE 8080
VOLUME /var/lib/blockgate
# Longer than draining (2 s) and the answers under way (30 s) take: docker stop --time 40, as docker-compose.yml has it.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('BLOCKGATE_PORT', '8080') + '/readyz', timeout=4)"]
ENTRYPOINT ["blockgate"]
CMD ["serve"]
