"""Reaching a running Ray cluster, with its token where it asks for one, or starting one on this machine.

Ray looks for the token in ``RAY_AUTH_TOKEN``, in the file ``RAY_AUTH_TOKEN_PATH`` and in ``~/.ray/auth_token``, but
sends it only where ``RAY_AUTH_MODE`` is ``token``, and reads that variable when it is imported.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final

import psutil

from handdata.pipeline.run.address import Answer, find_head, in_thread, within
from handdata.schemas import ClusterLostError, RunError

TOKEN_HINT = "its token belongs into RAY_AUTH_TOKEN, into a file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"  # noqa: S105 - names of variables
"""Says where Ray looks for a token."""

CHECK_S: Final = 1.0
"""Seconds of waiting after which a driver looks whether its cluster is still there; it should see that before Ray does,
whose calls to a raylet that is gone may end the process without a word."""
_NODE_S: Final = 8
"""Seconds that the node of this machine has for its start, where the head runs already."""
_ANSWER_S: Final = 30.0
"""Seconds within which a head answers, however busy. Ray itself ends a driver without a word after twice as long."""
_SHUTDOWN_S: Final = 20.0
"""Seconds that a driver takes at most to leave a cluster, and to end one that it has started."""
_HANDLER_AWAY_S: Final = 0.01
"""Seconds that the handler of SIGTERM may be away while Ray ends."""
_KILLED_S: Final = 5.0
"""Seconds that killed processes take at most to be gone."""
_PR_SET_CHILD_SUBREAPER: Final = 36
"""Option of prctl(2): a child subreaper."""
_HOW_TO_GO_ON: Final = "was it short of memory, or stopped? the same command continues"


# Ray prints on stdout, where results go, that a worker has died; our errors and rejected rows say why it died.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
# In a notebook it proposes to install ipywidgets, for pictures that we do not show.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)


def offer_token() -> None:
    """Let Ray send the user's token, if there is one, to clusters; call it before ``import ray``.

    A cluster without authentication ignores the token. ``RAY_AUTH_MODE`` stays as it is where the user has set it, and
    once Ray is imported: this process would then disagree with the clusters that it starts.
    """
    if "ray" in sys.modules:
        return
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" not in os.environ and (os.environ.get("RAY_AUTH_TOKEN") or token_file.is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"


def connect(address: str, on_connect: Callable[[str], None] | None = None) -> None:
    """Make this process a driver of a running cluster.

    Args:
        address: Address of its head, or ``auto``.
        on_connect: Function called with the address of the head before Ray connects to it.

    Raises:
        UsageError: The address is none.
        RunError: There is no cluster at the address, or no node of it here, or it does not take the token.

    """
    import ray
    from ray.exceptions import RayError

    head = find_head(address, on_connect)
    if "://" not in head:
        _require_node_here(head)
    try:
        # Ray's C++ part prints a line a second while it cannot connect.
        with _silent_stderr(), _own_sigterm_handler():
            ray.init(head, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"cannot reach a Ray cluster at {head}, or it refuses the token: {reason}",
            f"is it running? `ray status --address {head}` tells; {TOKEN_HINT}",
        ) from None


def _require_node_here(head: str) -> None:
    """Check that a node of a cluster is alive on this machine: a driver works through it.

    Raises:
        RunError: There is none, for longer than one takes to start, or its raylet is silent. Ray itself waits for a
            minute and names something else, or ends the process.

    """
    import grpc
    from ray._private import ray_constants, services  # Ray has no public name for this
    from ray._private.grpc_utils import init_grpc_channel
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    def find() -> None:
        node = services.get_node_to_connect_for_driver(GcsClient(address=head), timeout_seconds=_NODE_S)
        raylet = f"{node.node_manager_address}:{node.node_manager_port}"
        channel = init_grpc_channel(raylet, ray_constants.GLOBAL_GRPC_OPTIONS)
        try:
            grpc.channel_ready_future(channel).result(_NODE_S)
        except grpc.FutureTimeoutError:
            raise none from None
        finally:
            channel.close()

    none = RunError(
        f"no node of the Ray cluster at {head} answers on this machine: is its raylet gone, or was never here?",
        f"`ray start --address {head}` starts one; `handdata submit` runs the command on the cluster instead",
    )
    try:
        with _silent_stderr():
            within(2 * _NODE_S, find, none)
    except (RayError, RuntimeError) as error:
        if "No node info" in str(error):
            raise none from None
        # Anything else, such as a token that is missing, Ray tells of when it connects.


def start_local(cpus: int | None) -> None:
    """Start a cluster on this machine and make this process its driver.

    Raises:
        RunError: Ray does not start.

    """
    import ray

    try:
        with _own_sigterm_handler():
            ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # where one of its processes does not start, Ray raises the base class itself
        reason = " ".join(str(error).split())
        raise RunError(
            f"cannot start Ray on this machine: {reason}",
            "is there room where Ray keeps logs and spilled objects: RAY_TMPDIR, else /tmp?",
        ) from None


@contextmanager
def connected(
    address: str | None = None, cpus: int | None = None, on_connect: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Be a driver for the time of a block: of the cluster at the address or ``RAY_ADDRESS``, else of one started here.

    A process that is a driver already stays one.

    Args:
        address: Address of a running head, ``auto``, or ``local`` for a cluster started here.
        cpus: Number of cores of a cluster started here.
        on_connect: Function called with the address of a running head before Ray connects to it.

    Raises:
        UsageError: The address is none.
        RunError: The cluster cannot be reached, or Ray does not start.

    """
    import ray

    if ray.is_initialized():
        yield
        return
    if (address := address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        connect(address, on_connect)
        with _left_at_the_end():
            yield
    else:
        with _none_outlives(), _left_at_the_end():
            start_local(cpus)
            yield


@contextmanager
def _left_at_the_end() -> Iterator[None]:
    """Leave the cluster, and end one that was started here, with the block; not one that is lost.

    Taking leave of a raylet that is gone may end the process, before anyone has read why.
    """
    lost = False
    try:
        yield
    except ClusterLostError:
        lost = True
        raise
    finally:
        if not lost:
            _shut_down()


def _shut_down() -> None:
    """Leave the cluster, and keep this process's handler of SIGTERM: Ray's C++ part takes it away as it ends.

    The signal would then end the process without a word.
    """
    import ray

    ending = Thread(target=ray.shutdown, daemon=True)
    ending.start()
    started = time.monotonic()  # where a process of the cluster is gone, Ray waits for it
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    while time.monotonic() < started + _SHUTDOWN_S:
        ending.join(_HANDLER_AWAY_S)
        if is_main:
            signal.signal(signal.SIGTERM, handler)
        if not ending.is_alive():
            return


@contextmanager
def _none_outlives() -> Iterator[None]:
    """End with the block what Ray has started in it and left behind.

    Ray ends its raylet, but the agents of a raylet that has just started them do not hear of it for up to two minutes.
    """
    before = set(_rays_offspring())
    with _adopting_orphans():
        try:
            yield
        finally:
            late = [process for process in _rays_offspring() if process not in before]
            for process in late:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(late, timeout=_KILLED_S)


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Be the parent of descendants whose own parent ends, instead of init; on Linux only."""
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _rays_offspring() -> list[psutil.Process]:
    """Return the descendants of this process that run Ray's programs: a user's own are none of our business."""
    return [process for process in psutil.Process().children(recursive=True) if _runs_ray(process)]


def _runs_ray(process: psutil.Process) -> bool:
    import ray

    programs = str(Path(ray.__file__).parent)
    with suppress(psutil.Error):
        return any(part.startswith("ray::") or programs in part for part in process.cmdline())
    return False


def require_cluster() -> None:
    """Check that the cluster's head answers and that this machine's node is alive.

    Ray waits without end for a node that has died beside its driver.

    Raises:
        ClusterLostError: One of them is gone.

    """
    import ray

    _require_raylet()
    silent = ClusterLostError(f"Ray's head has died or does not answer for {_ANSWER_S:g} s", _HOW_TO_GO_ON)
    nodes = within(_ANSWER_S, ray.nodes, silent)
    here = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in nodes if node["NodeID"] == here):
        raise _raylet_gone()


def _require_raylet() -> None:
    """Check that the raylet through which this process is a driver takes connections.

    Raises:
        ClusterLostError: It is gone. The head hears of that only later.

    """
    from ray._private import worker  # Ray has no public name for this

    node: Any = worker._global_node
    if node is None:  # a client of a far cluster has no raylet
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CHECK_S)
        try:
            probe.connect(node.raylet_socket_name)
        except (ConnectionRefusedError, FileNotFoundError):
            raise _raylet_gone() from None
        except OSError:
            pass  # it is busy, or stopped: the head tells


def _raylet_gone() -> ClusterLostError:
    return ClusterLostError("the Ray node of this machine has died: its raylet is gone", _HOW_TO_GO_ON)


def answer_of(call: Any) -> Any:
    """Return what a call of an actor returns.

    Raises:
        RayError: The call failed.
        ClusterLostError: The cluster was lost meanwhile.

    """
    import ray
    from ray.exceptions import GetTimeoutError

    while True:
        try:
            return ray.get(call, timeout=CHECK_S)
        except GetTimeoutError:
            require_cluster()


def on_cluster(function: Callable[[], Answer]) -> Answer:
    """Return what a function returns that waits for the cluster, unless the cluster is lost meanwhile.

    Raises:
        ClusterLostError: The cluster is lost.

    """
    future = in_thread(function)
    while True:
        try:
            return future.result(CHECK_S)
        except TimeoutError:
            if future.done():
                return future.result()
            require_cluster()


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray's end it without a word while Ray starts, and abort it later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:
        if stop.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
