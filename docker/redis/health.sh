#!/bin/sh
# Log in over TLS and ask for a sign of life.
export REDISCLI_AUTH='${PASSWORD}'
redis-cli --user '${USER}' --tls --cacert '${ETC}/ca.pem' -h localhost -p ${PORT} ping | grep -q PONG
