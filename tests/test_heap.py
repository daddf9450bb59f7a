"""The memory of a worker's process: freed blocks are used again, and no more of them is kept than asked."""

import subprocess
import sys
from functools import cache

import pytest

# Page faults of the second of two blocks of 64 MiB, each freed at once; and the MiB that stay.
PROGRAM = """
import ctypes, resource, sys
from edc_ray.core import heap

libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = [ctypes.c_void_p]

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if len(sys.argv) > 1 and not heap.keep_freed(int(sys.argv[1]) << 20):
    sys.exit(77)
use()
print(use(), int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20)
"""


@cache
def measured(*limit: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *limit], capture_output=True, text=True)
    if done.returncode == 77 or sys.platform != "linux":
        pytest.skip("another C library")
    assert done.returncode == 0, done.stderr
    faults, resident = map(int, done.stdout.split())
    return faults, resident


def test_a_large_block_is_used_again() -> None:
    assert measured()[0] > 8000 > 80 > measured("512")[0]


def test_no_more_is_kept_than_the_limit() -> None:
    assert measured("512")[1] > measured("32")[1] + 48
