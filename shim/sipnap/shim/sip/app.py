"""The routes of a Python SIP front end, by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipnap.shim.sip.call import Call
    from sipnap.shim.sip.task import Task

REQUEST_ROUTE = "request_route"
"""Name under which logs speak of the route that every new request enters."""

_ROUTE_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")

Route = Callable[["Call"], Awaitable[None]]
"""A coroutine function that takes the call."""

TaskRoute = Callable[["Task"], Awaitable[None]]
"""A coroutine function that takes a task."""


class App:
    """A set of routes; what a routes file has to define under the name ``app``.

    Example::

        app = App()

        @app.request_route
        async def main(call: Call) -> None:
            if not await call.async_route("RESUME", 4):
                call.reply(503, "Unavailable")

        @app.route("RESUME")
        async def resume(call: Call) -> None:
            call.redirect("sip:bob@192.0.2.4")

        @app.task("CLEAN_UP")
        async def clean_up(task: Task) -> None:
            await forget(task.data)
    """

    def __init__(self) -> None:
        self._request_route: Route | None = None
        self._routes: dict[str, Route] = {}
        self._tasks: dict[str, TaskRoute] = {}

    def request_route(self, route: Route) -> Route:
        """Decorator: this route gets every new request except ACK and CANCEL (Kamailio: request_route).

        Raises:
            ValueError: The app has one already.
            TypeError: It is no coroutine function.
        """
        _check(route)
        if self._request_route is not None:
            raise ValueError("the app has a request_route already: keep one of the two")
        self._request_route = route
        return route

    def route(self, name: str) -> Callable[[Route], Route]:
        """Decorator: this route is where `Call.async_route` resumes (Kamailio: route[NAME]).

        Args:
            name: 1 to 64 characters of ``[A-Za-z0-9_.:-]``.

        Raises:
            ValueError: Not such a name, or one that is taken.
            TypeError: What is decorated is no coroutine function.
        """
        self._check_name(name)

        def register(route: Route) -> Route:
            _check(route)
            self._routes[name] = route
            return route

        return register

    def task(self, name: str) -> Callable[[TaskRoute], TaskRoute]:
        """Decorator: this route runs without a call, by `Call.run_task` or any program's `RunTask`.

        Args:
            name: As for `route`, and none of the routes' either.

        Raises:
            ValueError: Not such a name, or one that is taken.
            TypeError: What is decorated is no coroutine function.
        """
        self._check_name(name)

        def register(route: TaskRoute) -> TaskRoute:
            _check(route)
            self._tasks[name] = route
            return route

        return register

    def find_request_route(self) -> Route | None:
        """The route that new requests enter; None if the app has none."""
        return self._request_route

    def find_route(self, name: str) -> Route | None:
        """The route of that name; None if there is none."""
        return self._routes.get(name)

    def find_task(self, name: str) -> TaskRoute | None:
        """The task of that name; None if there is none."""
        return self._tasks.get(name)

    def _check_name(self, name: str) -> None:
        check_route_name(name)
        if name in self._routes or name in self._tasks:
            raise ValueError(f"the app has a route {name!r} already: give one of the two another name")


def is_route_name(name: str) -> bool:
    """Whether `name` may name a route: 1 to 64 characters of ``[A-Za-z0-9_.:-]``."""
    return _ROUTE_NAME.match(name) is not None


def check_route_name(name: str) -> None:
    """Let pass what may name a route.

    Raises:
        ValueError: It may not.
    """
    if not is_route_name(name):
        raise ValueError(f"{name!r} is not a route name: use 1 to 64 of [A-Za-z0-9_.:-]")


def _check(route: Route | TaskRoute) -> None:
    if not inspect.iscoroutinefunction(route):
        raise TypeError(f"{route!r} is no route: define it with 'async def'")
