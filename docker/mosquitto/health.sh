#!/bin/sh
# Log in over verified TLS and wait for one message; the options are in the file mosquitto_sub.
export XDG_CONFIG_HOME='${ETC}'
mosquitto_sub -t '$$SYS/broker/version' -C 1 -W 5 | grep -q mosquitto
