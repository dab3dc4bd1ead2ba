"""Forms with an uploaded file, read into memory; Starlette would write files of more than 1 MiB to disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from omnikit.serve.rest.errors import bad_input

FORM = "multipart/form-data"
_MOST_FIELDS = 100


class _InMemory(MultiPartParser):
    spool_max_size = 0  # to `tempfile.SpooledTemporaryFile`, no size is too large for the memory


@dataclass(frozen=True)
class Upload:
    """The fields of a form, those whose names end in `[]` as lists, and the content of its file."""

    fields: dict[str, Any] = field(default_factory=dict)
    file: bytes | None = None


async def read_upload(http: Request, name: str) -> Upload:
    """Read a form whose file has a given name.

    Raises:
        Refusal: no form, or a damaged one.
    """
    kind, options = parse_options_header(http.headers.get("content-type", ""))
    if kind != FORM.encode():
        raise bad_input(f"body: must be {FORM} with the field {name!r}", name)
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # others may fail to decode, or yield lone surrogates
        raise bad_input("body: the charset of a form must be utf-8")
    try:
        form = await _InMemory(http.headers, http.stream(), max_files=1, max_fields=_MOST_FIELDS).parse()
    except MultiPartException as error:
        raise bad_input(f"body: {error.message}") from None
    try:
        return _contents(form.multi_items(), name)
    finally:
        await form.close()


def _contents(items: list[tuple[str, str | UploadFile]], name: str) -> Upload:
    fields, lists, file = {}, {}, None
    for key, value in items:
        if isinstance(value, UploadFile):
            file = value.file.read() if key == name else file
        elif key.endswith("[]"):
            lists.setdefault(key[:-2], []).append(value)
        else:
            fields[key] = value
    return Upload(fields | lists, file)
