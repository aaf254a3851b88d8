"""Programs that a model could write: whatever they do is over soon, done to nothing, and a failed item at most."""

import socket
import time

import pytest

from gsr_kernels.continual.evaluators import program
from gsr_kernels.continual.evaluators.program import check_programs, passes, run_program
from gsr_kernels.continual.examples import Example

HARMFUL = {
    "fails": "assert False",
    "does not parse": "def",
    "holds a null byte": "\0",
    "ends before its tests": "import sys; sys.exit(0)",
    "ends at once": "import os; os._exit(0)",
    "looks for the code in a frame": "import os, sys\nfor value in sys._getframe(1).f_locals.values():\n"
    "  if isinstance(value, (int, str)) and str(value).strip().isdigit(): os._exit(int(value))\nassert False",
    "reads its input for the code": "import os, sys\nos._exit(int(sys.stdin.read() or 1))",
    "forks": "import os\nwhile True: os.fork()",
    "forks stubbornly": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "starts a process": "import subprocess; subprocess.run(['true'])",
    "starts a thread": "import threading; threading.Thread(target=print).start()",
    "floods its output": "while True: print('x' * 10000)",
    "eats memory": "rows = []\nwhile True: rows.append('x' * 10**7)",
    "never ends": "while True: pass",
    "holds out against the limit": "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: 0)\nwhile True: pass",
    "recurses": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "leaves its session": "import os; os.setsid()",
    "kills its parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_program_that(what):
    started = time.monotonic()
    assert not run_program(HARMFUL[what], seconds=1, megabytes=512)
    assert time.monotonic() - started < 1 + program.PATIENCE


def test_a_program_that_sleeps_is_waited_for_so_long(monkeypatch):
    monkeypatch.setattr(program, "PATIENCE", 0)
    assert not run_program("import time; time.sleep(60)", seconds=1)


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
        assert not run_program("import socket; socket.socketpair()")


def test_files_are_read_and_never_written(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    assert run_program(f"assert open({str(kept)!r}).read() == 'mine'")
    for call in (
        "open({!r}, 'w')",
        "open({!r}, 'a')",
        "__import__('os').unlink({!r})",
        "__import__('os').chmod({!r}, 0)",
    ):
        assert not run_program("import os; " + call.format(str(kept)))
    assert kept.read_text() == "mine" and [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_computing_is_allowed():
    assert run_program("import collections, decimal, itertools, json, math, random, re\nassert math.comb(5, 2) == 10")
    assert run_program("import numpy\nassert numpy.eye(3).sum() == 3")


def test_a_program_is_the_main_module():
    assert run_program("import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)")
    assert run_program("def f(): return 'é😀'\nimport __main__\nassert len(__main__.f()) == 2")


def test_a_completion_stands_between_its_prefix_and_its_test():
    row = Example("Add.", "", prefix="def add(a, b):\n", test="assert add(1, 2) == 3")
    assert passes(row, "    return a + b") == 1
    assert passes(row, "    return a - b") == 0


def test_other_machines_are_refused_by_name(monkeypatch):
    check_programs()
    monkeypatch.setattr(program.platform, "machine", lambda: "riscv64")
    with pytest.raises(ValueError, match="--metric pass@1 runs what the model wrote, confined by Linux's seccomp"):
        check_programs()
