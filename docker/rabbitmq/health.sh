#!/bin/sh
# Log in by STOMP over verified TLS and leave.
printf 'CONNECT\naccept-version:1.2\nhost:/\nlogin:%s\npasscode:%s\n\n\000DISCONNECT\n\n\000' '${USER}' '${PASSWORD}' |
    timeout 5 openssl s_client -quiet -verify_quiet -verify_return_error -CAfile '${ETC}/ca.pem' \
        -verify_hostname localhost -connect localhost:${STOMP_PORT} 2>&1 |
    grep -q '^CONNECTED'
