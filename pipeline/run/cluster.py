"""Reaching a running Ray cluster, with its token where it asks for one, or starting one on this machine.

Ray looks for the token in ``RAY_AUTH_TOKEN``, in the file ``RAY_AUTH_TOKEN_PATH`` and in ``~/.ray/auth_token``, but
sends it only where ``RAY_AUTH_MODE`` is ``token``, and reads that variable when it is imported.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handdata.schemas import RunError

TOKEN_HINT = "its token belongs into RAY_AUTH_TOKEN, into a file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"  # noqa: S105 - names of variables
"""Says where Ray looks for a token."""


# Ray prints on stdout, where results go, that a worker has died; our errors and rejected rows say why it died.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")


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


def connect(address: str) -> None:
    """Make this process a driver of a running cluster.

    Raises:
        RunError: There is none at the address, or it does not take the token.

    """
    import ray
    from ray.exceptions import RayError

    try:
        with _silent_stderr():  # Ray's C++ part prints a line a second while it cannot connect
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise RunError(
            f"cannot reach a Ray cluster at {address}, or it refuses the token: {str(error).splitlines()[0]}",
            f"is it running? `ray status --address {address}` tells; {TOKEN_HINT}",
        ) from None


def start_local(cpus: int | None) -> None:
    """Start a cluster on this machine and make this process its driver.

    Raises:
        RunError: Ray does not start.

    """
    import ray

    try:
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # where one of its processes does not start, Ray raises the base class itself
        reason = " ".join(str(error).split())
        raise RunError(
            f"cannot start Ray on this machine: {reason}",
            "is there room where Ray keeps logs and spilled objects: RAY_TMPDIR, else /tmp?",
        ) from None


@contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Be a driver for the time of a block: of the cluster at the address or ``RAY_ADDRESS``, else of one started here.

    A process that is a driver already stays one.

    Raises:
        RunError: The cluster cannot be reached, or Ray does not start.

    """
    import ray

    if ray.is_initialized():
        yield
        return
    if address := address or os.environ.get("RAY_ADDRESS"):
        connect(address)
    else:
        start_local(cpus)
    try:
        yield
    finally:
        ray.shutdown()


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
