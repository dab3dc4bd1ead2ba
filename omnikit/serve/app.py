"""The server as an ASGI application: all its calls, the page, and the limits around them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from omnikit import __version__
from omnikit.generate import QueueFull
from omnikit.serve import rest
from omnikit.serve.access_log import AccessLog
from omnikit.serve.docs_page import docs_page
from omnikit.serve.limits import Limits
from omnikit.serve.realtime import endpoint
from omnikit.serve.refusals import Refusal, busy, internal_error
from omnikit.serve.rest import sse
from omnikit.serve.rest.errors import CLIENT_GONE, REFUSED, refusal_for
from omnikit.serve.rest.response_bodies import Body
from omnikit.serve.security import HEALTH, BearerToken, SafeHeaders, SameSite, allowed_origins
from omnikit.serve.serving import Serving

PAGE = Path(str(resources.files("omnikit.serve") / "page"))
"""Folder of the files of the page."""


def create_app(serving: Serving) -> FastAPI:
    """Return the application that serves some systems; `request.app.state.serving` is `serving`."""
    app = App(title="omnikit", version=__version__, docs_url=None, redoc_url=None)
    app.state.serving = serving
    app.include_router(rest.router)
    app.include_router(endpoint.router)
    _add_health(app, serving)
    _add_errors(app, serving)
    app.mount("/", Page(directory=PAGE, html=True))
    _add_middleware(app, serving)
    return app


class App(FastAPI):
    """An application whose OpenAPI document has the schemas of server-sent events, too."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is made once."""
        if self.openapi_schema is None:
            super().openapi()["components"]["schemas"] |= sse.schemas(rest.EVENTS)
        return self.openapi_schema


class Page(StaticFiles):
    """The files of the page; all other paths do not exist, whatever the method."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"  # browsers ask whether a file has changed
        return response


def page_paths() -> set[str]:
    """Return the paths under which the files of the page are served."""
    files = {f"/{path.relative_to(PAGE).as_posix()}" for path in PAGE.rglob("*") if path.is_file()}
    return files | {"/"}


class Health(Body):
    """The body of a response of `/health`."""

    status: Literal["ready", "draining"]


def _add_middleware(app: FastAPI, serving: Serving) -> None:
    settings, metrics = serving.settings, serving.metrics
    # the last one that is added comes first
    app.add_middleware(BearerToken, token=settings.token, free=page_paths() | {HEALTH}, metrics=metrics)
    app.add_middleware(SameSite, settings=settings, metrics=metrics)
    app.add_middleware(Limits, serving=serving)
    if origins := allowed_origins(settings):  # outside of all that refuse, so that an allowed page can read why
        exposed = ["Retry-After"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
        )
    app.add_middleware(SafeHeaders)
    app.add_middleware(AccessLog, metrics=metrics)


def _add_health(app: FastAPI, serving: Serving) -> None:
    @app.get(HEALTH, tags=["server"], responses={503: {"model": Health, "description": "The server is about to end."}})
    async def health(response: Response) -> Health:
        """Say whether the server accepts requests: `ready`, or with status 503 `draining`."""
        if serving.draining:
            response.status_code = 503
        return Health(status="draining" if serving.draining else "ready")

    app.add_api_route(HEALTH, health, methods=["HEAD"], include_in_schema=False)  # as load balancers ask

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics(request: Request) -> Response:
        """Return figures of the server for Prometheus."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(serving.metrics.registry), headers={"content-type": kind})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))


def _add_errors(app: FastAPI, serving: Serving) -> None:
    """Answer errors in OpenAI's form; this is the one place where a full queue becomes 503."""

    def respond(refusal: Refusal) -> Response:
        return JSONResponse({"error": refusal.error}, refusal.status, refusal.headers)

    async def refused(request: Request, error: Exception) -> Response:
        return respond(refusal_for(error))

    for kind in REFUSED:
        app.add_exception_handler(kind, refused)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        serving.metrics.refused("queue")
        return respond(busy(str(error), "queue_full"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return respond(Refusal(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)  # called for all, but `Limits` has answered most of them before
    async def failed(request: Request, error: Exception) -> Response:
        serving.metrics.failed("request", error)
        return respond(internal_error())
