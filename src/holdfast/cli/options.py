"""Options out of the table of settings: a command gets one option a setting without spelling thirty arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import typer

from holdfast.cli.defaults import DEFAULTS, Default
from holdfast.settings import SETTINGS, Setting

QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="Tell every alert, ruling and change of the route.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def require_known(option: str, name: str, known: Collection[str]) -> None:
    """Raises ConfigError where `name`, given to `option`, is none of those."""
    from holdfast.errors import ConfigError, did_you_mean

    if name not in known:
        raise ConfigError(f"{option} {name!r}: {did_you_mean(name, known)}known are {', '.join(known)}")


def with_settings(
    command: Callable[..., None], settings: Sequence[Setting] = SETTINGS, defaults: Mapping[str, Default] | None = None
) -> Callable[..., None]:
    """`command` with its `**settings` spelled out as options, so that help and completion know them.

    What was not given arrives as None, so that a file's value stands. `defaults` are those that the command has of its own,
    by the name of the setting; None: it has none.
    """
    known = {**DEFAULTS, **(defaults or {})}
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [
        inspect.Parameter(
            setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(setting, known.get(setting.name))
        )
        for setting in settings
    ]
    names = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    def run(**values: Any) -> None:
        command(**values)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    signature = inspect.Signature([*names, *added])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return run


def _annotation(setting: Setting, default: Default) -> Any:
    kind: Any = list[setting.kind] if setting.many else setting.kind  # type: ignore[name-defined]
    spelling = f"{setting.option}/--no-{setting.option[2:]}" if setting.kind is bool else setting.option
    metavar = None if setting.kind is bool else {"int": "N", "float": "X", "str": "TEXT"}[setting.kind.__name__]
    return Annotated[kind | None, typer.Option(spelling, help=_help(setting, default), metavar=metavar, show_default=False)]


def _help(setting: Setting, default: Default) -> str:
    """What it means, and what stands where nothing is said."""
    if isinstance(default, bool):
        default = "on" if default else "off"
    return setting.help if default is None else f"{setting.help} [default: {default}]"
