"""Test the command `omnikit serve`: its bad input, its address, https, and how signals end it."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import typer

from omnikit import cli, serve
from omnikit.generate.running_batch import CAPACITY
from omnikit.serve.realtime import voice_activity
from omnikit.serve.run import SHIPPED, Server, bind, check_certificate, leave_a_core, name_checkpoints
from omnikit.serve.settings import ServerSettings
from tests.serve.conftest import wait_for

WAITING = """
import asyncio, os
from omnikit.errors import bad_input_exits
from omnikit.serve import app, run

create = app.create_app

def create_app(serving):
    found = create(serving)

    @found.get("/wait")
    async def wait(path: str) -> str:
        print("waiting", flush=True)
        while not os.path.exists(path):
            await asyncio.sleep(0.05)
        return "waited"

    found.router.routes.insert(0, found.router.routes.pop())
    return found

run.create_app = create_app
with bad_input_exits():
    run.run([], run.ServerSettings(port=0), run.SystemOptions())
"""
"""Program that serves like `omnikit serve`, with a call that waits for a file."""


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Context manager that starts a server, and gives its process and its address."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert " (docs: http" in line, process.stderr.read()
        yield process, line.split()[0]
    finally:
        process.kill()
        process.communicate()


def refused(capsys, monkeypatch, *words: object) -> str:
    """Return the error with which `omnikit serve` refuses some arguments."""
    monkeypatch.setattr(sys, "argv", ["omnikit", "serve", *map(str, words)])
    monkeypatch.delenv("OMNIKIT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0: anybody who reaches this address could use the server"),
        (("--host", "no.such.name.invalid"), "--host no.such.name.invalid: this machine knows no such address"),
        (("--port", "70000"), "--port 70000: must be at most 65535"),
        (("--slots", "0"), "--slots 0: must be 1 or more"),
        (("--max_steps", "0"), "--max_steps 0: must be 1 or more"),
        (("--request_seconds", "0"), "--request_seconds 0: must be above 0"),
        (("--max_sessions", "0"), "--max_sessions 0: must be 1 or more"),
        (("--token", "two words"), "--token: must be printable ASCII"),
        (("--checkpoint", "nowhere/at/all"), "nowhere/at/all: no such"),
        (("--checkpoint", "a=x", "--checkpoint", "a=y"), "--checkpoint a=y: another one is called a, too"),
        (("--engine", "steam"), "engine 'steam': unknown (choices: auto, torch"),
        (("--ssl_keyfile", "key.pem"), "--ssl_certfile is missing"),
        (("--ssl-certfile", "nothing.pem"), "--ssl_certfile nothing.pem: no such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, monkeypatch, words, message):
    assert message in refused(capsys, monkeypatch, "--port", "0", *words)


def test_a_port_in_use_is_named(capsys, monkeypatch):
    with bind(ServerSettings(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        assert f"--port {port}: address already in use" in refused(capsys, monkeypatch, "--port", port)


@pytest.mark.parametrize("module", serve.NEEDED)
def test_without_the_extra_it_is_named(capsys, monkeypatch, module):
    find = serve.find_spec
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == module else find(name))
    assert f"package {module!r}: pip install \"omnikit[serve]\"" in refused(capsys, monkeypatch)


def test_weights_of_the_turn_detection_that_are_missing_are_named(capsys, monkeypatch, tmp_path):
    """The server does not start, instead of failing at its first session."""
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: package)
    voice_activity.shipped.cache_clear()
    monkeypatch.setattr("omnikit.serve.run.load_system", lambda *_: pytest.fail("loaded"))
    assert f"{tmp_path}/data/silero_vad_16k.safetensors: cannot be read" in refused(capsys, monkeypatch, "--port", "0")


@pytest.mark.parametrize(
    ("device", "there", "variable", "expected"),
    [("cpu", 4, None, [3]), ("cpu", 1, None, [1]), ("cpu", 4, "2", []), ("cuda", 4, None, [])],
)
def test_on_a_cpu_one_core_is_left_to_the_event_loop(monkeypatch, device, there, variable, expected):
    found = []
    monkeypatch.setattr("omnikit.serve.run.cores", lambda: there)
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    leave_a_core(device)
    assert found == expected


def test_the_command_imports_nothing_of_the_extra_before_it_runs():
    code = (
        "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = None\n"
        "import omnikit, omnikit.cli; sys.argv = ['omnikit', 'serve', '--help']\n"
        "try: omnikit.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'starlette', 'prometheus_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_every_setting_is_a_flag_with_its_default():
    command = typer.main.get_command(cli.app).commands["serve"]
    flags = {each.name: each for each in command.params}
    for each in fields(ServerSettings):
        assert each.name in flags, each.name
        if isinstance(each.default, float | int) and each.type != "bool":
            assert flags[each.name].help.endswith(f"(default: {each.default:g})"), each.name
    assert flags["slots"].help.endswith(f"(default: {CAPACITY})")
    assert "(default: 127.0.0.1)" in flags["host"].help
    assert {"--ssl_certfile", "--ssl-certfile"} <= set(flags["ssl_certfile"].opts)


def test_checkpoints_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results/stage3").mkdir(parents=True)
    assert name_checkpoints([]) == {SHIPPED: None}
    found = name_checkpoints(["results/stage3", "other=results/stage3", "owner/model", "a=owner/model@x=1"])
    assert found == {
        "stage3": "results/stage3", "other": "results/stage3", "owner/model": "owner/model", "a": "owner/model@x=1",
    }  # fmt: skip
    Path("odd name").mkdir()
    with pytest.raises(ValueError, match="--checkpoint odd name: 'odd name' cannot be a name; write NAME=odd name"):
        name_checkpoints(["odd name"])
    assert name_checkpoints(["mine=odd name"]) == {"mine": "odd name"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """Return the paths of a certificate of 127.0.0.1 and its key, which are made by the program openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    paths = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-out", paths[0], "-keyout", paths[1], "-days", "2", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return paths


def test_certificates_are_checked(certificate, tmp_path):
    file, key = certificate
    check_certificate(ServerSettings())
    check_certificate(ServerSettings(ssl_certfile=file, ssl_keyfile=key))
    both = tmp_path / "both.pem"
    both.write_text(Path(file).read_text() + Path(key).read_text())
    check_certificate(ServerSettings(ssl_certfile=str(both)))
    for pair in ((file, None), (key, file), (file, __file__), (__file__, None)):
        with pytest.raises(ValueError, match=f"--ssl_certfile {pair[0]}.*: no certificate with its unencrypted key"):
            check_certificate(ServerSettings(ssl_certfile=pair[0], ssl_keyfile=pair[1]))


def test_https(server, certificate):
    started = server(ssl_certfile=certificate[0], ssl_keyfile=certificate[1])
    assert started.url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=certificate[0])
    with httpx.Client(verify=trusted) as client:
        assert client.get(f"{started.url}/health").json() == {"status": "ready"}
        assert client.get(f"{started.url}/health", headers={"Origin": started.url}).status_code == 200


def test_the_command_serves_until_sigterm():
    with started("-m", "omnikit.cli", "serve", "--port", "0", "--token", "word", "--slots", "3") as (process, url):
        assert httpx.get(f"{url}/health").json() == {"status": "ready"}
        assert httpx.get(f"{url}/metrics").status_code == 401
        figures = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer word"}).text
        assert 'omnikit_slots{model="mini"} 3.0' in figures
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert all(" INFO 127.0.0.1 " in line for line in err.splitlines()), err


@contextmanager
def waiting(path: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[httpx.Response]]]:
    """Context manager that starts a server in which a call waits for a file.

    It gives the process, its address, and a list for the response to the call, complete after the context.
    """
    found: list[httpx.Response] = []
    with started("-c", WAITING) as (process, url):

        def ask() -> None:
            found.append(httpx.get(f"{url}/wait", params={"path": str(path)}, timeout=100))

        thread = threading.Thread(target=ask)
        thread.start()
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/health", timeout=60).status_code == 503)
        yield process, url, found
        thread.join(60)


@pytest.mark.long
def test_the_first_signal_lets_requests_finish(tmp_path):
    with waiting(tmp_path / "go") as (process, url, found):
        assert httpx.get(f"{url}/wait", timeout=60).status_code == 503
        (tmp_path / "go").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert found[0].json() == "waited"
    assert "SIGTERM: running answers may finish within 30 s" in err and "Traceback" not in err


@pytest.mark.long
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(tmp_path, second):
    with waiting(tmp_path / "never") as (process, _, found):
        process.send_signal(second)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + second
    assert found[0].status_code == 503
    assert "Traceback" not in err, err


def test_a_signal_before_the_server_listens(serving):
    """Nothing runs yet that could be finished."""
    with bind(ServerSettings(port=0)) as sock:
        server = Server(serving(port=0), sock)
        server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit
