"""A real `ray start --head` with a dashboard, for tests: small, on the loopback interface, ended by pid."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import tiny

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUIET = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # of `python` in a job
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside those that Ray gives to workers (10002 to 19999)."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            if not 10000 <= one.getsockname()[1] < 20000:
                found.append(one.getsockname()[1])
        return found


class Head:
    """A cluster by its head: its addresses, and the command line against it."""

    def __init__(self, process: "subprocess.Popen[bytes]", gcs: str, dashboard: str, env: dict[str, str]):
        self.process, self.gcs, self.dashboard, self.env = process, gcs, dashboard, env

    def ray(self, *words: str, cwd: Path | None = None, code: int = 0, **env: str) -> str:
        """What `ray WORDS` says of this cluster. env: changes, where "" takes a variable away."""
        given = {**self.env, "RAY_ADDRESS": self.dashboard, **env}
        done = subprocess.run(
            [*RAY, *words], cwd=cwd, env={name: value for name, value in given.items() if value},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=560,
        )  # fmt: skip
        assert done.returncode == code, f"{done.returncode}: {done.stdout}"
        return done.stdout

    def job(self, name: str) -> dict[str, Any]:
        """What the dashboard knows of a job: `status`, `message`, ..."""
        return self._get(f"api/jobs/{name}")

    def log(self, name: str) -> str:
        """Of a job, so far."""
        return str(self._get(f"api/jobs/{name}/logs")["logs"])

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.dashboard}/{path}", timeout=60) as page:
            found: dict[str, Any] = json.load(page)
        return found

    def pids(self) -> list[int]:
        """The head's processes, those of fake nodes and of jobs too."""
        return [self.process.pid, *tiny.titles(self.process.pid)]


@contextlib.contextmanager
def head(*options: str, port: int | None = None, env: dict[str, str] | None = None) -> Iterator[Head]:
    """Runs while the block does. options: of `ray start`; env: of it and of all that it starts."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    gcs = port or gcs
    with tempfile.TemporaryDirectory(prefix="edc-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        own = {name: os.environ[name] for name in os.environ if not name.startswith(("RAY_", "PYTHONPATH"))}
        environment = own | QUIET | {"RAY_TMPDIR": temporary} | (env or {})
        command = [
            *RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={temporary}/ray",
            f"--port={gcs}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
            f"--object-store-memory={100 * 2**20}", "--num-gpus=0", *options,
        ]  # fmt: skip
        with (Path(temporary) / "head.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=temporary)
        found = Head(process, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
        try:
            tiny.until(lambda: _ready(found, Path(temporary)), "the head takes jobs", seconds=120)
            yield found
        finally:
            _end(found, temporary)


def _ready(head: Head, temporary: Path) -> bool:
    """Whether the dashboard answers, and its agent, which takes the jobs."""
    assert head.process.poll() is None, (temporary / "head.log").read_text()
    try:
        with urllib.request.urlopen(f"{head.dashboard}/api/version", timeout=5):
            return True
    except urllib.error.HTTPError as error:  # it asks for a token
        return error.code in (401, 403)
    except OSError:
        return False


def _end(head: Head, temporary: str) -> None:
    """kill -9 of all that it started, and of what is left without a parent."""
    pids = head.pids()
    while pids:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.process.wait(timeout=60)
        pids = tiny.naming(temporary)
