"""Loading the file that defines an app's routes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from sipnap.shim.sip.app import App

_MODULE_NAME = "sipnap_routes"


class RoutesError(Exception):
    """The routes file cannot be used; the message names the fix."""


def load_app(path: Path) -> App:
    """Run a Python file and return the `App` that it defines under the name ``app``.

    As with ``python FILE.py``, modules that lie beside the file can be imported by it.

    Raises:
        RoutesError: There is no such file, it raised an exception, or it defines no such app.
    """
    path = path.absolute()
    if not path.is_file():
        raise RoutesError(f"--routes {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise RoutesError(f"--routes {path}: not a Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = _line_in(path, error)
        where = f"{path}:{line}" if line else path
        raise RoutesError(f"--routes {where}: {type(error).__name__}: {error}") from error
    app = getattr(module, "app", None)
    if not isinstance(app, App):
        raise RoutesError(f"--routes {path}: it defines no app; write 'app = App()' (from sipnap.shim.sip import App)")
    if app.find_request_route() is None:
        raise RoutesError(f"--routes {path}: the app has no request_route; decorate one with '@app.request_route'")
    return app


def _line_in(path: Path, error: BaseException) -> int | None:
    """The last line of the file that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
