"""The dashboard as an ASGI application. The server renders every page; htmx only replaces parts of
it.

Without JavaScript, each link and form loads a whole page. No page changes a run, a model or the
registry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from importlib import resources
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlencode

import jinja2
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from markdown_it import MarkdownIt
from starlette.exceptions import HTTPException

from recsys import __version__
from recsys.config import redact
from recsys.errors import ArtifactError, MultigrainError, RequestError
from recsys.report.pages import environment
from recsys.report.wording import figure, metric_name, number, signed
from recsys.ui.answers import List, Question, list_for, similar_to, some_user
from recsys.ui.charts import differences, standings, winner
from recsys.ui.comparisons import Comparing, Comparisons
from recsys.ui.gate import Gate
from recsys.ui.guard import REPORT_POLICY, Guard
from recsys.ui.loaded_models import LoadedModel, LoadedModels
from recsys.ui.runs import Run, Runs

_STATIC: Final = {
    "report.css": ("recsys.report", "report.css", "text/css"),
    "ui.css": ("recsys.ui", "static/ui.css", "text/css"),
    "htmx.min.js": ("recsys.ui", "static/htmx.min.js", "text/javascript"),
    "icon.svg": ("recsys.ui", "static/icon.svg", "image/svg+xml"),
}
_LOG: Final = logging.getLogger(__name__)

Text = Annotated[str, Query(max_length=500)]
Items = Annotated[list[str], Query(max_length=100)]
Length = Annotated[int, Query(ge=1, le=50)]
By = Literal["auto", "vectors", "use", "text"]


class Pages:
    """The data and templates that the pages share."""

    def __init__(
        self, runs: Runs, gate: Gate, loaded: LoadedModels, comparisons: Comparisons
    ) -> None:
        self.runs, self.gate, self.loaded, self.comparisons = runs, gate, loaded, comparisons
        # the text of a card comes from the registry, so it must not bring scripts or load images
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
        self._templates = environment(
            jinja2.PackageLoader("recsys.ui"),
            metric=metric_name,
            number=number,
            signed=signed,
            figure=figure,
            when=_when,
            key=quote,
            shown=redact,
            rest_of=lambda fields, item: (
                fields | {"item": [one for one in fields["item"] if one != item]}
            ),
            with_item=lambda fields, item: fields | {"item": [*fields["item"], item]},
            with_own=lambda lengths, own: sorted({*lengths, own}),
        )
        self._templates.globals.update(link=link, release=__version__)

    def page(self, name: str, status: int = 200, **content: Any) -> HTMLResponse:
        """Render a page from its template."""
        page = name.partition(".")[0]
        html = self._templates.get_template(f"{name}.html.j2").render(page=page, **content)
        # paths of files may have bytes that are not UTF-8
        return HTMLResponse(html.encode(errors="replace"), status)

    def card(self, opened: LoadedModel) -> str:
        """The model card as HTML; HTML in its Markdown is escaped."""
        html: str = self._markdown.render(str(opened.about.get("card") or ""))
        return html

    def run(self, key: str) -> Run:
        """The run with a key.

        Raises
        ------
        ArtifactError
            There is no such run.
        """
        found = self.runs.get(key)
        if found is None:
            raise ArtifactError(f"there is no run {key!r} here; it may have been moved or deleted")
        return found


def application(
    runs: Runs,
    gate: Gate,
    loaded: LoadedModels,
    compare: Comparing,
    names: Iterable[str] = (),
    password_sha256: str = "",
) -> Guard:
    """The dashboard behind its guard.

    Parameters
    ----------
    runs, gate, loaded
        The runs, registered models and loaded models to show.
    compare
        Ranks the test split with the models of two run folders and returns the content of
        ``compare.json``.
    names
        Accepted host names, besides ``localhost`` and IP addresses.
    password_sha256
        SHA-256 of the token that the browser must send; empty: no token.
    """
    # FastAPI's own pages load scripts from another site, which the policy forbids
    app = FastAPI(title="Multigrain", docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages(runs, gate, loaded, Comparisons(compare))
    _add_runs(app, pages)
    _add_comparison(app, pages)
    _add_models(app, pages)
    _add_static(app)
    _add_try(app, pages)
    _add_similar(app, pages)
    _add_errors(app, pages)
    return Guard(app, names, password_sha256)


def _add_runs(app: FastAPI, pages: Pages) -> None:
    """Add the pages of runs and their reports."""

    @app.get("/")
    def runs() -> HTMLResponse:
        found = pages.runs.all()
        return pages.page(
            "runs", runs=found, folders=pages.runs.folders, problem=pages.runs.problem
        )

    @app.get("/runs/{key:path}")
    def run(key: str) -> HTMLResponse:
        found = pages.run(key)
        version = next(
            (
                one
                for model in pages.gate.models()
                for one in model.versions
                if one.run_id and one.run_id == found.run_id
            ),
            None,
        )
        return pages.page("run", run=found, chart=standings(found.metrics), version=version)

    @app.get("/reports/{name}/{key:path}")
    def report(name: str, key: str) -> Response:
        path = pages.run(key).report(name)
        if path is None:
            raise ArtifactError(f"the run {key!r} has no such report")
        # a report is a file that others may have written, so it runs in a sandbox
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return HTMLResponse(path.read_bytes(), headers=headers)


def _add_comparison(app: FastAPI, pages: Pages) -> None:
    """Add the page that compares two runs."""

    @app.get("/compare")
    def compare(first: Text = "", second: Text = "", run: Items = []) -> HTMLResponse:  # noqa: B006
        if run:
            first, second = [*run, "", ""][:2]
        comparable = [one for one in pages.runs.all() if one.is_comparable]
        content: dict[str, Any] = {
            "runs": comparable,
            "first": first,
            "second": second,
            "comparison": None,
        }
        if len(run) > 2:
            problem = f"{len(run)} runs are selected; select two to compare."
            return pages.page("compare", 422, **content, problem=problem)
        if not first or not second:
            return pages.page("compare", **content)
        chosen = [pages.run(key) for key in (first, second)]
        if first == second:
            return pages.page(
                "compare",
                422,
                **content,
                problem="Both are the same run; choose two different ones.",
            )
        if not all(one.is_comparable for one in chosen):
            problem = (
                "One of the runs has no evaluated model in its run folder; run `recsys evaluate`"
                " for it."
            )
            return pages.page("compare", 422, **content, problem=problem)
        content["comparison"] = found = pages.comparisons.of(*chosen)
        if found.record:
            content |= {
                "chart": differences(found.record),
                "winner": winner(found.record, first, second),
            }
        return pages.page("compare", **content, problem=found.problem)


def _add_models(app: FastAPI, pages: Pages) -> None:
    """Add the pages of registered models and their cards."""

    @app.get("/models")
    def models() -> HTMLResponse:
        return pages.page(
            "models",
            models=pages.gate.models(),
            problem=pages.gate.problem,
            uri=pages.gate.tracking_uri,
        )

    @app.get("/card")
    def card(model: Text = "") -> HTMLResponse:
        opened = pages.loaded.open(model)
        version = pages.gate.get(opened.choice.key)
        return pages.page("card", opened=opened, card=pages.card(opened), version=version)


def _add_static(app: FastAPI) -> None:
    """Add the style sheet, the script and the icon."""

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        # a list of names and not a path, so that no other file can be read
        if name not in _STATIC:
            raise HTTPException(404)
        package, path, kind = _STATIC[name]
        content = resources.files(package).joinpath(path).read_bytes()
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_try(app: FastAPI, pages: Pages) -> None:
    """Add the page that asks a model for a list."""

    @app.get("/try")
    def try_it(
        model: Text = "",
        user: Text = "",
        item: Items = [],  # noqa: B006 - FastAPI copies it
        find: Text = "",
        k: Length = 10,
        seen: bool = False,
        explain: bool = False,
        pick: bool = False,
    ) -> Response:
        opened, problem = _opened(pages, model)
        if pick and opened is not None:
            fields = {"model": opened.choice.key, "user": some_user(opened), "k": k}
            # a redirect, so that a reload keeps the user instead of drawing another one
            return RedirectResponse(link("/try", **fields), 303)
        items = tuple(dict.fromkeys(one for one in item if one))
        question = Question(user.strip(), items, k, seen, explain)
        answer: List | None = None
        if opened is not None and question:
            try:
                answer = list_for(opened, question)
            except RequestError as error:
                problem = str(error)
        basket = [(one, opened.title(one) if opened else one) for one in items]
        fields = {
            "model": opened.choice.key if opened else model,
            "user": question.user,
            "item": items,
            "k": k,
        }
        fields |= {"seen": "true"} if seen else {}
        return pages.page(
            "try",
            _status(opened, problem),
            choices=pages.loaded.choices(),
            opened=opened,
            question=question,
            basket=basket,
            fields=fields,
            find=find,
            found=_found(opened, find),
            answer=answer,
            problem=problem,
        )


def _add_similar(app: FastAPI, pages: Pages) -> None:
    """Add the page of similar items."""

    @app.get("/similar")
    def similar(
        model: Text = "", item: Text = "", find: Text = "", by: By = "auto", k: Length = 10
    ) -> HTMLResponse:
        opened, problem = _opened(pages, model)
        answer = None
        if opened is not None and item:
            try:
                answer = similar_to(opened, item, by, k)
            except RequestError as error:
                problem = str(error)
        return pages.page(
            "similar",
            _status(opened, problem),
            choices=pages.loaded.choices(),
            opened=opened,
            item=item,
            title=opened.title(item) if opened and item else "",
            fields={"model": opened.choice.key if opened else model, "by": by, "k": k},
            by=by,
            k=k,
            find=find,
            found=_found(opened, find),
            answer=answer,
            problem=problem,
        )


def _add_errors(app: FastAPI, pages: Pages) -> None:
    """Show errors in plain words on a page like the others."""

    @app.exception_handler(MultigrainError)
    def ours(request: Request, error: Exception) -> HTMLResponse:
        return pages.page(
            "error",
            404 if isinstance(error, ArtifactError) else 422,
            head="This cannot be shown",
            text=str(error),
        )

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: Exception) -> HTMLResponse:
        assert isinstance(error, RequestValidationError)
        wrong = "; ".join(
            f"{one['loc'][-1]}: {one['msg'][0].lower()}{one['msg'][1:]}" for one in error.errors()
        )
        return pages.page("error", 422, head="The address is malformed", text=f"{wrong}.")

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: Exception) -> HTMLResponse:
        assert isinstance(error, HTTPException)
        text = "This page does not exist. The menu above lists all pages."
        return pages.page("error", error.status_code, head="Page not found", text=text)

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> HTMLResponse:
        _LOG.error("the page %s failed", request.url.path, exc_info=error)
        text = (
            f"{type(error).__name__}: {redact(str(error))}. See the terminal of the dashboard for"
            " details."
        )
        return pages.page("error", 500, head="This page failed", text=text)


def _status(opened: LoadedModel | None, problem: str) -> int:
    """HTTP status: 404 without the model, 422 for a request that the model refuses."""
    if not problem:
        return 200
    return 404 if opened is None else 422


def _opened(pages: Pages, model: str) -> tuple[LoadedModel | None, str]:
    """The model, or the reason why it cannot be opened."""
    try:
        return pages.loaded.open(model), ""
    except MultigrainError as error:
        return None, str(error) if pages.loaded.choices() else ""


def _found(opened: LoadedModel | None, text: str) -> list[tuple[str, str]]:
    """Items found by a text, with their titles."""
    return [(item, opened.title(item)) for item in opened.find(text)] if opened is not None else []


def link(path: str, **params: Any) -> str:
    """A URL of this dashboard; empty parameters are left out.

    >>> link("/try", user="a b", item=["1", "2"], find="")
    '/try?user=a+b&item=1&item=2'
    """
    wrong = {name: value for name, value in params.items() if value not in ("", None, (), [])}
    return f"{path}?{urlencode(wrong, doseq=True)}" if wrong else path


def _when(time: datetime) -> str:
    """A time as people read it.

    >>> _when(datetime(2026, 3, 1, 9, 5))
    '1 Mar 2026, 09:05'
    """
    return f"{time:%-d %b %Y, %H:%M}"
