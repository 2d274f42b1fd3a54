"""A stranger at the door writes nothing on the terminal of a process that asked for quiet."""

import os
import subprocess
import sys

import pytest

from holdfast.transport.quiet import quiet_grpc

PROGRAM = """
import socket, subprocess, sys, time
if sys.argv[1] == "quiet":
    from holdfast.transport.quiet import quiet_grpc
    quiet_grpc()
from holdfast.testing.certificates import Authority
from holdfast.transport import Endpoint
from holdfast.transport.grpc import GrpcTransport
end = GrpcTransport(Endpoint("w1", ("w1",)), Authority().issue("w1"), run="r")
for _ in range(3):
    with socket.create_connection(end.address.split(":")) as line:
        line.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        line.recv(100)
subprocess.run([sys.executable, "-c", ""], check=True)
end.close()
"""


@pytest.mark.parametrize("how", ["quiet", "loud"])
def test_handshakes_that_fail_are_silent_only_where_asked(how):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, check=True)
    assert ("Handshake failed" in done.stderr) == (how == "loud")
    assert how == "loud" or done.stderr == ""


def test_what_a_user_has_set_stays():
    environment = {"GRPC_VERBOSITY": "DEBUG"}
    quiet_grpc(environment)
    assert environment["GRPC_VERBOSITY"] == "DEBUG"
