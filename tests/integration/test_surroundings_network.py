"""Sockets, in network namespaces that a sandbox made, as a pod's are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.criu import sockets
from tests import requirements
from tests.integration.machine import Machine
from tests.integration.surroundings import Change, Sandbox, Situation, all_ok

pytestmark = [
    pytest.mark.needs("root", "runc", "criu", "busybox", "cc"),
    pytest.mark.skipif("GRIT_TEST_HOST_NETWORK" in os.environ, reason="a sandbox would share the host's network"),
]
inet = pytest.mark.needs("inet-dump")

ADDRESS = "10.198.76.54"
PORT = 7100
# Prints what it received and how the connection ended.
SERVER = f"""
import socket
listener = socket.create_server(("{ADDRESS}", {PORT}))
print("listening", flush=True)
connection, _ = listener.accept()
print(connection.recv(100).decode(), flush=True)
try:
    print("end" if connection.recv(100) == b"" else "data", flush=True)
except OSError as err:
    print(err.strerror, flush=True)
"""
LOST = ["poll 1 HUP", "read ENOTCONN", "write EPIPE"]


def _in_pods(machine: Machine, name: str, *changes: Change) -> tuple[Situation, Sandbox]:
    """A situation in a sandbox of its own, and the sandbox that it will be restored into."""
    first, second = Sandbox(machine, "sandbox-1", address=ADDRESS), Sandbox(machine, "sandbox-2")

    def change(config: dict[str, Any]) -> None:
        first.within(config)
        for each in changes:
            each(config)

    situation = Situation(machine, name, change)
    situation.sandbox = first
    return situation, second


def _environment(**words: str) -> Change:
    return lambda config: config["process"]["env"].extend(f"{name}={value}" for name, value in words.items())


@contextmanager
def _peer(sandbox: Sandbox) -> Iterator["subprocess.Popen[str]"]:
    command = ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net", sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        try:
            yield server
        finally:
            server.kill()


@inet
@pytest.mark.parametrize("version", ["4", "6"])
def test_a_connection_within_the_container_goes_on_with_its_queue(machine: Machine, version: str) -> None:
    situation, second = _in_pods(machine, f"tcp-loopback-{version}")
    situation.start()
    situation.checkpoint()
    assert all_ok(situation.restore(change=second.within))


@inet
def test_a_connection_of_a_container_that_runs_on_goes_on(machine: Machine) -> None:
    situation, _ = _in_pods(machine, "tcp-loopback-4")
    situation.start()
    machine.grit("checkpoint", "--leave-running", "--image-path", str(situation.images), "old").ok()
    assert all_ok(situation.answer(situation.old))


@inet
def test_the_callers_flag_counts_more_than_the_configuration(machine: Machine) -> None:
    machine.configure(tcp="close")
    situation, second = _in_pods(machine, "tcp-loopback-4")
    situation.start()
    situation.checkpoint()
    new = situation.bundle("new")
    new.edit(second.within)
    flags = ("-d", "--tcp-established", "--image-path", str(situation.images), "-b", str(new.path))
    machine.grit("restore", *flags, "new").ok()
    assert all_ok(situation.answer(new))


@inet
@pytest.mark.parametrize("word", ["inside", "close"])
def test_a_connection_that_leads_out_is_closed_on_both_sides(machine: Machine, word: str) -> None:
    machine.configure(tcp=word)
    kept = {"KEPT": "1"} if word == "inside" else {}
    situation, second = _in_pods(machine, "tcp-outside", _environment(PEER=ADDRESS, PEER_PORT=str(PORT), **kept))
    with _peer(situation.sandbox) as server:
        situation.start()
        situation.checkpoint()
        answer = situation.restore(change=second.within)
        server.wait(10)
        assert server.stdout is not None
        said = server.stdout.read()
    assert said in ("hello\nend\n", "hello\nConnection reset by peer\n")
    assert answer == (["inside goes on", *LOST] if word == "inside" else [*LOST, *LOST])
    assert "is closed" in (machine.path / "log.json").read_text()


@inet
def test_a_connection_is_refused_where_the_configuration_says_so(machine: Machine) -> None:
    machine.configure(tcp="refuse")
    situation, _ = _in_pods(machine, "tcp-loopback-4")
    said = situation.cannot_be_dumped()
    assert "Connected TCP socket" in said
    assert "set `tcp` to inside, close or established" in said


@inet
def test_a_checkpoint_with_connections_is_not_restored_where_the_configuration_refuses_them(machine: Machine) -> None:
    situation, second = _in_pods(machine, "tcp-loopback-4")
    situation.start()
    situation.checkpoint()
    machine.configure(tcp="refuse")
    said = situation.cannot_be_restored(change=second.within)
    assert "holds the TCP connection 127.0.0.1:" in said
    assert "set `tcp`" in said


@inet
def test_established_needs_the_old_address_and_says_so(machine: Machine) -> None:
    machine.configure(tcp="established")
    situation, second = _in_pods(machine, "tcp-outside", _environment(PEER=ADDRESS, PEER_PORT=str(PORT)))
    with _peer(situation.sandbox):
        situation.start()
        situation.checkpoint()
    said = situation.cannot_be_restored(change=second.within)
    assert "Cannot assign requested address" in said
    assert "set `tcp` to inside or close" in said


@inet
def test_what_was_dumped_with_tcp_close_is_restored_so(machine: Machine) -> None:
    machine.configure(criu={"dump": {"tcp-close": True, "tcp-established": False}})
    situation, second = _in_pods(machine, "tcp-outside", _environment(PEER=ADDRESS, PEER_PORT=str(PORT)))
    with _peer(situation.sandbox):
        situation.start()
        situation.checkpoint()
    assert sockets.were_closed_at_the_dump(str(situation.images))
    # CRIU shuts these down, so that they read as ended.
    lost = ["poll 1 IN HUP", "read end", "write EPIPE"]
    assert situation.restore(change=second.within) == [*lost, *lost]


@inet
def test_listening_and_datagram_sockets_come_back(machine: Machine) -> None:
    situation, second = _in_pods(machine, "listening")
    situation.start()
    situation.checkpoint()
    assert all_ok(situation.restore(change=second.within))


@inet
def test_a_connection_that_nobody_has_accepted_is_refused_with_what_to_set(machine: Machine) -> None:
    situation, _ = _in_pods(machine, "in-flight")
    assert "set skip-in-flight: true" in situation.cannot_be_dumped()


@inet
def test_a_network_namespace_of_the_containers_own_has_no_loopback_after_a_restore(machine: Machine) -> None:
    situation = Situation(machine, "tcp-loopback-4")
    situation.start()
    situation.checkpoint()
    assert "give it one by path, as a pod has" in situation.cannot_be_restored()


@inet
def test_a_socket_bound_to_an_address_that_is_gone_is_an_error_that_says_so(machine: Machine) -> None:
    situation, second = _in_pods(machine, "bound", _environment(PEER=ADDRESS))
    situation.start()
    situation.checkpoint()
    said = situation.cannot_be_restored(change=second.within)
    assert "let the program listen on all addresses" in said


@pytest.mark.skipif(requirements.missing("inet-dump") is None, reason="CRIU can dump such a socket here")
def test_a_criu_too_old_for_the_kernel_is_named_as_the_cause(machine: Machine) -> None:
    situation, _ = _in_pods(machine, "listening")
    assert "need CRIU 4.2" in situation.cannot_be_dumped()


def test_unix_sockets_of_every_kind_come_back_connected(machine: Machine) -> None:
    situation, second = _in_pods(machine, "unix")
    situation.start()
    situation.checkpoint()
    assert all_ok(situation.restore(change=second.within))


# Binds a unix socket of a kind and takes a connection.
UNIX_SERVER = """
import os, socket, sys
os.chdir(sys.argv[1])
outside = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2]))
outside.bind("outside")
if sys.argv[2] == "SOCK_STREAM":
    outside.listen()
print("bound", flush=True)
connection = outside.accept() if sys.argv[2] == "SOCK_STREAM" else None
sys.stdin.read()
"""


@contextmanager
def _unix_peer(directory: Path, kind: str, sandbox: Sandbox | None) -> Iterator["subprocess.Popen[str]"]:
    """A process outside of the container; in the network namespace of a sandbox, as another container of the pod."""
    enter = ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net"] if sandbox else []
    command = [*enter, sys.executable, "-c", UNIX_SERVER, str(directory), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "bound\n"
        try:
            yield server
        finally:
            server.kill()


@pytest.mark.parametrize("place", ["host", "pod"])
@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_unix_socket_that_leads_out_of_the_container_is_refused(machine: Machine, kind: str, place: str) -> None:
    situation, _ = _in_pods(machine, "unix-outside", _environment(TYPE=kind))
    word = "SOCK_STREAM" if kind == "stream" else "SOCK_DGRAM"
    with _unix_peer(situation.old.data, word, situation.sandbox if place == "pod" else None):
        said = situation.cannot_be_dumped()
    assert "leads out of the container" in said
