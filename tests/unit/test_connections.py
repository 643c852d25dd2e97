"""Which TCP connections can go on in another pod, and whose parents are in a container."""

import ipaddress
import os
from pathlib import Path

import pytest

from grit_runtime.config import parse
from grit_runtime.criu import hints
from grit_runtime.criu.sockets import Connection, leading_out
from grit_runtime.errors import ConfigError
from grit_runtime.host import proc


def _connection(index: int, local: tuple[str, int], remote: tuple[str, int]) -> Connection:
    here, there = ((ipaddress.ip_address(host), port) for host, port in (local, remote))
    return Connection(index=index, local=here, remote=there)


def _pair(host: str) -> list[Connection]:
    client, server = (host, 40000), (host, 80)
    return [_connection(0, client, server), _connection(1, server, client)]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_a_connection_by_a_loopback_address_with_both_ends_in_the_checkpoint_goes_on(host: str) -> None:
    assert leading_out(_pair(host)) == []


def test_a_loopback_connection_whose_other_end_is_in_another_container_leads_out() -> None:
    (client, _) = _pair("127.0.0.1")
    assert leading_out([client]) == [client]


def test_both_ends_in_the_checkpoint_by_the_pods_address_lead_out() -> None:
    assert leading_out(_pair("10.1.2.3")) == _pair("10.1.2.3")


def test_one_closed_connection_does_not_close_another() -> None:
    outside = _connection(7, ("10.1.2.3", 5000), ("10.9.9.9", 443))
    assert leading_out([*_pair("::1"), outside]) == [outside]


def test_the_configuration_decides_whether_connections_are_dumped() -> None:
    assert parse(b"", "f").criu_dump["tcp-established"] is True
    assert parse(b"tcp: refuse", "f").criu_dump["tcp-established"] is False
    with pytest.raises(ConfigError, match="tcp"):
        parse(b"tcp: maybe", "f")


def test_a_hint_is_found_anywhere_in_the_log_and_only_in_errors(tmp_path: Path) -> None:
    log = f"{tmp_path}/dump.log"
    with open(log, "w", encoding="utf-8") as stream:
        stream.write(
            "(00.1) Error (a.c:1): first\n" * 9 + "(00.2)  1: Error (b.c:2): Can't dump ghost file /x of 9 size\n"
        )
    assert "raise ghost-limit" in hints.find(log)
    with open(log, "w", encoding="utf-8") as stream:
        stream.write("(00.1) Dumping ghost file contents\n")
    assert hints.find(log) == ""
    assert hints.with_log(log, "/kept") == "CRIU's log: /kept (`grit-runtime diagnose` reads it)"


def test_the_names_of_our_own_uts_namespace_are_read_and_we_stay_in_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("setns needs root")
    before = os.readlink("/proc/self/ns/uts")
    assert proc.uts_names("/proc/self/ns/uts")[0] == os.uname().nodename
    assert os.readlink("/proc/self/ns/uts") == before
    with pytest.raises(OSError, match="Invalid argument"):
        proc.uts_names("/proc/self/ns/net")
