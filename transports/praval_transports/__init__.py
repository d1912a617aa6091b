"""The transports that carry a Reef's spores between processes, one module per protocol.

A transport depends on the contract in ``praval.core.transport``, on ``praval.core.tls`` and on
``praval.errors``, and on nothing else of Praval. No module here is imported before it is asked
for by name, so a broker client that is not installed costs nothing.
"""
