"""What a figure depends on besides its settings: the command, the commit, the versions, the machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import holdfast


def environment() -> dict[str, Any]:
    """As plain values. The commit is that of the source tree, if it is one; a plus sign says that it has changed since."""
    return {
        "command": shlex.join(sys.argv),
        "holdfast": holdfast.__version__,
        "commit": _commit(Path(holdfast.__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": 1,
    }


def _commit(source: Path) -> str | None:
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        tracked = subprocess.run([*command[:3], "ls-files", "--error-unmatch", "errors.py"], capture_output=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 and tracked.returncode == 0 else None
