"""What came to pass in a run besides lies, in words: who was lost, banned or came, who took over, what was done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.report.record import RunRecord

TURNS = ("WorkerLost", "TakenOver", "Banned", "StepRestarted", "RolledBack", "Reseated")
"""What the timeline marks with a dot below the stages."""


def verdict(run: RunRecord) -> str:
    """One sentence for a run in which nobody was caught: whether anybody was suspected, and what was done about it."""
    if run.defence == "none":
        return "Nothing was checked: the run had no defence."
    if not run.of("Alert", "Ruling"):
        return "No claim was found wrong, and nobody is suspected of a lie."
    left_out, again = _steps(run, "StagesSkipped"), _steps(run, "StepRestarted")
    done = [f"suspects were left out of {left_out}"] if left_out else []
    done += [f"{again} done again"] if again else []
    return "Nobody was proven to have lied" + (f": {' and '.join(done)}." if done else ".")


def account(run: RunRecord) -> list[str]:
    """A sentence for each loss, ban, return and arrival, oldest first, with who took over."""
    sentences = []
    takeovers, gone = run.of("TakenOver"), set()
    for record in run.of("WorkerLost", "Banned", "RolledBack", "Joined"):
        out = record["event"] in ("WorkerLost", "Banned")
        heirs = [t for t in takeovers if out and t["lost"] == record["worker"] and t["step"] == record["step"]]
        told = told_of(record, ", and ".join(took_over(heirs)))
        told += " back" if record["event"] == "Joined" and record["worker"] in gone else ""
        gone |= {record["worker"]} if out else set()
        sentences.append(told[0].upper() + told[1:].rstrip(".") + ".")
    return sentences


def took_over(takeovers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The takeovers with one clause an heir: `w3 took over stage 2`."""
    stages: dict[str, list[int]] = {}
    for record in takeovers:
        stages.setdefault(record["heir"], []).append(record["stage"])
    return [
        f"{heir} took over stage{'s' if len(some) > 1 else ''} {' and '.join(map(str, sorted(some)))}"
        for heir, some in stages.items()
    ]


def told_of(record: Mapping[str, Any], heirs: str = "") -> str:
    """One record, of an event that has a step, as a clause; with `heirs`, who took over from who is out."""
    step = record["step"]
    then = f", and {heirs}" if heirs else ""
    match record["event"]:
        case "WorkerLost":
            return f"in step {step} {record['worker']} was lost{then}: {record['reason']}"
        case "TakenOver":
            return f"in step {step} {took_over([record])[0]} from {record['lost']}"
        case "Banned":
            return f"in step {step} {record['worker']} was banned after {_count(record['lies'], 'proven lie')}{then}"
        case "Joined":
            return f"in step {step} {record['worker']} came"
        case "StepRestarted":
            return f"step {step} was done again, attempt {record['attempt']}: {record['reason']}"
        case "RolledBack":
            return (
                f"in step {step} the run went back to the state after {_count(record['version'], 'step')}: {record['reason']}"
            )
        case "Reseated":
            return f"from step {step} on the stages were with {', '.join(dict.fromkeys(record['primaries']))}"
        case other:
            raise AssertionError(f"no words for {other}")


def _steps(run: RunRecord, event: str) -> str:
    """How many steps have such an event, as words; empty if none."""
    steps = {record["step"] for record in run.of(event)}
    return _count(len(steps), "step") if steps else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
