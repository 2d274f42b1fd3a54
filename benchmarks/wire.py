"""What the real wire costs: tensors a second, round trips and a killed peer, beside gloo and plain sockets in the same run.

    python benchmarks/wire.py                   1, 16 and 64 MB; one and four transfers in flight

Two processes on 127.0.0.1. A transfer is an fp32 tensor in memory that becomes a tensor at the other end, which answers with
a few bytes; a figure is the median of `--repeats` with the least and the greatest, a ratio the median of those within one
repeat. Gloo and the sockets neither encrypt nor authenticate, and do not survive a cut line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from measure import show

from holdfast.message import Envelope, Seal, TiedWeight
from holdfast.testing.certificates import Authority
from holdfast.transport import Credentials, Endpoint
from holdfast.transport.grpc import GrpcTransport

MB = 1 << 20
SPAWN = multiprocessing.get_context("spawn")
Transfer = Callable[[torch.Tensor, int, int], None]
"""Move a tensor `count` times with at most `in_flight` of them not answered."""


def receive(end: GrpcTransport) -> Envelope:
    while (envelope := end.receive(30.0)) is None:
        pass
    return envelope


# -- the other process ---------------------------------------------------------------------------------------------------


def wire_peer(pipe: Connection, credentials: Credentials) -> None:
    torch.set_num_threads(1)
    end = GrpcTransport(Endpoint("b", ("b",)), credentials, run="benchmark")
    pipe.send(end.me)
    end.know([pipe.recv()])
    while True:
        envelope = receive(end)
        end.send(Envelope("b", "a", Seal(envelope.message.version)))  # type: ignore[union-attr]


def socket_peer(pipe: Connection) -> None:
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname())
        line, _ = server.accept()
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while size := int.from_bytes(line.recv(8, socket.MSG_WAITALL), "big"):
        tensor = torch.empty(size // 4)
        line.recv_into(memoryview(tensor.numpy()).cast("B"), size, socket.MSG_WAITALL)
        line.sendall(b"!")


def gloo_peer(pipe: Connection) -> None:
    torch.set_num_threads(1)
    join_gloo(1, pipe.recv())
    while True:
        header = torch.zeros(1, dtype=torch.int64)
        dist.recv(header, 0)
        if not header.item():
            break
        dist.recv(torch.empty(int(header.item())), 0)
        dist.send(header, 0)
    dist.destroy_process_group()


def join_gloo(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


# -- this process --------------------------------------------------------------------------------------------------------


def over_wire(end: GrpcTransport) -> Transfer:
    def transfer(tensor: torch.Tensor, count: int, in_flight: int) -> None:
        answered = 0
        for sent in range(count):
            if sent - answered == in_flight:
                receive(end)
                answered += 1
            end.send(Envelope("a", "b", TiedWeight(sent, tensor)))
        for _ in range(count - answered):
            receive(end)

    return transfer


def over_socket(line: socket.socket) -> Transfer:
    def transfer(tensor: torch.Tensor, count: int, in_flight: int) -> None:
        answered = 0
        for sent in range(count):
            if sent - answered == in_flight:
                line.recv(1)
                answered += 1
            line.sendall(tensor.nbytes.to_bytes(8, "big"))
            line.sendall(memoryview(tensor.numpy()).cast("B"))
        line.recv(count - answered, socket.MSG_WAITALL)

    return transfer


def over_gloo(tensor: torch.Tensor, count: int, in_flight: int) -> None:
    pending: list[tuple[Any, Any]] = []
    header = torch.tensor([tensor.numel()])
    for _ in range(count):
        if len(pending) == in_flight:
            answer(pending.pop(0))
        pending.append((dist.isend(header, 1), dist.isend(tensor, 1)))
    for works in pending:
        answer(works)


def answer(works: tuple[Any, Any]) -> None:
    for work in works:
        work.wait()
    dist.recv(torch.zeros(1, dtype=torch.int64), 1)


def rates(ways: dict[str, Transfer], megabytes: int, in_flight: int, repeats: int) -> dict[str, list[float]]:
    """MB/s of each way, `repeats` times; the ways take turns, so that other work on the machine meets them alike."""
    tensor = torch.randn(megabytes * MB // 4)
    count = max(2 * in_flight, 128 // megabytes)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for transfer in ways.values():
        transfer(tensor, in_flight, in_flight)
    for _ in range(repeats):
        for name, transfer in ways.items():
            began = time.perf_counter()
            transfer(tensor, count, in_flight)
            found[name].append(count * megabytes / (time.perf_counter() - began))
    return found


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def round_trip_ms(transfer: Transfer, repeats: int = 500) -> float:
    """Half of all round trips of four bytes are faster."""
    tensor, times = torch.zeros(1), []
    for _ in range(repeats):
        began = time.perf_counter()
        transfer(tensor, 1, 1)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def control_trip(end: GrpcTransport) -> Transfer:
    def transfer(_tensor: torch.Tensor, count: int, _in_flight: int) -> None:
        for version in range(count):
            end.send(Envelope("a", "b", Seal(version)))
            receive(end)

    return transfer


def kill_noticed(end: GrpcTransport, peer: int) -> tuple[float, float]:
    """Seconds from kill -9 until the link counts as broken, and until the peer counts as lost."""
    end.notices()
    os.kill(peer, signal.SIGKILL)
    began = time.perf_counter()
    while end.links()["b"].state == "up":
        time.sleep(0.001)
    broken = time.perf_counter() - began
    while not any(notice.kind == "lost" for notice in end.notices()):
        end.receive(5.0)
    return broken, time.perf_counter() - began


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    authority = Authority()
    ways: dict[str, Transfer] = {}
    peers = {}
    for name, target, given in (
        ("wire", wire_peer, (authority.issue("b"),)),
        ("gloo", gloo_peer, ()),
        ("socket", socket_peer, ()),
    ):
        here, there = SPAWN.Pipe()
        peers[name] = SPAWN.Process(target=target, args=(there, *given), daemon=True)
        peers[name].start()
        if name == "wire":
            end = GrpcTransport(Endpoint("a", ("a",)), authority.issue("a"), run="benchmark")
            end.know([here.recv()])
            here.send(end.me)
            ways[name] = over_wire(end)
        elif name == "gloo":
            port = free_port()
            here.send(port)
            join_gloo(0, port)
            ways[name] = over_gloo
        else:
            line = socket.create_connection(here.recv())
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways[name] = over_socket(line)
    rows, before = [], os.getloadavg()[0]
    for megabytes in options.megabytes:
        for in_flight in options.in_flight:
            found = rates(ways, megabytes, in_flight, options.repeats)
            shares = [
                statistics.median(a / b for a, b in zip(found["wire"], found[name], strict=True)) for name in ("gloo", "socket")
            ]
            cells = [told(values) for values in found.values()]
            rows.append([f"{megabytes}", f"{in_flight}", *cells, *(f"{share:.2f}" for share in shares)])
    load = f"load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}"
    show(f"Tensors over the wire, MB/s ({load})", ["MB", "in flight", *ways, "wire / gloo", "wire / socket"], rows)
    trips = [round_trip_ms(way) for way in (control_trip(end), *ways.values())]
    line.close()
    dist.send(torch.zeros(1, dtype=torch.int64), 1)
    dist.destroy_process_group()
    broken, lost = kill_noticed(end, peers["wire"].pid)  # type: ignore[arg-type]
    print()
    show(
        "Round trips, ms p50, and a killed peer, s",
        ["wire, control", *(f"{name}, tensor" for name in ways), "broken after", "lost after"],
        [[*(f"{trip:.2f}" for trip in trips), f"{broken:.2f}", f"{lost:.2f}"]],
    )
    end.close()


if __name__ == "__main__":
    main()
