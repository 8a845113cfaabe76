"""What a Python lacks of a ComfyUI's requirements: ``PYTHON needs.py REQUIREMENTS.TXT...``.

Run by `scripts/test` with the Python that is to run that ComfyUI. Prints one JSON object:
requirement -> why it does not do ("is not installed", or what its import raised), with those that
the file itself calls non-essential under "optional". Standard library only, and nothing of this
folder but `runner`, which gets by with what is built for another torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import runner


def main() -> None:
    found: dict[str, dict[str, str]] = {"needed": {}, "optional": {}}
    with_torch = "torch" in map(project, (r for r, _ in _all(sys.argv[1:])))
    if with_torch and not why_not("torch"):
        runner.make_importable()
    for requirement, optional in _all(sys.argv[1:]):
        why = why_not(project(requirement))
        if why:
            found["optional" if optional else "needed"][requirement] = why
    print(json.dumps(found))


def requirements(text: str) -> Iterator[tuple[str, bool]]:
    """(requirement, whether it can be done without) of each line of a requirements.txt.

    ComfyUI's has a line "#non essential dependencies:", and those below it.
    """
    optional = False
    for line in text.splitlines():
        optional = optional or bool(re.match(r"\s*#\s*non.essential", line))
        requirement = line.partition("#")[0].strip()
        if requirement and not requirement.startswith("-"):
            yield requirement, optional or ";" in requirement  # which not every Python needs


def project(requirement: str) -> str:
    """The name in a requirement, without extras, version and marker, in lower case."""
    return re.split(r"[\s<>=!~\[;@]", requirement)[0].lower()


def why_not(name: str) -> str:
    """Why a package does not do: "" if all that it brings can be imported."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"
    for module in _modules(package):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a foreign package raises, it is what is to be told
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _all(files: list[str]) -> Iterator[tuple[str, bool]]:
    for file in files:
        yield from requirements(Path(file).read_text(encoding="utf-8"))


def _modules(package: importlib.metadata.Distribution) -> list[str]:
    """The packages and modules at the top of what it has installed, less the private ones."""
    tops = {
        (file.parts[0], len(file.parts) > 1)
        for file in package.files or ()
        if file.suffix == ".py" and ".." not in file.parts
    }
    found = {name if inside else name.removesuffix(".py") for name, inside in tops}
    return sorted(name for name in found if name.isidentifier() and not name.startswith("_"))


if __name__ == "__main__":
    main()
