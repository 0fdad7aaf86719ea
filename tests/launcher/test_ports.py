"""A busy port is reported with its holder and the remedy."""

import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.launcher.ports import Wanted, holders, is_busy, listening_inodes, problems

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
SERVER = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True); time.sleep(60)"


def row(port: int, state: str, inode: int) -> str:
    return (
        f"   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n"
    )


@given(st.lists(st.tuples(st.integers(1, 65535), st.sampled_from(["0A", "01", "06"]), st.integers(1, 10**6))), st.integers(1, 65535))
def test_only_listening_sockets_of_the_port_count(sockets: list[tuple[int, str, int]], port: int) -> None:
    table = HEADER + "".join(row(*one) for one in sockets)
    expected = {str(inode) for one_port, state, inode in sockets if one_port == port and state == "0A"}
    assert listening_inodes(table, port) == expected


@given(st.text(max_size=200))
def test_any_other_text_is_skipped(text: str) -> None:
    assert listening_inodes(text, 80) <= {column for line in text.splitlines() for column in line.split()}


def test_holder_is_named_by_pid_and_command_line(free_port: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER, str(free_port)], stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline() == b"up\n"
        found = holders(free_port)
        lines = problems([Wanted("policy_proxy", "127.0.0.1", free_port, "services.policy_proxy.port")])
        server.kill()
    assert [holder.pid for holder in found] == [server.pid]
    assert str(free_port) in found[0].command
    assert len(lines) == 1
    for part in (f"port {free_port}", "policy_proxy", f"pid {server.pid}", sys.executable, "services.policy_proxy.port=PORT"):
        assert part in lines[0]


def test_free_port_is_no_problem(free_port: int) -> None:
    assert not is_busy("127.0.0.1", free_port)
    assert problems([Wanted("trainer", "127.0.0.1", free_port, "services.trainer.port")]) == []


def test_port_asked_for_twice_is_a_problem(free_port: int) -> None:
    wanted = [Wanted(name, "127.0.0.1", free_port, f"services.{name}.port") for name in ("trainer", "agent_runner")]
    remedy = "choose another port with services.agent_runner.port=PORT"
    assert problems(wanted) == [f"port {free_port} is asked for by trainer and agent_runner; {remedy}"]


def test_address_of_another_machine_is_an_error(free_port: int) -> None:
    with pytest.raises(OSError):
        is_busy("192.0.2.1", free_port)


def test_ipv6_holder_is_found() -> None:
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        server.listen()
        port = server.getsockname()[1]
        assert is_busy("::1", port)
        assert holders(port)
