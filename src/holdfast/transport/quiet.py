"""Keeps gRPC's own log off the terminal of a process that is ours; a user's settings win."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SETTINGS = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""One line for each stranger whose handshake fails, and warnings about forks, which no process of ours makes."""


def quiet_grpc(environment: MutableMapping[str, str] = os.environ) -> None:
    """Call where a process begins, before gRPC is imported, or on the environment of one that is about to be started."""
    for name, value in SETTINGS.items():
        environment.setdefault(name, value)
