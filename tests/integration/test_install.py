"""The distribution, as somebody gets it who has no checkout: built from source, installed into an empty environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE_INSTALL = {"googleapis-common-protos", "grpcio", "grpcio-status", "protobuf", "sipnap", "typing-extensions"}
"""All that `pip install sipnap` brings: README promises little."""

# Editors' files, environments and what tools leave behind are no part of a source tree.
_NO_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, built in a copy of the tree: setuptools would pick up what an earlier build left."""
    source = tmp_path_factory.mktemp("source") / "sipnap"
    shutil.copytree(ROOT, source, ignore=_NO_SOURCE)
    out = tmp_path_factory.mktemp("sdist")
    _run(
        sys.executable,
        "-W",
        "error",
        "-c",
        f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})",
        cwd=source,
    )
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the source distribution gives."""
    out = tmp_path_factory.mktemp("wheel")
    _run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sdist
    )
    (archive,) = out.glob("*.whl")
    return archive


@pytest.mark.timeout(120)
def test_the_source_distribution_has_what_a_developer_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "Makefile",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "protos/sipnap/v1/suspension.proto",
        "tests/conftest.py",
        "examples/node/nap.js",
        "deploy/sipnap.toml",
        "scripts/check",
    }


@pytest.mark.timeout(120)
def test_the_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        path.relative_to(ROOT / portion).as_posix()
        for portion in ("client", "sidecar", "shim")
        for pattern in ("*.py", "*.pyi", "py.typed", "*.cfg", "*.lua")
        for path in (ROOT / portion / "sipnap").rglob(pattern)
    }
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == wanted
    assert wanted >= {
        "sipnap/client/py.typed",
        "sipnap/shim/kamailio/sipnap.cfg",
        "sipnap/shim/kamailio/sipnap_kemi.py",
        "sipnap/shim/kamailio/sipnap_operations.cfg",
        "sipnap/shim/py.typed",
        "sipnap/sidecar/py.typed",
        "sipnap/v1/py.typed",
    }
    assert "sipnap/__init__.py" not in names  # it would hide the portions of other distributions


@pytest.mark.timeout(240)  # pip fetches grpcio and protobuf
def test_the_base_install_is_small_and_imports(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)

    listed = _run(sys.executable, "-m", "pip", "--python", python, "list", "--format", "json")
    assert {package["name"].lower().replace("_", "-") for package in json.loads(listed)} == BASE_INSTALL

    _run(python, "-W", "error", "-c", "import sipnap.client, sipnap.sidecar, sipnap.shim", cwd=tmp_path)
    overview = _run(environment / "bin" / "sipnap", "--help", cwd=tmp_path)
    assert "cannot be loaded" not in overview

    for command, extra in (("serve", "sidecar"), ("demo", "s")):
        done = subprocess.run(
            [environment / "bin" / "sipnap", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"pip install 'sipnap[{extra}" in done.stderr


def _run(*words: str | Path, cwd: Path | None = None) -> str:
    # Not from inside the checkout, where `client/` and the like are importable by accident.
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd or "/", capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
