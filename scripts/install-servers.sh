#!/bin/sh
# Install the servers that the tests start: RabbitMQ, Mosquitto, ActiveMQ, Redis, PostgreSQL.
# Root on Debian or Ubuntu: by apt-get, without starting any of them. Otherwise: say what to do.
# Nothing happens when all of them are there.
set -eu

packages="rabbitmq-server mosquitto mosquitto-clients activemq redis-server postgresql openssl"
policy=/usr/sbin/policy-rc.d

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

missing() {
    for package in $packages; do
        status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) || :
        [ "$status" = installed ] || printf ' %s' "$package"
    done
}

apt_quietly() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}

# What this answers, 101, tells the packages' scripts not to start their services.
forbid_starting() {
    [ -e "$policy" ] && return
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

wanted=$(missing)
[ -z "$wanted" ] && exit 0
command="apt-get install -y --no-install-recommends$wanted"
command -v apt-get >/dev/null 2>&1 ||
    fail "The tests start real servers, as Debian and Ubuntu package them, and this system has no" \
        "apt-get. Run the tests on one of those; missing:$wanted"
[ "$(id -u)" = 0 ] ||
    fail "The tests start real servers that are not installed here:$wanted" \
        "Install them and run make again: sudo apt-get update && sudo $command" \
        "The tests run them on ports of their own; none has to run as a service."
echo "installing by apt-get, without starting them (once):$wanted"
forbid_starting
# shellcheck disable=SC2086  # the words of $wanted are the packages
if ! { apt_quietly update && apt_quietly install -y --no-install-recommends $wanted; }; then
    fail "apt-get could not install what the tests need; see above. By hand: $command"
fi
