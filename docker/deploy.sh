#!/bin/sh
# Start the stack: deploy.sh [SERVICE...]     certificates, passwords and configuration are made
#                                             the first time, and never overwritten
# New certificates: deploy.sh renew           passwords and data stay
#
# PRAVAL_HOSTS="name ..." are the names under which other machines reach this one.
set -eu
cd "$(dirname "$0")"

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Runs in the app's own image: this machine needs nothing but Docker.
configure() {
    docker build --tag praval-app --file Dockerfile ..
    for host in ${PRAVAL_HOSTS:-}; do
        set -- "$@" --host "$host"
    done
    docker run --rm --network none --user "$owner" --volume "$PWD:/docker" praval-app \
        python /docker/configure.py "$@"
}

docker compose version >/dev/null 2>&1 ||
    fail "Docker with its compose plugin is needed: https://docs.docker.com/engine/install/"
information=$(docker info --format '{{.SecurityOptions}}') || fail "No Docker engine answers."
case $information in
*rootless*) owner=0:0 ;; # who root is to the containers is this user
*) owner=$(id -u):$(id -g) ;;
esac

if [ "${1:-}" = renew ]; then
    [ -e generated ] || fail "There is no configuration to renew: run deploy.sh first."
    configure renew
    docker compose restart
    exit
fi
if [ -e generated ]; then
    echo "keeping the configuration in docker/generated"
else
    configure
    echo "made docker/generated: certificates, passwords, configuration; keep it, and keep it secret"
fi
docker compose up --detach --build --wait "$@"
docker compose ps
