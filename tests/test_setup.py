"""`scripts/test` on a ComfyUI of the user's own: it tells what is missing there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from children import ROOT

sys.path.append(str(ROOT / "scripts"))
import _setup
import needs

LACKING = "zbus-has-no-such-package"
REQUIREMENTS = f"""\
# a comment
aiohttp>=3
{LACKING}>=1.2  # of which there is none

#non essential dependencies:
another-{LACKING}==3
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that passes for a ComfyUI, and starts."""
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "main.py").write_text("print('started')\n")
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    return folder


@pytest.fixture
def named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is named, with the Python of this test."""
    monkeypatch.setenv("COMFYUI_DIR", str(checkout))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    return checkout


def set_up(root: Path) -> _setup.Host:
    return _setup._named_comfyui(root, root / "no venv is made")


def test_requirements_are_read_as_comfyui_writes_them() -> None:
    found = list(needs.requirements(REQUIREMENTS))
    assert found == [
        ("aiohttp>=3", False),
        (f"{LACKING}>=1.2", False),
        (f"another-{LACKING}==3", True),
    ]
    names = ("SQLAlchemy>=2.0.0", "pydantic~=2.0", "a[b]==1", 'c; python_version < "3.11"', "d @ x")
    assert [needs.project(r) for r in names] == ["sqlalchemy", "pydantic", "a", "c", "d"]


def test_an_option_of_pip_among_them_is_no_package(checkout: Path) -> None:
    lines = "--extra-index-url https://index.invalid/whl\n-r more.txt\neinops  # and why\n"
    (checkout / "requirements.txt").write_text(lines)
    assert _setup._comfyui_needs(checkout) == ("einops",)


def test_a_python_without_its_checkout_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setenv("ZBUS_CACHE", str(tmp_path))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    monkeypatch.setattr(_setup, "_environment", lambda root: root)
    monkeypatch.setattr(_setup, "_own_comfyui", lambda root, _: _setup.Host(root, root))
    _setup.prepare()
    assert "COMFYUI_PYTHON is not used" in capsys.readouterr().out


def test_a_package_that_cannot_be_imported_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one built for another torch: it is installed, and of no use."""
    (tmp_path / "broken.py").write_text("raise OSError('libcudart.so.13: cannot open it')\n")
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "RECORD").write_text("broken.py,,\nbroken-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert needs.why_not("broken") == "OSError: libcudart.so.13: cannot open it"
    assert needs.why_not(LACKING) == "is not installed"
    assert needs.why_not("aiohttp") == ""


def test_it_tells_what_is_missing_and_how_to_install_it(
    named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    host = set_up(tmp_path)
    assert (host.folder, host.python) == (named, Path(sys.executable))
    said = capfd.readouterr().out
    assert f"ComfyUI 9.8.7: {named}, run by {sys.executable}\n" in said
    assert f"missing there: {LACKING}>=1.2 (is not installed)\n" in said
    assert f"missing there: another-{LACKING}==3 (is not installed)\n" in said
    assert (
        f'to install them: "{sys.executable}" -m pip install "{LACKING}>=1.2" '
        f'"another-{LACKING}==3"\n'
    ) in said
    assert "aiohttp" not in said
    assert "it starts without" in said


def test_one_that_does_not_start_is_an_error(named: Path, tmp_path: Path) -> None:
    (named / "main.py").write_text(f"import {LACKING.replace('-', '_')}\n")
    with pytest.raises(_setup.SetupError) as caught:
        set_up(tmp_path)
    said = str(caught.value)
    assert "ModuleNotFoundError" in said and "does not start" in said
    assert f'-m pip install "{LACKING}>=1.2"' in said


def test_what_is_no_checkout_is_an_error(
    tmp_path: Path, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(_setup.SetupError, match="COMFYUI_PYTHON: .*no-python does not start"):
        set_up(tmp_path)
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(_setup.SetupError, match="COMFYUI_DIR is not a ComfyUI checkout: .*main.py"):
        set_up(tmp_path)


def test_the_tests_get_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR_2", "of the user, as it was typed")
    first, second = (
        _setup.Host(tmp_path / name, tmp_path / name / "python") for name in ("one", "two")
    )
    given = _setup.Env(Path(sys.executable), first, second=second).variables()
    assert given["COMFYUI_DIR"] == str(tmp_path / "one")
    assert given["COMFYUI_PYTHON_2"] == str(tmp_path / "two" / "python")
    alone = _setup.Env(Path(sys.executable), first).variables()
    assert "COMFYUI_DIR_2" not in alone and "COMFYUI_PYTHON_2" not in alone
