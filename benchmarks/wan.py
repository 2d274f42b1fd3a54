"""What a long line costs: the share of it that the wire fills, and the share of a run that its delay takes.

    scripts/two-namespaces bare; then a link between them, for example 50 ms each way and 200 Mbit/s
    python benchmarks/wan.py --rate 200            as root; the namespaces are holdfast-east and holdfast-west

First tensors from east to west, one and four in flight, beside a plain socket on the same line. Then a whole run, defences off,
with the initiator in the east and the workers in the west, so that every micro-batch crosses the line twice each way, against
the same run on loopback; runs take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from measure import job_of, show

from holdfast.cluster import Cluster, Deployment
from holdfast.crew import Processes, Staging
from holdfast.evidence.authority import Authority as RunAuthority
from holdfast.evidence.identity import generate
from holdfast.machines import HOST, TRUSTED, Machines
from holdfast.message import Envelope, Seal, TiedWeight
from holdfast.station import ANYTIME
from holdfast.testing.certificates import Authority
from holdfast.transport import Credentials, Endpoint
from holdfast.transport.grpc import GrpcTransport

MB = 1 << 20
SPAWN = multiprocessing.get_context("spawn")
CLONE_NEWNET = 0x40000000


def move_to(namespace: str) -> None:
    """This process, its later threads and its children use the network of `namespace` from now on."""
    with open(f"/var/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}; is this root?")


# -- tensors over the line -----------------------------------------------------------------------------------------------


def receiver(pipe: Connection, namespace: str, address: str, credentials: Credentials) -> None:
    """The west: answers each tensor on the wire with a few bytes; then takes what a plain socket brings."""
    move_to(namespace)
    torch.set_num_threads(1)
    end = GrpcTransport(Endpoint("b", ("b",)), credentials, run="benchmark", listen=f"{address}:0")
    pipe.send(end.me)
    end.know([pipe.recv()])
    with socket.create_server((address, 0)) as server:
        pipe.send(server.getsockname())
        line, _ = server.accept()
    taken = bytearray(4 * MB)
    while True:
        if pipe.poll(0):
            size = pipe.recv()
            while size > 0:
                size -= line.recv_into(taken, min(size, len(taken)))
            line.sendall(b"!")
        envelope = end.receive(0.05)
        if envelope is not None:
            end.send(Envelope("b", "a", Seal(envelope.message.version)))  # type: ignore[union-attr]


def sender(pipe: Connection, namespace: str, addresses: tuple[str, str], sizes: Sequence[int], count_mb: int) -> None:
    """The east: rates in MB/s, by size and transfers in flight, and that of a plain socket."""
    move_to(namespace)
    torch.set_num_threads(1)
    authority = Authority()
    here, there = SPAWN.Pipe()
    peer = SPAWN.Process(target=receiver, args=(there, "holdfast-west", addresses[1], authority.issue("b")), daemon=False)
    peer.start()
    end = GrpcTransport(Endpoint("a", ("a",)), authority.issue("a"), run="benchmark", listen=f"{addresses[0]}:0")
    end.know([here.recv()])
    here.send(end.me)
    line = socket.create_connection(here.recv())

    def plain(size: int, count: int, _in_flight: int) -> None:
        here.send(size * count)
        content = bytes(size)
        for _ in range(count):
            line.sendall(content)
        line.recv(1)

    def wire(size: int, count: int, in_flight: int) -> None:
        tensor, answered = torch.randn(size // 4), 0
        for sent in range(count):
            if sent - answered == in_flight:
                receive(end)
                answered += 1
            end.send(Envelope("a", "b", TiedWeight(sent, tensor)))
        for _ in range(count - answered):
            receive(end)

    plain(8 * MB, 1, 1)
    wire(8 * MB, 1, 1)
    found = []
    for megabytes in sizes:
        rates = [rate(way, megabytes, count_mb, flying) for way, flying in ((wire, 1), (wire, 4), (plain, 4))]
        found.append((megabytes, rates, end.links()["b"].rtt_s))
    peer.terminate()
    pipe.send(found)
    end.close()


def receive(end: GrpcTransport) -> Envelope:
    while (envelope := end.receive(60.0)) is None:
        pass
    return envelope


def rate(way: Callable[[int, int, int], None], megabytes: int, count_mb: int, in_flight: int) -> float:
    """MB/s of enough tensors to make `count_mb`."""
    count = max(4, count_mb // megabytes)
    began = time.perf_counter()
    way(megabytes * MB, count, in_flight)
    return count * megabytes * MB / 1e6 / (time.perf_counter() - began)


# -- a run over the line -------------------------------------------------------------------------------------------------


class Far:
    """Starts the processes of a crew in another namespace."""

    def __init__(self, children: Any, namespace: str) -> None:
        self._children = children
        self._namespace = namespace

    def start(self, name: str, command: Sequence[str], *rest: Any) -> None:
        self._children.start(name, ["ip", "netns", "exec", self._namespace, *command], *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._children, name)


def run(pipe: Connection, namespaces: tuple[str, str] | None, address: str, settings: Sequence[str], steps: int) -> None:
    """Train `steps` steps whenever told to, after one of warm-up; answers with seconds, and those of the initiator."""
    if namespaces is not None:
        move_to(namespaces[0])
    torch.set_num_threads(1)
    job = job_of(*settings)
    name, identity = secrets.token_hex(16), generate()
    authority = RunAuthority.generate(identity, name)
    certificate, private_key = authority.credentials(HOST, identity)
    transport = GrpcTransport(
        Endpoint(HOST, TRUSTED),
        Credentials(authority.certificate, certificate, private_key),
        run=name,
        listen=f"{address}:0",
        anytime=ANYTIME,
    )

    def crew(ended: Callable[[str, str], None]) -> Processes:
        found = Processes(name, Endpoint(HOST, TRUSTED, transport.address), authority, Staging(job.config), ended)
        if namespaces is not None:
            found.children = Far(found.children, namespaces[1])  # type: ignore[assignment]
        return found

    machines = Machines(transport, crew)
    cluster = Cluster(Deployment("benchmark"), job, lambda _event, _seconds: None, machines)
    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    cluster.run_step(0)
    pipe.send("ready")
    step = 1
    while pipe.recv():
        bench = cluster.launcher._bench  # type: ignore[attr-defined]
        computed, began = sum(bench.seconds_by_kind.values()), time.perf_counter()
        for _ in range(steps):
            cluster.run_step(step)
            step += 1
        pipe.send((time.perf_counter() - began, sum(bench.seconds_by_kind.values()) - computed))
    machines.close()


def compare(schedule: str, micro_batches: int, options: argparse.Namespace) -> list[str]:
    """One run over the line and one on loopback, `repeats` times in turn."""
    total = options.steps * options.repeats + 1
    settings = [
        f"model.name=gpt2:layers=4,width={options.width},heads=8,tied=false",
        "pipeline.stages=4",
        f"pipeline.micro_batches={micro_batches}",
        f"pipeline.micro_batch_size={options.batch}",
        f"pipeline.schedule={schedule}",
        "pipeline.engine=processes",
        "defence.name=none",
        f"training.steps={total}",
        f"data.sequence_length={options.sequence}",
    ]
    pipes, processes = [], []
    for namespaces, address in ((("holdfast-east", "holdfast-west"), options.east), (None, "127.0.0.1")):
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=run, args=(there, namespaces, address, settings, options.steps))
        process.start()
        assert here.recv() == "ready"
        pipes.append(here)
        processes.append(process)
    far, near, busy = [], [], []
    for _ in range(options.repeats):
        for pipe, seconds in zip(pipes, (far, near), strict=True):
            pipe.send(True)
            taken, computed = pipe.recv()
            seconds.append(taken / options.steps)
            if pipe is pipes[0]:
                busy.append(computed / taken)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join(20)
    tensor = options.batch * options.sequence * options.width * 4
    on_the_line = 2 * micro_batches * tensor / (options.rate * 1e6 / 8)
    ratio = statistics.median(n / f for n, f in zip(near, far, strict=True))
    seconds = f"{statistics.median(near):.2f} s", f"{statistics.median(far):.2f} s"
    return [
        schedule,
        f"{micro_batches}",
        f"{tensor / MB:.2f} MB",
        f"{on_the_line:.2f} s",
        *seconds,
        f"{ratio:.2f}",
        f"{statistics.median(busy):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, required=True, help="of the line, Mbit/s each way")
    parser.add_argument("--east", default="10.77.0.1")
    parser.add_argument("--west", default="10.77.0.2")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--total", type=int, default=96, help="MB for each figure")
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--schedules", nargs="+", default=["1f1b", "gpipe"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may enter network namespaces")
    torch.set_num_threads(1)
    here, there = SPAWN.Pipe()
    addresses = (options.east, options.west)
    process = SPAWN.Process(target=sender, args=(there, "holdfast-east", addresses, options.megabytes, options.total))
    process.start()
    found = here.recv()
    process.join(20)
    line = options.rate / 8
    rows = [
        [f"{megabytes}", *(f"{value:.1f} MB/s, {value / line:.2f}" for value in rates), f"{1e3 * (rtt or 0):.0f} ms"]
        for megabytes, rates, rtt in found
    ]
    header = ["MB", "wire, 1 in flight", "wire, 4 in flight", "plain socket", "round trip"]
    show(f"Tensors over a line of {line:.0f} MB/s each way, and the share of it", header, rows)
    if options.micro_batches:
        header = [
            "schedule",
            "M",
            "tensor",
            "on the line a step",
            "step on loopback",
            "step over the line",
            "near / far",
            "initiator busy",
        ]
        print()
        show(
            "A run over the same line, K = 4, defences off",
            header,
            [compare(s, m, options) for s in options.schedules for m in options.micro_batches],
        )


if __name__ == "__main__":
    main()
