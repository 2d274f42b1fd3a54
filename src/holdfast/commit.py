"""The commit of the source tree that runs, for whoever wants to repeat a number later."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path

import holdfast


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Its first digits; a plus sign says that files have changed since. None where the program lies in no source tree."""
    source = Path(holdfast.__file__).parent
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", "errors.py"], capture_output=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 and tracked.returncode == 0 else None
