"""Ranks of NCCL, by the socket that each of them keeps."""

import os
import socket
import subprocess
import sys

import pytest

from grit_runtime.host import nccl


@pytest.mark.parametrize("name", [b"\0tmp/nccl-socket-0-2a4c", b"\0tmp/nccl-socket-1-2a4c" + bytes(60)])
def test_a_rank_is_known_by_its_socket(name: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as rank:
        rank.bind(name)
        assert nccl.ranks([os.getpid(), 1 << 22]) == [os.getpid()]
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert nccl.ranks([child.pid]) == [], "a neighbour in the same network namespace holds none"
        finally:
            child.communicate(b"\n")
    assert nccl.ranks([os.getpid()]) == []


@pytest.mark.parametrize(
    ("env", "apart"),
    [
        ({}, False),
        ({"NCCL_P2P_DISABLE": "1"}, False),
        ({"NCCL_P2P_DISABLE": "0", "NCCL_SHM_DISABLE": "1"}, False),
        ({"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}, True),
    ],
)
def test_what_keeps_ranks_apart(env: dict[str, str], apart: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], env=env, stdin=-1, stdout=-1)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # before that it has its parent's environment
        assert nccl.is_apart(child.pid) is apart
    finally:
        child.communicate(b"\n")


def test_a_descriptor_that_is_closed_meanwhile_hides_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["99999", *listed(path)])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as rank:
        rank.bind(b"\0tmp/nccl-socket-0-3b5d")
        assert nccl.ranks([os.getpid()]) == [os.getpid()]
