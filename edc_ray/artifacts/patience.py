"""Which errors of a store may pass by themselves, and how long that is waited for."""

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds
_CODES = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
}  # fmt: skip
_WORDS = re.compile(  # of pyarrow's S3 and GCS, whose errors have no number
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT"
)
_log = logging.getLogger(__name__)


def passing(error: OSError) -> bool:
    """Whether the same call may succeed in a while: not for a full disk, a missing right, a missing file."""
    return error.errno in _CODES or (error.errno is None and bool(_WORDS.search(str(error))))


def patiently(
    act: Callable[[], T],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """act(), and again, with growing pauses, while it raises what may pass; then its own error."""
    ends, pause = clock() + seconds, FIRST_PAUSE
    while True:
        try:
            return act()
        except OSError as error:
            if not passing(error) or clock() + pause > ends:
                raise
            if pause == FIRST_PAUSE:
                _log.warning("waiting up to %g s for the store: %s", seconds, error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
