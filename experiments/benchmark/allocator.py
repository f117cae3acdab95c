"""Whether large arrays get memory that the process has had before, or pages that the system has to clear first.

By default the C library gives the memory of a large array back as soon as it is freed, and faults its pages in anew for
the next one: of a copy of 51 MB that is four fifths of the time, whoever copies. A program can keep what it frees. The
benchmark does, for everybody alike, so that times are those of the computations; and tells the others too.
"""

import os
import platform
import sys

# glibc reads these when a process starts: no array so large that it is mapped by itself, no giving back. (One heap for
# all threads, MALLOC_ARENA_MAX=1, would keep the temporary arrays too, and have XLA's threads wait for each other.)
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}
_GLIBC = platform.libc_ver()[0] == "glibc"


def keeps() -> bool:
    """Whether this process, and those it starts, keep what they free."""
    return all(os.environ.get(name) == value for name, value in KEEPING.items())


def state() -> str:
    """The memory of large arrays, in words."""
    if keeps():
        return "kept by the process"
    return "new to the process" if _GLIBC else "as the allocator has it"


def start_again(keeping: bool) -> None:
    """Becomes the same program anew, with or without; nothing where it is so already, or where there is no glibc."""
    if keeping == keeps() or not _GLIBC:
        return
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment | (KEEPING if keeping else {}))
