"""Test error messages that users see: one line each, also for packages that are not installed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from omnikit.errors import ArgumentParser, bad_input_exits, full_disk_names, missing_package
from omnikit.option_ranges import COUNT

METADATA = """\
Metadata-Version: 2.1
Name: omnikit
Version: 0
Requires-Dist: torch>=2
Provides-Extra: everything
Requires-Dist: some_judge>=5; extra == "everything"
Requires-Dist: pytest; extra == "everything"
Provides-Extra: judge
Requires-Dist: some_judge>=5; extra == "judge"
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "omnikit-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("some_judge", "pip install 'omnikit[judge]'"),
        ("some_judge.inner", "pip install 'omnikit[judge]'"),
        ("pytest", "pip install 'omnikit[everything]'"),
        ("torch", "pip install torch"),
        ("unheard_of", "pip install unheard_of"),
    ],
)
def test_a_missing_package_names_its_extra(module, command):
    message = missing_package(module)
    assert message.endswith(f"which is not installed: {command}")
    assert repr(module.partition(".")[0]) in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("--a 3:\n  bad"), "--a 3: bad"),
        (FileNotFoundError(errno.ENOENT, "x", "a.wav"), "a.wav: No such file or directory"),
        (IsADirectoryError(errno.EISDIR, "x", "a.wav"), "a.wav: Is a directory"),
        (PermissionError(errno.EACCES, "x", "a.wav"), "a.wav: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "x", "a.wav"), "a.wav: File name too long"),
        (OSError(errno.ENOSPC, "x"), "output: No space left on device"),
        (OSError("tells itself"), "tells itself"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory (DefaultCPU"),
    ],
)
def test_what_is_not_the_programs_fault_is_one_line(capsys, error, words):
    with pytest.raises(SystemExit) as end, bad_input_exits():
        raise error
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, bad_input_exits():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, IndexError, RuntimeError, ZeroDivisionError])
def test_errors_of_the_program_pass(error):
    with pytest.raises(error), bad_input_exits():
        raise error("a bug")


@pytest.mark.parametrize("script", ["print('x')", "print('x' * 100000)"])
def test_output_to_a_full_device_is_one_line(script):
    code = f"from omnikit.errors import bad_input_exits\nwith bad_input_exits():\n    {script}"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "error: output: No space left on device\n"


def test_a_reader_that_has_gone_is_no_error():
    code = "from omnikit.errors import bad_input_exits\nwith bad_input_exits():\n    print('x' * 10**6)"
    shell = f'"{sys.executable}" -c "$CODE" | head -c 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell], env={**os.environ, "CODE": code}, capture_output=True, timeout=60)
    assert done.returncode == 1 and done.stdout == b"x" and done.stderr == b""


def test_a_scripts_arguments_are_told_of_in_one_line(capsys):
    for words, message in (
        (["--n", "0"], "error: --n: 0: must be 1 or more\n"),
        (["--x"], "error: the following arguments are required: --n\n"),
        (["--n", "3", "--x"], "error: unrecognized arguments: --x\n"),
    ):
        parser = ArgumentParser()
        parser.add_argument("--n", type=COUNT, required=True)
        with pytest.raises(SystemExit) as end, bad_input_exits():
            parser.parse_args(words)
        assert end.value.code == 2 and capsys.readouterr().err == message


def test_a_full_disk_in_a_long_run_names_its_folder():
    for error in (OSError(errno.EFBIG, ""), OSError(errno.ENOSPC, ""), RuntimeError("PytorchStreamWriter failed")):
        with pytest.raises(ValueError, match=r"results: cannot be written \(.*\); start"), full_disk_names("results"):
            raise error
    with pytest.raises(FileNotFoundError), full_disk_names("results"):
        raise FileNotFoundError(errno.ENOENT, "", "in.wav")
