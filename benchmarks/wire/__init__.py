"""Budget 10: transports on real brokers, against the raw client libraries and FastStream.

Two processes, TLS with verified certificates, 1 KiB messages, a window of 100 unconfirmed ones.
``python -m benchmarks.wire`` starts private brokers (see tests/servers) and prints one table.
"""
