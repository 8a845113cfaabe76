"""READMEs and docs: examples run, files and commands exist, quoted texts are those of the code."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from website import door

from zbus import lan
from zbus.cli import bench, farm, pair, ping, up
from zbus.cli import link as linking
from zbus.net import cutting, greeting, links, peerings
from zbus.pairing import invitation, inviting
from zbus.protocol import job_room, messages

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README_JP.md")
MAX_LINES = 200  # of a README: one screen, and what it leads to
GUIDES, NODES, ERRORS, PYTHON, COMING = (
    (f"docs/{name}.md", f"docs/{name}_JP.md")
    for name in ("guide", "nodes", "errors", "python", "coming-from")
)
PAIRS = (READMES, GUIDES, NODES, ERRORS, PYTHON, COMING)
ENGLISH_ALONE = (
    "CHANGELOG.md",
    "docs/behaviour.md",
    "docs/performance.md",
    "docs/protocol.md",
    "docs/security.md",
)
DOCUMENTS = (*(name for pair in PAIRS for name in pair), *ENGLISH_ALONE)
COMMANDS = {f"zbus-{command.NAME}": command for command in (bench, farm, linking, pair, ping, up)}

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIABLE = re.compile(r"\bZBUS_[A-Z_]+\b")
VERB = re.compile(r"\bzbus-pair ([a-z]+)")
TUNNEL = re.compile(r"\bssh\b[^`\n]*? -\w*L ([^\s`]+)|`-\w*L ([^\s`]+:[^\s`]+)")
SCRIPT = re.compile(r"\bscripts[/\\]([\w.-]+)")
GAPS = re.compile("…|[,:] ")  # in a quoted text: names, numbers, and where two texts are joined


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    return [code for language, code in FENCED.findall(read(name)) if language in languages]


def examples() -> list[object]:
    return [
        pytest.param(code, id=f"{name}-{number}")
        for name in PYTHON
        for number, code in enumerate(blocks(name, "python"))
    ]


@pytest.mark.parametrize("code", examples())
def test_the_example_runs(code, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_there_are_examples():
    assert len(blocks(PYTHON[0], "python")) == 2


def test_every_document_is_looked_at():
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert there == {name for name in DOCUMENTS if name.startswith("docs/")}


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_short(name):
    """One picture, and what leads to a first run; all else is in docs/."""
    assert len(read(name).splitlines()) < MAX_LINES
    assert read(name).count("![") == 1


def test_each_japanese_document_leads_to_japanese_ones():
    translated = {Path(english).name for english, _ in PAIRS}
    for _, japanese in PAIRS:
        links = {link.partition("#")[0] for link in LINK.findall(read(japanese))}
        english = {link for link in links if Path(link).name in translated}
        assert english == {Path(japanese).name.replace("_JP", "")}, japanese  # the switch on top


@pytest.mark.parametrize(("english", "japanese"), PAIRS, ids=[Path(a).stem for a, _ in PAIRS])
def test_both_languages_say_the_same(english, japanese):
    """The same code, commands, outputs, pictures, tables, files: only the words differ."""
    assert FENCED.findall(read(english)) == FENCED.findall(read(japanese))
    assert scripts(english) == scripts(japanese)
    assert quoted(english) == quoted(japanese)
    assert shape(english) == shape(japanese)
    assert files(english) - files(japanese) <= {Path(english).name}
    assert files(japanese) - files(english) <= {Path(english).name}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    for link in LINK.findall(read(name)):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / name).parent.joinpath(file) if file else ROOT / name
        assert target.is_file(), link
        if heading:
            lines = target.read_text(encoding="utf-8").splitlines()
            assert heading in {anchor(line) for line in lines if line.startswith("#")}, link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_script_exists(name):
    missing = {script for script in scripts(name) if not (ROOT / "scripts" / script).is_file()}
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_of_the_machine_it_was_written_on(name):
    assert not re.search(r"/(work|root|home|tmp)/", read(name))


def test_every_file_in_the_map_exists():
    rows = re.findall(r"^\| (`.*?`) \|", read("docs/protocol.md"), re.M)
    assert len(rows) > 15
    for row in rows:
        folder = Path()
        for name in re.findall(r"`(.*?)`", row):
            found = [path for path in (ROOT / name, ROOT / folder / name) if path.exists()]
            assert found, f"{name} in {row}"
            folder = Path(name).parent if "/" in name else folder


def test_every_file_is_in_the_map():
    """By its name, or by that of its folder."""
    rows = re.findall(r"^\| (`.*?`) \|", read("docs/protocol.md"), re.M)
    listed = {name for row in rows for name in re.findall(r"`(.*?)`", row)}
    names = {Path(name).name for name in listed}
    folders = tuple(name for name in listed if name.endswith("/"))
    paths = [path.relative_to(ROOT) for top in ("zbus", "comfy_nodes") for path in python(top)]
    assert len(paths) > 100
    for path in paths:
        known = path.name in names or path.as_posix().startswith(folders)
        assert known or path.name == "__init__.py", path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_is_one(name):
    """What a reader may type is what the commands take."""
    lines = [line.strip() for code in blocks(name, "sh") for line in code.splitlines()]
    for line in lines:
        program, *words = shlex.split(line.removeprefix("python scripts/"))
        if program in COMMANDS:
            parser(program).parse_args([w.replace("PORT", "22") for w in words])
    for verb in VERB.findall(read(name)):
        with pytest.raises(SystemExit) as ended:
            parser("zbus-pair").parse_args([verb, "--help"])
        assert ended.value.code == 0, verb


def test_every_variable_is_told():
    """And only those that there are."""
    code = {name for text in texts_of_the_code() for name in VARIABLE.findall(text)}
    for name in (*GUIDES, "docs/security.md"):
        table = set(re.findall(r"^\| `(ZBUS_[A-Z_]+)` \|", read(name), re.M))
        assert table == code == set(VARIABLE.findall(read(name))), name


def test_what_is_handled_has_a_test():
    """In docs/behaviour.md: the last cell of each row names one that there is, or a dash where zbus
    has no part in it."""
    there = set()
    for path in (ROOT / "tests").rglob("*.py"):
        there |= set(re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text("utf-8"), re.M))
    rows = [line for line in read("docs/behaviour.md").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| what is seen |")]
    assert len(rows) > 60
    for row in rows:
        seen, known, does, test = (cell.strip() for cell in row.strip("|").split(" | "))
        assert seen and known.startswith(("run", "read: ")), row
        assert (does == "-") == (test == "-"), row
        names = re.findall(r"`(\w+)`", test)
        assert test == "-" or (names and set(names) <= there), row


def test_every_tunnel_names_both_ends():
    """Where 127.0.0.1 is taken, ssh settles for ::1 with "-L 8282:...": the node would talk to
    whatever has the port."""
    shown = [read(name) for name in DOCUMENTS if name != "CHANGELOG.md"] + texts_of_the_code()
    for folder in ("web", "locales", "example_workflows"):
        paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".json")]
        shown += [path.read_text(encoding="utf-8") for path in paths]
    found = ["".join(ends) for text in shown for ends in TUNNEL.findall(text)]
    assert len(found) > 10
    # What is warned of stands in these texts as well, and nowhere else.
    warned = [*GUIDES, "docs/behaviour.md"]
    assert all("::1" in read(name) for name in warned)
    bad = [end for end in found if not end.startswith("127.0.0.1:")]
    assert bad == ["8282:localhost:8282"] * len(warned)


def test_the_limits_are_the_real_ones():
    text = read("docs/security.md")
    told = (
        f"{cutting.MAX_YOUNG}, the oldest goes",
        f"{greeting.MAX_UNDER_WAY}, {greeting.PATIENCE:.0f} s each",
        f"have not said a word | {cutting.SILENT_TIME:.0f} s each",
        f"was refused | {cutting.MAX_DOOMED}, the oldest goes; {links.REJECT_TIME / 1000:g} s each",
        f"| sessions at one listener | {peerings.MAX_PEERINGS} |",
        f"{messages.MAX_HEADER >> 10} KiB of header, {messages.MAX_CHUNK >> 20} MiB of body",
        f"{invitation.MAX_MESSAGE >> 10} KiB; {inviting.MAX_CONNECTIONS} that talk",
        f"{lan.MAX_SEEN}, with {lan.MAX_HOSTS} addresses each",
        f"{door.MAX_OPEN}; {door.PER_SECOND:.0f} new ones a second, {door.BURST} at once; "
        f"{door.FIRST_TIME:.0f} s for the first bytes",
        f"| jobs of one paired peer at a time | {job_room.MAX_TAKEN} |",
    )
    for words in told:
        assert words in text


def test_the_texts_in_the_table_are_the_real_ones():
    known = "\n".join(texts_of_the_code())
    rows = quoted(ERRORS[0])
    assert len(rows) > 60
    for row in rows:
        for piece in GAPS.split(row):
            assert piece.strip(' "') in known, f"{piece!r} of {row}"


# --- details


def files(name: str) -> set[str]:
    """Those that it leads to, in either language."""
    links = (link.partition("#")[0] for link in LINK.findall(read(name)))
    return {link.replace("_JP.md", ".md") for link in links if link}


def scripts(name: str) -> set[str]:
    return set(SCRIPT.findall(read(name)))


def python(top: str) -> list[Path]:
    return sorted((ROOT / top).glob("**/*.py"))


def parser(program: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(program)
    COMMANDS[program].arguments(made)
    return made


def quoted(name: str) -> list[str]:
    """The first cells of the table of what to do when it does not connect."""
    return re.findall(r"^\| `([^`|]*[a-z]{3} [^`|]*)` \|", read(name), re.M)


def shape(name: str) -> list[str]:
    """The headings' levels and the columns of the tables, in order."""
    text = FENCED.sub("", read(name))
    lines = [line for line in text.splitlines() if line.startswith(("#", "|", "- "))]
    return [f"{line.split()[0] if line[0] == '#' else line[0]}{line.count('|')}" for line in lines]


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    words = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def texts_of_the_code() -> list[str]:
    """Every text in the code, without what is filled in."""
    found = []
    paths = [ROOT / "_locate.py", *python("zbus"), *python("comfy_nodes")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found
