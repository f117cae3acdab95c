"""What the experiments' commands share: how they start, what they say, where results go, how they end.

A script calls `start` before its other imports, and marks its `main` as a `command`. What then goes wrong and can be
mended ends in one line on stderr, with an exit status that is not 0.
"""

import codecs
import contextlib
import errno
import functools
import importlib
import os
import re
import shlex
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit status that shells give to what Ctrl-C ends


class Refused(Exception):
    """The command cannot be done. The message says what is wrong and what to do, in a line.

    No ValueError: tyro frames those of an option in six lines.
    """


# Starting.

_started: dict[str, list[str]] = {}  # the script that was started, and how Python was told to


def start(module: str, *, extras: str = "experiments") -> NoReturn:
    """Runs `main` of a script's module, imported by its name, and ends the process.

    Args:
      module: the name of the script that calls this, before its other imports.
      extras: what to install where a package is missing, as in `pip install -e ".[extras]"`.
    """
    spec = sys.modules["__main__"].__spec__
    _started[module] = ["-m", spec.name] if spec else [sys.argv[0]]
    _make_printable(sys.stdout, sys.stderr)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for what a script has sent to the background
        # Not by an exception: what JAX or an extension module calls back into would swallow it, and the run go on.
        signal.signal(signal.SIGINT, _stop_at_once)
    say("importing …")
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "bnderiv", "experiments", "tests"):
            raise
        python = shlex.quote(sys.executable)
        sys.exit(
            f"{missing} is not installed for {python}: activate the environment that has it, "
            f"or run: {python} -m pip install -e '.[{extras}]'"
        )
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        if error.filename or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        say(f"what is printed cannot be written ({why(error)}); the files named so far are complete")
        os._exit(1)  # the interpreter would try to write it again
    sys.exit()


def command(main: Callable[[list[str] | None], None]) -> Callable[..., None]:
    """Decorates a script's main: what is refused ends it with a line in place of a traceback."""

    @functools.wraps(main)
    def ends_in_a_line(arguments: list[str] | None = None) -> None:
        try:
            main(arguments)
        except Refused as error:
            sys.exit(" ".join(str(error).splitlines()))

    return ends_in_a_line


def again(module: str, *words: object) -> str:
    """The line that runs a script as this one was run, to be pasted into a shell."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return shlex.join([python, *_started.get(module, ["-m", module]), *map(str, words)])


def line(module: str, *words: object) -> str:
    """The line that runs a script on any machine, for a report."""
    return shlex.join(["python", "-m", module, *map(str, words)])


_last_words: Callable[[], str] = str


def if_interrupted(words: Callable[[], str]) -> None:
    """What Ctrl-C says from now on, besides that it was one."""
    global _last_words
    _last_words = words


def _stop_at_once(*_: Any) -> None:
    with contextlib.suppress(Exception):  # the print that was interrupted holds the stream
        sys.stdout.flush()
    line = "\n" + ". ".join(filter(None, ("interrupted", _last_words()))) + "\n"
    os.write(2, line.encode(sys.stderr.encoding, sys.stderr.errors or "replace"))
    os._exit(INTERRUPTED)  # JAX's threads may still compile; an interpreter that ends under them crashes


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done; a second one ends the process at once."""
    asked: list[int] = []

    def wait(number: int, _: Any) -> None:
        if asked:
            _stop_at_once()
        asked.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)


# Saying.


def say(text: str) -> None:
    """A line on stderr, at once: before each stretch in which nothing else is shown."""
    print(text, file=sys.stderr, flush=True)


def bar(**options: Any) -> Any:
    """tqdm's progress bar on stderr. Without a terminal it is a line every ten seconds, and where it is refreshed."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, **options)
    return tqdm(file=_Lines(), mininterval=10, miniters=1, ncols=100, **options)


class _Lines:
    """A stream for tqdm on stderr: it adds a line for each new state of the bar, and overwrites none."""

    _last = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text not in ("", self._last):
            say(text)
            self._last = text


_SPELLED = {"…": "...", "–": "-", "−": "-", "—": "-", "×": "x", "·": "*", "→": "->", "±": "+-", "½": "1/2", "√": "sqrt"}
_SPELLED |= {"∂": "d", "‖": "|", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "’": "'", "█": "#", "²": "^2"}
_SPELLED |= {letter: unicodedata.name(letter).split()[-1].lower() for letter in "αβγδεζηθικλμνξοπρςστυφχψω"}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """In ASCII what cannot be encoded, and where to go on: é is e, and what is not spelled above is ?."""
    assert isinstance(error, UnicodeEncodeError)
    words = ""
    for letter in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        words += _SPELLED.get(letter) or plain or "?"
    return words, error.end


def _make_printable(*streams: Any) -> None:
    """ASCII where the locale asks for it, though Python writes UTF-8 even there; and no letter ends a command."""
    codecs.register_error("spelled", _spell)
    asked = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG")
    encoding = {"encoding": "ascii"} if asked in ("C", "POSIX") else {}
    for stream in streams:
        stream.reconfigure(errors="spelled", **encoding)


# Folders.


def folder(script: str, chosen: Mapping[str, Any] | None = None) -> Path:
    """Where the results go if no folder is named: into `runs`, which git ignores, by the options that are not defaults.

    What is committed, in `results`, is written where `--out` says so.
    """
    words = [Path(script).stem] * (Path(script).stem != "run")
    words += [f"{name}-{value}" for name, value in (chosen or {}).items()]
    return Path(script).parent / "runs" / (re.sub(r"[^\w.,+-]+", "-", "_".join(words))[:200] or "default")


def make(folder: Path) -> Path:
    """Makes the folder of the results, before the work that they come from; refused where it cannot be."""
    with refusing(f"{folder} cannot be a folder of results", folder, "; choose another with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


def why(error: Exception, path: Path | None = None) -> str:
    """What the error says, or what the system leaves out: a link that leads nowhere, a file in a folder's place."""
    for place in (path, *path.parents) if path else ():
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place} is a link to {os.readlink(place)}, which does not exist"
        if isinstance(error, FileExistsError | NotADirectoryError) and os.path.isfile(place):
            return f"{place} is a file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def refusing(
    what: str, path: Path, advice: str = "", *, errors: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """An error of the system, or of other kinds, in the block is refused: what cannot be, why, and what to do."""
    try:
        yield
    except errors as error:
        raise Refused(f"{what} ({why(error, path)}){advice}") from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a folder for this process, unless another does; the system lets go of it however the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is held
        yield
        return
    make(folder)
    with refusing(f"{folder} cannot be written", folder):
        file = (folder / "lock").open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Refused(
                f"{folder}: another process is training here, pid {file.read().strip()}; wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        with contextlib.suppress(OSError):  # a full disk: held all the same
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield
