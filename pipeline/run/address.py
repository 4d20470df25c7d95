"""Where a Ray cluster is: what an address means, and whether a head answers there.

Ray itself tries a dead address again for many minutes, without a word.
"""

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Final, TypeVar
from urllib.parse import urlsplit

from handdata.schemas import RunError, UsageError

Answer = TypeVar("Answer")

PROBE_S: Final = 15.0
"""Seconds after which an address counts as dead: names are looked up, connected to and greeted within."""
_CONNECT_S: Final = 4.0
_ANSWER_S: Final = 10.0


def in_thread(function: Callable[[], Answer]) -> "Future[Answer]":
    """Call a function in a thread that keeps no process from ending, and return its outcome to come."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def within(seconds: float, function: Callable[[], Answer], too_late: RunError) -> Answer:
    """Return what a function returns, or raise an error where it takes longer; it is then left alone.

    Args:
        seconds: Longest time.
        function: Function that waits for something that knows no time limit, such as a name server.
        too_late: Error for that case.

    """
    future = in_thread(function)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            return future.result()
        raise too_late from None


def find_head(address: str, on_connect: Callable[[str], None] | None = None) -> str:
    """Return the address of a running head as Ray takes it, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Args:
        address: Such an address; or ``auto`` for the cluster of ``RAY_ADDRESS``, else for one on this machine.
        on_connect: Function called with the head's address before this process connects to it.

    Raises:
        UsageError: The address is none.
        RunError: There is no head, or something else.

    """
    found = _of_this_machine() if address == "auto" else address
    host, port = _parsed(found)
    where = f"{found}, which the address auto means here" if found != address else found
    if on_connect:
        on_connect(where)
    nobody = RunError(
        f"no Ray cluster answers at {where}: no answer within {PROBE_S:g} s",
        f"is it running, and within reach? `ray status --address {found}` tells",
    )
    within(PROBE_S, lambda: _greet(host, port, where), nobody)
    return found


def _of_this_machine() -> str:
    if (given := os.environ.get("RAY_ADDRESS", "")) not in ("", "auto"):
        return given
    from ray._private import services  # Ray has no public name for this

    try:
        found = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, OSError, ValueError):
        found = None
    if not found:
        raise RunError(
            "no Ray cluster runs on this machine, where the address auto looks for one",
            "give its address, HOST:6379; without one, `handdata` starts Ray itself",
        )
    return str(found)


def _parsed(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        UsageError: It is none that Ray takes.

    """
    scheme, _, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = (None, None) if "@" in rest else (parts.hostname, parts.port)  # Ray knows no names of users
    except ValueError:  # a port out of range
        host = port = None
    if scheme in ("http", "https"):
        raise UsageError(
            f"{address} is the address of a dashboard, which `submit` takes", "give that of the head itself, HOST:6379"
        )
    if scheme not in ("", "ray") or not host or not port or parts.netloc != rest or not host.isprintable():
        raise UsageError(
            f"{address!r} is not the address of a Ray cluster", "it is HOST:PORT, such as 10.0.0.1:6379, or auto"
        )
    return host, port


def _greet(host: str, port: int, where: str) -> None:
    """Ask the other side whether it is a head, as Ray's processes ask one another.

    Raises:
        UsageError: It is one, and its address is not written so.
        RunError: It is none, or there is no other side.

    """
    import grpc
    from ray._private import ray_constants
    from ray._private.grpc_utils import init_grpc_channel

    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        raise RunError(
            f"no Ray cluster answers at {where}: {error}",
            "is it running, and within reach? its head prints its address",
        ) from None
    host = f"[{host}]" if ":" in host else host
    channel = init_grpc_channel(f"{host}:{port}", ray_constants.GLOBAL_GRPC_OPTIONS)
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_ANSWER_S)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return  # a head; Ray says what is wrong with the token
        if where.startswith("ray://") and error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return  # the server for clients, which leads to the head
        raise RunError(
            f"no Ray cluster answers at {where}: something accepts connections there, and does not answer as Ray does",
            "is it the port of the head, 6379 by default? `submit` also takes the dashboard, http://HOST:8265",
        ) from None
    else:
        if where.startswith("ray://"):  # Ray would ask for a server of clients there for half a minute
            raise UsageError(
                f"{where} is the head's own port, which is given without ray://", "or ray:// with the port 10001"
            )
    finally:
        channel.close()
