"""The endpoints. Each takes the champion once, so that one answer is of one version."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import noise2next
from noise2next.registry.packaging import Asked, Reply
from noise2next.serving import docs
from noise2next.serving.batching import Batcher, Busy
from noise2next.serving.following import Champion, Follower
from noise2next.serving.metrics import Metrics
from noise2next.serving.schemas import (
    MOST_BODY,
    Alive,
    Id,
    K,
    ModelName,
    ModelState,
    Problem,
    Ready,
    Recommendations,
    RecommendRequest,
    SimilarItems,
)

RETRY_SECONDS = 1
DESCRIPTION = """
Lists of items from the champion of one dataset. The champion is what the alias `champion` of the registered model
points to; a newer one takes over by itself, between two answers and never within one. Each answer names its model.
"""
RECOMMEND_EXAMPLES: dict[str, Any] = {
    "a user": {"summary": "A user of the log", "value": {"queries": [{"user_id": "u0006"}], "k": 5}},
    "a history": {
        "summary": "Anyone, from what was taken so far, oldest first",
        "value": {"queries": [{"history": ["i0001", "i0003"]}], "k": 5},
    },
    "many": {
        "summary": "Many at once, repeats of what they had allowed",
        "value": {"queries": [{"user_id": "u0006"}, {"history": ["i0001"]}], "k": 5, "exclude_seen": False},
    },
}
INVALID = {"model": Problem, "description": "Not what the schema asks for; `where` names the place."}
NOT_NOW = {"model": Problem, "description": "No champion is loaded, or the queue is full: try again (`Retry-After`)."}


class Refused(Exception):
    """An answer that is a `Problem`."""

    def __init__(self, status: int, error: str, where: str) -> None:
        self.status, self.error, self.where = status, error, where


def create_app(follower: Follower, batcher: Batcher, metrics: Metrics) -> FastAPI:
    """The service over a follower and a batcher, which it starts and ends with itself."""

    @contextlib.asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        follower.start()
        yield
        follower.stop()
        batcher.close()

    app = FastAPI(
        title="noise2next", version=noise2next.__version__, description=DESCRIPTION,
        docs_url=None, redoc_url=None, lifespan=alive,
    )  # fmt: skip
    metrics.waiting.set_function(lambda: batcher.waiting)
    metrics.listed.set_function(lambda: follower.champion.lists.done if follower.champion else 0)
    app.add_middleware(_Bounded)
    app.add_middleware(_Measured, metrics=metrics)
    _answer_problems(app)

    def serving() -> Champion:
        if follower.champion is None:
            raise Refused(503, follower.trouble or "the champion is being loaded", "server")
        return follower.champion

    async def replies(champion: Champion, asked: list[Asked], k: int, exclude_seen: bool | None) -> list[Reply]:
        if exclude_seen is None:
            exclude_seen = follower.exclude_seen
        found = champion.lists.find(asked, k, exclude_seen)
        missing = [query for query, reply in zip(asked, found, strict=True) if reply is None]
        if not missing:
            return [reply for reply in found if reply is not None]
        try:
            scored = await asyncio.wrap_future(batcher.ask(champion.package, missing, k, exclude_seen))
        except Busy as error:
            metrics.turned_away.inc()
            raise Refused(503, "more queries wait than can be answered in time; try again", "server") from error
        rest = iter(scored)
        return [next(rest) if reply is None else reply for reply in found]

    @app.post(
        "/recommend",
        summary="What users, or people with a history, are to see next",
        response_model=Recommendations,
        responses={
            400: {"model": Problem, "description": "The body is not readable."},
            413: {"model": Problem, "description": f"The body has more than {MOST_BODY:,} bytes."},
            422: INVALID,
            503: NOT_NOW,
        },
    )
    async def recommend(request: Annotated[RecommendRequest, Body(openapi_examples=RECOMMEND_EXAMPLES)]) -> Response:
        """One answer a query, in their order, all of one version.

        Items that the model does not know are named in `unknown` and the rest is asked. Where nothing is left, and for
        a user who is not known, `fallback` says that the list is what was taken most of late, and `reason` why.
        """
        champion = serving()
        asked = [query.asked for query in request.queries]
        answers = await replies(champion, asked, request.k, request.exclude_seen)
        for answer in answers:
            if answer.unknown:
                metrics.unknown_items.inc(len(answer.unknown))
            if answer.fallback:
                metrics.fallbacks.labels(answer.reason).inc()
        metrics.queries.inc(sum(answer.fallback is None for answer in answers))
        return _json(Recommendations(model=ModelName.of(champion), answers=answers))

    @app.get(
        "/similar",
        summary="Items like a given one",
        response_model=SimilarItems,
        responses={
            404: {"model": Problem, "description": "The model does not know the item."},
            422: INVALID,
            503: NOT_NOW,
        },
    )
    async def similar(
        item: Annotated[Id, Query(description="An item's id as the log writes it.", examples=["i0001"])], k: K = 10
    ) -> Response:
        """What the model gives to a history of this item alone, so the same question for every kind of model.

        It is not symmetric: it says where people go from the item. A model of popularity gives every item one list.
        """
        champion = serving()
        if item not in champion.package.artifact.items.index:
            known = len(champion.package.artifact.items)
            raise Refused(
                404, f"the item is not among the {known:,} that version {champion.version} knows", "query.item"
            )
        (answer,) = await replies(champion, [Asked(history=[item])], k, True)
        metrics.queries.inc()
        return _json(SimilarItems(model=ModelName.of(champion), item=item, items=answer.items, scores=answer.scores))

    @app.get("/health", summary="Is the process alive?", response_model=Alive)
    async def health() -> Response:
        """Says nothing of the model: restart the process where this does not answer."""
        return _json(Alive(alive=True))

    @app.get(
        "/ready",
        summary="Can it answer?",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "No champion is loaded yet."}},
    )
    async def ready() -> Response:
        """Send traffic where this is 200. A registry that is away leaves it so: the loaded champion goes on."""
        champion = follower.champion
        state = Ready(
            ready=champion is not None, version=champion.version if champion else None, trouble=follower.trouble
        )
        return _json(state, 200 if state.ready else 503)

    @app.get("/model", summary="Which version answers?", response_model=ModelState, responses={503: NOT_NOW})
    async def model() -> Response:
        """The version, its data, since when; and which newer one stays out, if any, and why."""
        return _json(ModelState.now(serving(), follower))

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses={200: docs.PLAIN})
    async def figures() -> Response:
        """Requests, latencies, batches, fallbacks, and the version that serves."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    page = docs.page(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": docs.POLICY})

    return app


def _json(document: BaseModel, status: int = 200) -> Response:
    return Response(document.model_dump_json(), status, media_type="application/json")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def _answer_problems(app: FastAPI) -> None:
    """Every error leaves as a `Problem`; what it was made of stays in the server's log."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else None
        return _problem(error.status, error.error, error.where, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first, *others = error.errors()
        unknown = first["type"] == "extra_forbidden"
        said = "unknown key; remove it or mend its spelling" if unknown else first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            return _problem(400, f"not readable as JSON: {first['ctx']['error']}, character {first['loc'][1]}", "body")
        more = f" (and {len(others)} more)" if others else ""
        return _problem(422, f"{said}{more}", ".".join(map(str, first["loc"])))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = {
            400: "not readable as JSON",
            404: "there is nothing here; /docs says what there is",
            405: "this method is not for this path; /docs says which is",
            413: f"the body has more than {MOST_BODY:,} bytes; send fewer queries at once",
        }.get(error.status_code, str(error.detail))
        where = "body" if error.status_code in (400, 413) else "path"
        return _problem(error.status_code, said, where, error.headers)

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> Response:
        return _problem(500, "a fault of ours; the server's log has it", "server")


def _problem(status: int, error: str, where: str, headers: Any = None) -> Response:
    # ASCII alone: a key of the request that stands in `where` may hold what is no text in UTF-8.
    content = json.dumps({"error": error, "where": where})
    return Response(content, status, media_type="application/json", headers=headers)


class _Bounded:
    """Reads no body beyond its limit, whatever length the request says it has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BODY:
                raise HTTPException(413)
            return message

        await self._app(scope, counting, send)


class _Measured:
    """Counts and times every request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), "500"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self._metrics.requests.labels(endpoint, status).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)
