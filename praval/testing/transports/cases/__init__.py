"""The cases; importing this declares them, in the order of the matrix."""

from praval.testing.transports.cases import (  # isort: skip
    publishing as publishing,
    delivery as delivery,
    failures as failures,
    messages as messages,
    topics as topics,
    groups as groups,
    connections as connections,
    ending as ending,
    security as security,
    configuration as configuration,
)
