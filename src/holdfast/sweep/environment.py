"""What a figure depends on besides its settings: the command, the commit, the date, the versions, the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

import holdfast
from holdfast.commit import commit


def environment() -> dict[str, Any]:
    """As plain values. The commit is that of the source tree, if it is one; a plus sign says that it has changed since."""
    return {
        "command": shlex.join(sys.argv),
        "holdfast": holdfast.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": 1,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }
