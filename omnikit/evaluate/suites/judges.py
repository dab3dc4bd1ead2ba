"""A judge of free answers: a language model behind an OpenAI-compatible address, with stored judgements.

A prompt is a file whose first lines begin with `# ` and name its source; they are not sent. Each judgement is stored
with the digest of its request as soon as it has come, so that nothing is judged twice.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnikit.errors import one_line, writing
from omnikit.files import append_line, appended_lines, make_folder, read_text, remove_truncated_line

logger = logging.getLogger(__name__)
HEADER = "# "
"""Mark of the lines at the beginning of a prompt file that name its source."""
RETRIES = 6
"""Number of times that a request is sent again after an error that may pass."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, and the most before any other; each wait is twice the one before."""
TIMEOUT = 120.0
"""Seconds after which a request without a response counts as failed."""
THREADS = 8
"""Number of requests that are sent at the same time."""
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses of HTTP after which a request is sent again."""


class JudgeError(ValueError):
    """Error that says in one line why the judge gave no judgement, and how to go on."""


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt for the judge, with the places `{name}` to be filled in."""

    name: str
    text: str
    source: str
    """Place where the prompt was published, and its licence."""

    @property
    def digest(self) -> str:
        """Hash of the text, which a protocol gives."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def fill(self, **values: str) -> str:
        """Return the text with each `{name}` replaced by its value; other braces stay as they are.

        Raises:
            ValueError: the text has no place of a given name.
        """
        missing = [name for name in values if f"{{{name}}}" not in self.text]
        if missing:
            raise ValueError(f"prompt {self.name}: has no place {{{missing[0]}}}")
        places = re.compile("|".join(re.escape(f"{{{name}}}") for name in values) or r"(?!)")
        return places.sub(lambda found: values[found[0][1:-1]], self.text)  # in one pass: values are not filled in


def read_prompt(path: Path) -> JudgePrompt:
    """Read a prompt file.

    Raises:
        ValueError: there is no such file, it names no source, or it has no text.
    """
    if not path.is_file():
        choices = ", ".join(sorted(each.stem for each in path.parent.glob("*.txt"))) or "none"
        raise ValueError(f"prompt {path}: no such file (choices: {choices})")
    lines = read_text(path).split("\n")
    head = 0
    while head < len(lines) and lines[head].startswith(HEADER):
        head += 1
    text = "\n".join(lines[head:]).strip("\n")
    if not head or not text:
        raise ValueError(f"prompt {path}: needs a first line `# Source: ..`, and a text below it")
    return JudgePrompt(path.stem, text, " ".join(line.removeprefix(HEADER).strip() for line in lines[:head]))


@dataclass(frozen=True)
class JudgeRequest:
    """A request to the judge: the prompt, a system prompt if there is one, and limits."""

    prompt: str
    system: str | None = None
    max_tokens: int | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Return the JSON body of the request to a model."""
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": self.prompt})
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {"model": model, "messages": messages, "temperature": 0, **limit}


@dataclass
class LLMJudge:
    """A judge that asks a language model by `POST <url>/chat/completions` and stores what it says.

    Args:
        url: address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
        model: name of the model.
        cache_file: JSONL file of judgements; those in it are not asked for again.
        key: key of the server, sent as a bearer token; None = none.
        retries, first_wait, timeout, threads: see the constants of this file.

    Raises:
        ValueError: the address or the name of the model is missing or bad, or the file has other lines.
    """

    url: str
    model: str
    cache_file: Path
    key: str | None = field(default=None, repr=False)
    retries: int = RETRIES
    first_wait: float = FIRST_WAIT
    timeout: float = TIMEOUT
    threads: int = THREADS

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--judge_url {self.url}: must begin with http:// or https://")
        if not self.model:
            raise ValueError("--judge_model: is missing; give the name of the model at --judge_url")
        self._lock = threading.Lock()
        self._stored = _read_cache(self.cache_file)

    def ask(self, request: JudgeRequest | str) -> str:
        """Return what the judge says to a request; see `ask_all`."""
        return self.ask_all([request])[0]

    def ask_all(self, requests: Sequence[JudgeRequest | str], title: str = "judge") -> list[str]:
        """Return what the judge says to requests, in their order; equal requests are sent once.

        Raises:
            JudgeError: the server cannot be reached or refuses. What it said before is stored.
        """
        bodies = [_request(each).body(self.model) for each in requests]
        digests = [_digest(body) for body in bodies]
        new = {name: body for name, body in zip(digests, bodies, strict=True) if name not in self._stored}
        if new:
            self._send_all(new, title)
        return [self._stored[name] for name in digests]

    def _send_all(self, bodies: Mapping[str, dict[str, Any]], title: str) -> None:
        """Send requests by several threads; after an error the other threads end, too."""
        ended = threading.Event()
        remove_truncated_line(self.cache_file)

        def send(item: tuple[str, dict[str, Any]]) -> None:
            if ended.is_set():
                return
            try:
                self._keep(item[0], self._said(item[1], ended))
            except BaseException:
                ended.set()
                raise

        with ThreadPoolExecutor(min(self.threads, len(bodies))) as pool:
            try:
                list(tqdm(pool.map(send, bodies.items()), total=len(bodies), desc=title, dynamic_ncols=True))
            finally:
                ended.set()

    def _said(self, body: Mapping[str, Any], ended: threading.Event) -> str:
        """Send a request until there is a response, and return its text."""
        wait, tries = self.first_wait, 0
        while True:
            tries += 1
            try:
                return _content(self._post(body))
            except urllib.error.HTTPError as error:
                reason, passing = f"status {error.code}: {_words(error)}", error.code in _PASSING
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: another form
                reason, passing = one_line(getattr(error, "reason", None) or error or type(error).__name__), True
            if not passing or tries > self.retries or ended.is_set():
                break
            logger.warning("judge %s: %s; trying again in %.0f s", self.url, reason, wait)
            ended.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        raise JudgeError(
            f"--judge_url {self.url}: no judgement by {self.model} (tried {tries} times; {reason}); answers and "
            f"{len(self._stored)} judgements are stored, the same command goes on from there"
        )

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read())

    def _keep(self, name: str, said: str) -> None:
        with self._lock:
            with writing(self.cache_file):
                make_folder(self.cache_file.parent)
            append_line(self.cache_file, {"request": name, "model": self.model, "said": said})
            self._stored[name] = said


def _request(request: JudgeRequest | str) -> JudgeRequest:
    return JudgeRequest(request) if isinstance(request, str) else request


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _content(response: Any) -> str:
    """Return the text of a response.

    Raises:
        ValueError: the response has another form.
    """
    try:
        said = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"no choices[0].message.content in {one_line(response, 100)}") from None
    if not isinstance(said, str):
        raise ValueError("the message has no text")
    return said


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return one_line(error.read(1000).decode(errors="replace"), 200)
    except OSError:
        return one_line(error.reason)


def _read_cache(path: Path) -> dict[str, str]:
    """Return the stored judgements by the digest of their requests; none if there is no such file."""
    if not path.is_file():
        return {}
    lines = appended_lines(path, ("request", "said"), "is no judgement of this command")
    return {str(line["request"]): line["said"] for line, _ in lines}
