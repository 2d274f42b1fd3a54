"""What a machine keeps between runs: its Ed25519 key and the hosts it knows, below ~/.holdfast or $HOLDFAST_HOME."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import SetupError
from holdfast.evidence.identity import Identity, load_or_make

VARIABLE = "HOLDFAST_HOME"


def home() -> Path:
    """The directory, made for its owner alone where it is missing. Raises SetupError."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else Path.home() / ".holdfast"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot make {path}: {error.strerror or error}; name another place with {VARIABLE}") from None
    return path


def hosts_file() -> Path:
    """Where `known_hosts` keeps the keys of hosts that this machine has met."""
    return home() / "hosts.json"


def machine_identity(path: Path | None = None) -> Identity:
    """The key in `path` (default: identity.pem at home), made at first start. Raises SetupError."""
    return load_or_make(home() / "identity.pem" if path is None else path)
