"""Commands as jobs of a Ray cluster: the code travels with the job, the log comes back, the exit code passes through.

The job runs ``python -m handdata ...`` on the cluster with this installation's code, ``./handdata.toml`` and those
variables of the submitting shell that are settings of handdata, so that a command means there what it means here. Other
variables stay here, since Ray writes those of a job to its logs. Data does not travel: every path must be one that the
cluster's nodes see.
"""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from handdata.pipeline.run.address import PROBE_S, Answer, find_head, within
from handdata.pipeline.run.cluster import TOKEN_HINT, offer_token
from handdata.pipeline.settings import SETTINGS_FILE, SETTINGS_VARIABLES
from handdata.schemas import RunError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

_POLL_S = 0.5
_ANSWER_S = 60.0
"""Seconds within which a dashboard answers, however busy; Ray's client waits without end."""
_SILENT_S = 20.0
"""Seconds of silence of a job's log after which it is asked whether the job and its cluster are still there."""
_HOW_TO_GO_ON = "`annotate` and `train --resume` continue where they stopped, `ingest` starts anew"
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


class Cluster:
    """The jobs of a Ray cluster.

    Args:
        address: Address of its dashboard (``http://HEAD:8265``), or one that ``ray.init`` takes; by default
            ``RAY_ADDRESS``, or the cluster on this machine.
        on_connect: Function called with the address before this process connects to it.

    Raises:
        UsageError: The address is none.
        RunError: No cluster answers there, or it refuses the token.

    """

    def __init__(self, address: str | None, on_connect: Callable[[str], None] | None = None) -> None:
        given = address or os.environ.get(_ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS") or "auto"
        self.address = given
        offer_token()
        if not given.startswith(("http://", "https://")):
            self.address = given = find_head(given, on_connect)
        elif on_connect:
            on_connect(given)
        with self._clear_errors(), _variable(_ADDRESS_VARIABLE, given):
            if given.startswith("http"):
                _greet(given)
            from ray.job_submission import JobSubmissionClient

            for module in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
                logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)  # how an upload goes is no news
            self._client = JobSubmissionClient(given)

    def submit(self, arguments: Sequence[str], gpus: int = 0) -> str:
        """Submit ``handdata ARGUMENTS`` and return the job's id.

        Args:
            arguments: Command line.
            gpus: Number of GPUs that the command itself uses, on one node; none for commands that start actors of their
                own.

        """
        with tempfile.TemporaryDirectory() as folder, self._clear_errors():
            stage_code(Path(folder))
            return self._answer(
                lambda: self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "handdata", *arguments]),
                    runtime_env={
                        "working_dir": folder,
                        "excludes": ["__pycache__"],
                        "env_vars": travelling_variables(),
                    },
                    entrypoint_num_gpus=gpus or None,
                )
            )

    def follow(self, job_id: str, write: Callable[[str], None], note: Callable[[str], None]) -> int:
        """Pass a job's log on as it comes, until the job ends; return the command's exit code.

        Args:
            job_id: Id of a job of this cluster.
            write: Function called with pieces of the log.
            note: Function called with a line whenever the reason changes why the job does not run yet.

        Raises:
            RunError: The job was stopped, or died otherwise than by an exit code of ours, or the cluster is gone.

        """
        from ray.job_submission import JobStatus

        with self._clear_errors():
            self._wait_for_start(job_id, note)
            asyncio.run(self._pass_log_on(job_id, write))
            job = self._info(job_id)
        if job.status == JobStatus.SUCCEEDED:
            return 0
        if job.status == JobStatus.STOPPED:
            raise RunError(f"job {job_id} was stopped", _HOW_TO_GO_ON)
        if job.driver_exit_code in (1, 2):
            return job.driver_exit_code
        reason = (job.message or "").partition(", last available logs")[0].splitlines()
        raise RunError(f"job {job_id} failed: {reason[0] if reason else job.status}", _HOW_TO_GO_ON)

    def how_to_go_on(self, job_id: str) -> str:
        """Say how to follow and to stop a job that is left alone."""
        address = f" --address {self.address}" if self.address.startswith("http") else ""
        ray = "RAY_AUTH_MODE=token ray" if os.environ.get("RAY_AUTH_MODE") == "token" else "ray"
        return (
            f"job {job_id} goes on without this terminal; "
            f"follow it: {ray} job logs{address} --follow {job_id}; stop it: {ray} job stop{address} {job_id}"
        )

    def _wait_for_start(self, job_id: str, note: Callable[[str], None]) -> None:
        from ray.job_submission import JobStatus

        last_message = None
        while (job := self._info(job_id)).status == JobStatus.PENDING:
            if job.message != last_message:
                last_message = job.message
                note(f"job {job_id}: {last_message}")
            time.sleep(_POLL_S)

    async def _pass_log_on(self, job_id: str, write: Callable[[str], None]) -> None:
        """Write the log once, however often the connection to it breaks."""
        import aiohttp

        written = 0
        while True:
            position = 0
            try:
                async for piece in self._log(job_id):
                    position += len(piece)
                    if position > written:
                        write(piece[written - position :])
                        written = position
            except (aiohttp.ClientError, RuntimeError):
                pass  # the next line raises where the cluster itself is gone
            if self._info(job_id).status.is_terminal():
                return
            await asyncio.sleep(_POLL_S)

    async def _log(self, job_id: str) -> AsyncIterator[str]:
        """Yield a job's log as it comes, until it ends, or the job does and no more comes."""
        pieces = self._client.tail_job_logs(job_id)
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            while not (await asyncio.wait([coming], timeout=_SILENT_S))[0]:
                if self._info(job_id).status.is_terminal():
                    coming.cancel()
                    return
            if (piece := coming.result()) is None:
                return
            yield piece

    def _info(self, job_id: str) -> "JobDetails":
        return self._answer(lambda: self._client.get_job_info(job_id))

    def _answer(self, question: Callable[[], Answer]) -> Answer:
        silent = RunError(
            f"the Ray cluster at {self.address} does not answer for {_ANSWER_S:g} s",
            "is it running and within reach? it goes on with a job that it has received",
        )
        return within(_ANSWER_S, question, silent)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError, RayError

        try:
            yield
        except AuthenticationError as error:
            what = "asks for a token" if "Missing" in error.message else "refuses the token"
            raise RunError(f"the Ray cluster at {self.address} {what}", TOKEN_HINT) from None
        except (ConnectionError, requests.RequestException, RayError, RuntimeError, ValueError) as error:
            raise RunError(
                f"cannot use the Ray cluster at {self.address}: {(str(error) or type(error).__name__).splitlines()[0]}",
                "--address takes the head's dashboard, http://HEAD:8265; is it running and within reach?",
            ) from None


def _greet(address: str) -> None:
    """Check that a dashboard answers at an address; the client of Ray's jobs waits for an answer without end.

    Raises:
        RunError: None does.

    """
    import requests

    def ask() -> requests.Response:
        return requests.get(f"{address.rstrip('/')}/api/version", timeout=PROBE_S)

    nobody = f"no Ray dashboard answers at {address}"
    hint = "is it running, and within reach? it is http://HEAD:8265 by default"
    try:
        answer = within(PROBE_S, ask, RunError(f"{nobody}: no answer within {PROBE_S:g} s", hint))
    except requests.exceptions.SSLError:
        return  # Ray's client knows which certificates the user trusts
    except (requests.RequestException, UnicodeError) as error:
        reason = str(error).rpartition(": ")[2].rstrip("'\")")
        raise RunError(f"{nobody}: {type(error).__name__}, {reason}", hint) from None
    if answer.ok and "ray_version" not in answer.text:
        raise RunError(f"{nobody}: what answers there is something else", hint)


def travelling_variables() -> dict[str, str]:
    """Return the variables of this process that are settings of handdata."""
    return {name: value for name, value in os.environ.items() if name.lower() in SETTINGS_VARIABLES}


def stage_code(folder: Path) -> None:
    """Put into a folder what travels with a job: this installation's package and the settings file.

    Ray follows links when it packs a folder: those made here, and those inside the package that stand for the folders
    beside it.
    """
    (folder / "handdata").symlink_to(Path(str(files("handdata"))).resolve())
    settings = Path(SETTINGS_FILE)
    if settings.is_file():
        (folder / SETTINGS_FILE).symlink_to(settings.absolute())


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set a variable for a while; Ray lets ``RAY_ADDRESS`` win over an address that is passed to it, not over this."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            del os.environ[name]
