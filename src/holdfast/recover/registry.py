"""The remedies by name, for `--on-alert`: one visible table, plug-ins of the group `holdfast.remedies`, `file.py:Class`."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.plugins import Catalogue
from holdfast.recover.relay import Relay
from holdfast.recover.remedy import Remedy
from holdfast.recover.replace import Replace
from holdfast.recover.restart import Restart
from holdfast.recover.skip import Skip

REMEDIES: Mapping[str, type[Remedy]] = {"restart": Restart, "relay": Relay, "skip": Skip, "replace": Replace}

CATALOGUE: Catalogue[Remedy] = Catalogue("remedy", "holdfast.remedies", Remedy, "holdfast.recover.remedy.Remedy", REMEDIES)


def known_remedies() -> dict[str, str]:
    """Every name that `resolve_remedy` knows, with one line each; plug-ins are named but not loaded."""
    return CATALOGUE.known()


def resolve_remedy(spec: str | Remedy, retries: int) -> Remedy:
    """The remedy that `spec` describes; `retries` goes to whoever takes it. An object passes through. Raises ConfigError."""
    return CATALOGUE.resolve(spec, {"retries": retries})
