"""The server as a Ray Serve deployment, whose replicas may run on several machines; each has systems of its own.

    serve run omnikit.serve.ray_app:build checkpoint=DIR replicas=2
"""

from __future__ import annotations

import dataclasses
import os
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from ray import serve

from omnikit.option_ranges import COUNT, Range
from omnikit.serve.app import create_app
from omnikit.serve.realtime import voice_activity
from omnikit.serve.run import SystemOptions, load_system, name_checkpoints
from omnikit.serve.security import check_exposure
from omnikit.serve.serving import Serving
from omnikit.serve.settings import RANGES, ServerSettings

NAME = "omnikit"
"""Name of the deployment."""
_LISTS = ("allowed_hosts", "allowed_origins")
_OF_PROCESS = ("port", "ssl_certfile", "ssl_keyfile")  # Ray's proxy listens, not the replicas
_SPARE = 16  # requests for which Ray has room beyond the maximum, so that the replica itself refuses them
_NUMBERS: Mapping[str, Range] = {**RANGES, "slots": COUNT, "max_steps": COUNT, "replicas": COUNT}


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the Ray Serve application that serves checkpoints like `omnikit serve`.

    Args:
        args: flags of `omnikit serve` without their dashes, as texts (`serve run ... slots=8`) or values (a config file
            of Ray), and `replicas`, the number of replicas. `checkpoint` and the allowed hosts and origins are lists,
            or texts with commas. The token is read from the environment variable OMNIKIT_TOKEN.

    Raises:
        ValueError: an unknown argument, or a bad value.
    """
    given = {name: _value(name, value) for name, value in args.items()}
    checkpoints, replicas = given.pop("checkpoint", ()), given.pop("replicas", 1)
    options = SystemOptions(**{name: given.pop(name) for name in _fields(SystemOptions) if name in given})
    known = [name for name in _fields(ServerSettings) if name not in (*_OF_PROCESS, "token")]
    if unknown := sorted(given.keys() - {*known}):
        choices = ", ".join(sorted(("checkpoint", "replicas", *_fields(SystemOptions), *known)))
        raise ValueError(f"{unknown[0]}: no such argument (choices: {choices})")
    settings = ServerSettings(**given, token=os.environ.get("OMNIKIT_TOKEN") or None)
    check_exposure(settings)
    return deployment(name_checkpoints(checkpoints), settings, options, replicas).bind()


def deployment(
    checkpoints: Mapping[str, str | None], settings: ServerSettings, options: SystemOptions, replicas: int
) -> serve.Deployment:
    """Return the Ray Serve deployment of some checkpoints; each replica loads them when it starts.

    Args:
        checkpoints: mapping from the name of each system to its folder or hub id; None = the shipped system.
        settings: settings and limits of each replica.
        options: options of the systems; with a CUDA device, a replica takes one GPU of Ray's.
        replicas: number of replicas.
    """

    def app() -> Any:
        voice_activity.shipped()  # so that a replica without its weights does not start
        systems = {name: load_system(folder, settings, options) for name, folder in checkpoints.items()}
        return create_app(Serving(settings, systems))

    most = settings.max_requests + settings.max_sessions
    return serve.deployment(serve.ingress(app)()).options(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=most + _SPARE,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_gpus": int(options.device.startswith("cuda"))},
    )


def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.name != "weights")


def _value(name: str, value: Any) -> Any:
    """Return the value of an argument, which is a text if it comes from the command line."""
    if name == "checkpoint" or name in _LISTS:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if name == "insecure" and isinstance(value, str):
        return value.lower() in ("true", "1", "yes")
    if name in _NUMBERS and isinstance(value, str):
        try:
            return _NUMBERS[name](value)
        except ArgumentTypeError as error:
            raise ValueError(f"{name}={error}") from None
    if name == "replicas":
        COUNT.check(name, value)
    return value
