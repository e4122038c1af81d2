"""Which error a snippet really raises, found by running it in a process of its own.

The child runs isolated (`-I`, no environment, an empty working directory) with limits on memory,
processor time, file size and wall time. An audit hook refuses sockets, subprocesses, and opening
files for writing. Nothing is ever compiled or executed in the calling process. This guards against
accidents of generated snippets; it is not a sandbox for hostile code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from circuits.errors import CircuitsError

_MEMORY = 512 * 2**20  # bytes
_SECONDS_EACH = 2
_SECONDS_START = 20

_CHILD = r"""
import io, json, os, signal, sys

snippets, memory, seconds = json.load(sys.stdin)
report = os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
os.dup2(null, 2)

try:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    cpu = seconds * len(snippets) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
except ImportError:
    pass  # no such limits on this system; the parent's wall time still holds

armed = False
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "ctypes.",
           "os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.", "os.kill", "os.spawn")


def guard(event, args):
    if not armed:
        return
    if event.startswith(refused):
        raise PermissionError(event)
    if event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("open for writing")


def late(number, frame):
    raise TimeoutError("snippet took too long")


sys.addaudithook(guard)
has_alarm = hasattr(signal, "setitimer")
if has_alarm:
    signal.signal(signal.SIGALRM, late)
for number, snippet in enumerate(snippets):
    sys.stdout = sys.stderr = io.StringIO()
    name = ""
    if has_alarm:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    armed = True
    try:
        exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})
    except BaseException as error:
        name = type(error).__name__
    armed = False
    if has_alarm:
        signal.setitimer(signal.ITIMER_REAL, 0)
    report.write(json.dumps([number, name]) + "\n")
    report.flush()
"""


class SnippetError(CircuitsError):
    """Snippets that could not be run, or that raise something else than they are labelled with."""


def raised_errors(snippets: Sequence[str]) -> list[str]:
    """The name of the exception each snippet ends with, "" for one that ends well.

    Raises `SnippetError` when the child dies or takes too long, naming the snippet it was at.
    """
    if not snippets:
        return []
    distinct = list(dict.fromkeys(snippets))
    limit = _SECONDS_START + _SECONDS_EACH * len(distinct)
    with tempfile.TemporaryDirectory(prefix="circuits-snippets-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _CHILD],
                input=json.dumps([distinct, _MEMORY, _SECONDS_EACH]),
                capture_output=True,
                text=True,
                timeout=limit,
                cwd=folder,
                env={},
                check=False,
            )
            output = done.stdout
        except subprocess.TimeoutExpired as error:
            raw = error.stdout or b""
            output = raw.decode() if isinstance(raw, bytes) else raw
    names = [name for _, name in map(json.loads, output.splitlines())]
    if len(names) < len(distinct):
        raise SnippetError(
            f"running snippets stopped at {distinct[len(names)]!r}: it used too much memory or "
            "time, or ended the process. Take it out."
        )
    by_snippet = dict(zip(distinct, names, strict=True))
    return [by_snippet[s] for s in snippets]


def check_labels(snippets: Sequence[str], labels: Sequence[str]) -> None:
    """Raise `SnippetError` unless each snippet raises the error it is labelled with."""
    found = raised_errors(snippets)
    wrong = [
        f"{s!r} is labelled {label} but raises {name or 'nothing'}"
        for s, label, name in zip(snippets, labels, found, strict=True)
        if name != label
    ]
    if wrong:
        raise SnippetError(f"{len(wrong)} wrong labels: " + "; ".join(wrong[:3]))
