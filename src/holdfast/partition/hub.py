"""A name that may be a directory or one on the hub: which of them is meant, and whether the hub has it, asked once and briefly.

    ./model  runs/first/model  /data/gpt2      paths: where nothing is there, that is the answer
    gpt2  openai-community/gpt2-xl             names on the hub, or of a directory beside us

The library itself would ask five times with growing pauses, for each file, and tell each time.
"""

from __future__ import annotations

import time
from enum import Enum
from functools import lru_cache
from pathlib import Path

from holdfast.errors import ConfigError, SetupError

TIMEOUT_S = 10.0
PAUSE_S = 1.0


class Hub(Enum):
    """What the hub says of a name. SILENT: it cannot be reached, or is switched off."""

    HAS = "has"
    LACKS = "lacks"
    SILENT = "silent"


def is_path(name: str) -> bool:
    """Whether nobody would call a model on the hub that: it has a form, or a folder around it, that names there do not have."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and Path(name).parent.is_dir())


def check_path(name: str, what: str = "model") -> None:
    """Raise ConfigError where `name` can only be a path, and nothing is there."""
    if is_path(name) and not Path(name).expanduser().exists():
        raise ConfigError(
            f"no {what} {name!r}: there is no such directory; give one that exists, or a name on the hub (NAME or LAB/NAME)"
        )


def check_hub(name: str) -> bool:
    """Whether the hub answers; then it has `name`. Raises ConfigError where it has none of that name.

    Where it does not answer, what is in the library's cache can be used (`local_files_only`); else `unreachable` is the error.
    """
    said, _reason = ask(name)
    if said is Hub.LACKS:
        raise ConfigError(
            f"no model {name!r}: neither a directory here nor a name that the hub has (or it is private, and no token is "
            "set); check the spelling"
        )
    return said is Hub.HAS


def unreachable(name: str) -> SetupError:
    """The error for a name that is neither a directory nor in the cache, while the hub does not answer."""
    _said, reason = ask(name)
    return SetupError(
        f"no directory {name!r}, and the hub cannot be reached to look for a model of that name ({reason}); check the name "
        "and the connection, or give the directory of a model"
    )


@lru_cache(maxsize=64)
def ask(name: str) -> tuple[Hub, str]:
    """What the hub says of a name, and why where it says nothing: two tries at most, quietly, once in a process."""
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if is_offline_mode():
        return Hub.SILENT, "it is switched off by HF_HUB_OFFLINE"
    reason = ""
    for last in (False, True):
        try:
            HfApi().model_info(name, timeout=TIMEOUT_S)
        except RepositoryNotFoundError:
            return Hub.LACKS, ""
        except HfHubHTTPError:
            return Hub.HAS, ""  # it answers, and whoever asks for the files will hear what is the matter
        except Exception as error:  # noqa: BLE001  (which HTTP client raises here depends on the library's version)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if not last:
                time.sleep(PAUSE_S)
        else:
            return Hub.HAS, ""
    return Hub.SILENT, reason
