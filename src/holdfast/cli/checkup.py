"""The checks of `holdfast doctor`, one function each: what was looked at, whether it is as it must be, and the facts."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from holdfast.errors import HoldfastError

LEAST_DISK_BYTES = 2**30
LEAST_MEMORY_BYTES = 2**30
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """`passed` is None where there is nothing to pass: a fact for whoever reads a report of trouble."""

    name: str
    passed: bool | None
    detail: str


def examine(model: str, device: str = "cpu") -> Iterator[Check]:
    """Every check in turn, each as soon as it is known; a check that raises counts as failed."""
    yield _python()
    yield from _packages()
    yield _threads()
    there = _guarded("device", lambda: _device(device))
    yield there
    on_it = {
        "same product twice": lambda: _same_product_twice(device),
        "same stage twice": lambda: _same_stage_twice(model, device),
        "split equals whole": lambda: _self_test(model, device),
    }
    for name, check in on_it.items():
        yield _guarded(name, check) if there.passed else Check(name, None, "not tried: there is no device to try it on")
    yield _guarded("memory", _memory)
    yield _guarded("disk", _disk)
    yield from _data()


def _guarded(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (HoldfastError, RuntimeError, OSError, ImportError) as error:
        return Check(name, False, str(error))


def _python() -> Check:
    found = platform.python_version()
    return Check("python", sys.version_info >= (3, 11), f"{found} on {platform.platform()}; needed: 3.11 or later")


def _packages() -> Iterator[Check]:
    """Each required package against the range in this installation's metadata; extras are facts."""
    from packaging.requirements import Requirement

    try:
        needed_packages = requires("holdfast") or ()
    except PackageNotFoundError:
        yield Check("packages", None, "this source tree is not installed (pip install -e .), so nobody knows what it needs")
        return
    for text in needed_packages:
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if optional and ("dev" in str(requirement.marker) or requirement.name == "holdfast"):
            continue
        needed = str(requirement.specifier) or "any version"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(
                requirement.name,
                None if optional else False,
                f"not installed; {'optional' if optional else 'needed'}: {needed}",
            )
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Check(requirement.name, fits, f"{found}; {'optional' if optional else 'needed'}: {needed}")


def _threads() -> Check:
    import torch

    said = os.environ.get("OMP_NUM_THREADS", "not set")
    return Check(
        "threads",
        None,
        f"{os.cpu_count()} cores, torch would use {torch.get_num_threads()}, OMP_NUM_THREADS {said}; a run uses 1",
    )


def _device(name: str) -> str:
    from holdfast.job import check_device
    from holdfast.numerics import chip

    check_device(name)
    return f"{name}: {chip(name)}"


def _same_product_twice(device: str) -> str:
    import torch

    from holdfast.digest import same_bytes
    from holdfast.numerics import pinned

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator).to(device) for _ in range(2))
    with pinned(device):
        one, other = left @ right, left @ right
    if not same_bytes(one, other):
        raise RuntimeError("the same matrix product gave different bits; digests cannot be compared on this machine")
    return "one matrix product, equal bits"


def _same_stage_twice(model: str, device: str) -> str:
    import torch

    from holdfast.digest import tensors_digest
    from holdfast.numerics import pinned
    from holdfast.partition import StageModule, describe, initial_weights, make_plan

    source = describe(model)
    plan = make_plan(source.config, 3)
    seen = set()
    for _ in range(2):
        stage = StageModule(source.config, plan, 1, device=device)
        stage.load_weights(initial_weights(source, plan, 1, seed=0))
        hidden = torch.randn(2, 16, plan.width, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        with pinned(device):
            output = stage(hidden)
            output.backward(torch.ones_like(output))
        gradients = {name: parameter.grad for name, parameter in stage.named_owned_parameters()}
        found = {"output": output, "input gradient": hidden.grad, **gradients}
        seen.add(tensors_digest({name: tensor for name, tensor in found.items() if tensor is not None}))
    if len(seen) != 1:
        raise RuntimeError("the same stage gave different bits on the same input; shadows would accuse honest workers here")
    return f"a stage of {model} forward and backward, equal bits"


def _self_test(model: str, device: str) -> str:
    from holdfast.numerics import pinned
    from holdfast.partition import describe
    from holdfast.partition.selftest import self_test

    with pinned(device):
        return str(self_test(describe(model), device=device))


def _memory() -> str:
    from holdfast.partition.memory import available_memory

    free = available_memory()
    if free is None:
        return "this system does not say how much is free"
    if free < LEAST_MEMORY_BYTES:
        raise RuntimeError(f"{free / GIB:.1f} GiB free; a small run needs about 1 GiB")
    return f"{free / GIB:.1f} GiB free"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < LEAST_DISK_BYTES:
        raise RuntimeError(f"{free / GIB:.1f} GiB free in {Path.cwd()}; checkpoints of a small run need about 1 GiB")
    return f"{free / GIB:.1f} GiB free in {Path.cwd()}"


def _data() -> Iterator[Check]:
    from holdfast.data import load_corpus

    yield _guarded("data: embedded", lambda: f"sha256 {load_corpus('embedded').sha256[:12]}")
    for name, folder in _folders():
        where = f"found in {folder}" if folder is not None else "no local folder; --data would fetch it from the hub"
        yield Check(f"data: {name}", None, where)


def _folders() -> Iterator[tuple[str, Path | None]]:
    from holdfast.data.corpus import FOLDERS, local_folder

    for name in FOLDERS:
        yield name, local_folder(name)
