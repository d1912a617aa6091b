#!/bin/sh
# Ask over verified TLS whether it is ready; the image has openssl, but no HTTP client.
printf 'GET /readyz HTTP/1.0\r\n\r\n' |
    openssl s_client -quiet -verify_quiet -verify_return_error -CAfile '${ETC}/ca.pem' \
        -verify_hostname localhost -connect localhost:${PORT} 2>&1 |
    grep -q '^HTTP/1.[01] 200'
