#!/bin/sh
# Log in over verified TLS and ask for a sign of life.
export PGPASSWORD='${PASSWORD}'
psql --no-psqlrc --quiet --output=/dev/null --command='select 1' \
    "host=localhost port=${PORT} user=${USER} dbname=${DATABASE} sslmode=verify-full sslrootcert=${ETC}/ca.pem"
