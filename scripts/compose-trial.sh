#!/usr/bin/env bash
# compose-trial.sh [DIR]: start docker-compose.yml on a Debian machine that reaches no image registry, and try what it promises.
#
# The engine is DOCKER_HOST's, or one started for this in DIR (default: a temporary folder). Base images are made by
# mmdebstrap and the services built from Debian's packages (deploy/compose/debian.yml), so Grafana is left out. Needs root and
# the packages docker.io, docker-compose, mmdebstrap, skopeo and curl; takes five to ten minutes, two once DIR has the images.
# PIP_CERT names more certificates that pip has to trust, as it does for pip itself: they go into the base image.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/machine.sh

[ "$(id -u)" -eq 0 ] || die "an engine and mmdebstrap need root"
for program in docker docker-compose mmdebstrap skopeo curl python3; do
  command -v "$program" >/dev/null || die "$program is missing: apt-get install docker.io docker-compose mmdebstrap skopeo curl"
done

dir=${1:-$(mktemp -d /tmp/compose-trial.XXXXXX)}
mkdir -p "$dir"
dir=$(realpath "$dir")
engine=
export COMPOSE_PROJECT_NAME=blockgate-trial
export GATEWAY_PORT=18080 REGISTRY_PORT=15000 PROMETHEUS_PORT=19090
compose() { docker-compose -f docker-compose.yml -f deploy/compose/debian.yml "$@"; }
inside() { compose exec -T gateway "$@"; }

finish() {
  local status=$?
  if [ "$status" -ne 0 ]; then compose logs --tail 30 >&2 || true; fi
  [ -z "${node:-}" ] || docker rm --force "$node" >/dev/null 2>&1 || true
  compose down --volumes --timeout 20 >/dev/null 2>&1 || true
  [ -z "$engine" ] || { kill "$engine" && wait "$engine"; } 2>/dev/null || true
}
trap finish EXIT

# until_true SECONDS WHAT COMMAND...: poll.
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what did not come about"
    sleep 1
  done
}
holds() { local what=$1; shift; "$@" >/dev/null || die "not so: $what"; printf 'ok   %s\n' "$what"; }
fails() { ! "$@" 2>/dev/null; }
is_in() { grep -q -- "$1" <<<"$2"; }
same() { [ "$1" = "$2" ]; }

if [ -z "${DOCKER_HOST:-}" ]; then
  export DOCKER_HOST=unix://$dir/docker.sock
  say "Starting an engine in $dir"
  dockerd --data-root "$dir/docker" --exec-root "$dir/exec" --pidfile "$dir/dockerd.pid" -H "$DOCKER_HOST" \
    --default-ulimit nofile=1024:4096 >"$dir/dockerd.log" 2>&1 &
  engine=$!
  until_true 60 "an engine (see $dir/dockerd.log)" docker version
fi

if ! docker image inspect python:3.13-slim-trixie >/dev/null 2>&1; then
  say "Making the base image with mmdebstrap"
  hooks=()
  if [ -n "${PIP_CERT:-}" ]; then
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$dir/pip.conf"
    hooks=(--customize-hook="upload '$PIP_CERT' /etc/ssl/certs/ca-certificates.crt"
      --customize-hook="upload '$dir/pip.conf' /etc/pip.conf")
  fi
  quietly mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates "${hooks[@]}" trixie "$dir/base.tar"
  quietly docker import "$dir/base.tar" python:3.13-slim-trixie
  quietly docker tag python:3.13-slim-trixie debian:trixie-slim
  rm -f "$dir/base.tar"
fi

say "Building the images"
quietly compose build
say "Starting everything: docker-compose up"
quietly compose up -d
gateway=http://127.0.0.1:$GATEWAY_PORT
prometheus=http://127.0.0.1:$PROMETHEUS_PORT
healthy() { docker inspect -f '{{.State.Health.Status}}' "$(compose ps -q gateway)" | grep -qx healthy; }
until_true 60 "a healthy gateway" healthy
compose ps

say "Pushing an image to the registry beside it, and registering it"
rm -rf "$dir/sample" && mkdir -p "$dir/sample"
# Two layers of this repository's own files, larger than a span.
tar -C . -cf "$dir/sample/layer0.tar" gateway nbd_client tests
tar -C . -cf "$dir/sample/layer1.tar" docs deploy
python3 - "$dir/sample" <<'PYTHON'
import gzip, sys
from pathlib import Path
from tests.support.ocilayout import OciLayout, gzip_layer
folder = Path(sys.argv[1])
tars = [(folder / f"layer{number}.tar").read_bytes() for number in range(2)]
OciLayout(folder / "image").add_image([gzip_layer(gzip.compress(tar, mtime=0), tar) for tar in tars], tag="demo")
PYTHON
skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$dir/sample/image:demo" "docker://127.0.0.1:$REGISTRY_PORT/demo:latest"
inside blockgate device add demo registry:5000/demo:latest
inside blockgate device add layer0 registry:5000/demo:latest --layout tar --layer 0 --json >/dev/null

read_layer() { curl -fsS "$gateway/v1/devices/layer0/data" | head -c "$(stat -c %s "$dir/sample/layer0.tar")" | sha256sum; }
expected=$(sha256sum <"$dir/sample/layer0.tar")
holds "the device of a layer has that layer's bytes" same "$(read_layer)" "$expected"
holds "a range of the whole image is an EROFS superblock" same "$(curl -fsS -r 1024-1027 "$gateway/v1/devices/demo/data" | od -An -tx1)" " e2 e1 f5 e0"

holds "records are in PostgreSQL" same "$(compose exec -T database psql -h /var/run/postgresql -U blockgate -tAc 'SELECT count(*) FROM devices')" 2
holds "the gateway is no root" same "$(inside id -u)" 10001
holds "its root file system is read-only" fails inside touch /opt/blockgate/written
holds "its processes have no capabilities" is_in 'CapEff:.0000000000000000' "$(inside cat /proc/1/status)"
holds "no other user may read the database's password" same "$(inside stat -c '%a %u' /run/secrets/blockgate/passfile)" "400 10001"
password=$(inside cut -d: -f5 /run/secrets/blockgate/passfile)
holds "the password is in no container's settings" fails is_in "$password" "$(compose ps -q | xargs docker inspect)"
holds "nor in their logs" fails is_in "$password" "$(compose logs --no-color)"

up() { curl -fsS --get "$prometheus/api/v1/query" --data-urlencode 'query=up{job="blockgate"} == 1' | grep -q '"value"'; }
until_true 45 "a scrape of the gateway" up
holds "Prometheus scrapes the gateway" up
rules=$(curl -fsS "$prometheus/api/v1/rules")
count() { { grep -o -- "$1" <<<"$2" || true; } | sort -u | wc -l; }
holds "it has read each file of rules ($(count '"name":"[^"]*","\(query\|file\)' "$rules") groups and rules)" \
  same "$(count '"file":"[^"]*"' "$rules")" "$(find deploy/prometheus -name '*.yml' ! -name '*.test.yml' | wc -l)"
holds "no rule fails" fails is_in '"health":"err"' "$rules"

say "Restarting: one stop as told, one kill -9"
quietly compose stop gateway
holds "stopped as told, it exits with 0" same "$(docker inspect -f '{{.State.ExitCode}}' "$(compose ps -q gateway)")" 0
quietly compose start gateway
until_true 30 "a gateway after its restart" curl -fsS "$gateway/readyz"
holds "it reads the same bytes" same "$(read_layer)" "$expected"
quietly compose kill -s KILL gateway
quietly compose start gateway
until_true 30 "a gateway after kill -9" curl -fsS "$gateway/readyz"
holds "it reads the same bytes again" same "$(read_layer)" "$expected"
say "Stopping the registry: what was read is still there, and the gateway stays ready"
quietly compose stop registry
holds "it is ready without its registry" curl -fsS "$gateway/readyz"
holds "it reads what it has" same "$(read_layer)" "$expected"

say "The node's image: its agent, and a client in user space"
quietly docker build --network "${NETWORK:-host}" --target node --tag blockgate-node .
node=$(docker run --detach --rm --read-only --cap-drop ALL --cap-add SYS_ADMIN --tmpfs /run/blockgate-nbd:mode=0700 --tmpfs /tmp \
  --network "${COMPOSE_PROJECT_NAME}_front" blockgate-node)
on_node() { docker exec "$node" "$@"; }
until_true 20 "an agent" on_node test -S /run/blockgate-nbd/agent.sock
holds "the agent answers on a read-only root" on_node blockgate-nbd list --json
holds "no web framework and no database came with it" fails on_node python3 -c 'import fastapi, sqlalchemy'
on_node sh -c 'blockgate-nbd serve http://gateway:8080/v1/devices/demo/data --unix /tmp/demo.sock >/dev/null 2>&1 &'
until_true 20 "an NBD server in it" on_node test -S /tmp/demo.sock
docker stop --time 10 "$node" >/dev/null
say "All of it held"
