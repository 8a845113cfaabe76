"""The texts of ComfyUI's page: there for each node, input and output, in each language."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "ja")
FILES = {"main.json", "nodeDefs.json", "settings.json", "commands.json"}
sys.path.insert(0, str(ROOT / "scripts"))
import _write_locales as write_locales  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def read(language: str, name: str) -> dict[str, Any]:
    text = (LOCALES / language / name).read_text("utf-8")
    return json.loads(text, object_pairs_hook=without_twins)


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key twice"
    return dict(pairs)


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    return write_locales.described()


def test_every_language_has_every_file() -> None:
    assert {folder.name for folder in LOCALES.iterdir()} == set(LANGUAGES)
    for language in LANGUAGES:
        assert {path.name for path in (LOCALES / language).iterdir()} == FILES


def test_english_is_what_the_nodes_say(nodes: dict[str, Any]) -> None:
    """It is shown in their place."""
    assert read("en", "nodeDefs.json") == nodes, "run scripts/write-locales"
    assert write_locales.main(["--check"]) == 0


def test_the_other_languages_have_each_node_input_and_output(nodes: dict[str, Any]) -> None:
    for language in set(LANGUAGES) - {"en"}:
        told = read(language, "nodeDefs.json")
        assert list(told) == list(nodes)
        for name, node in nodes.items():
            assert told[name].get("display_name") and told[name].get("description"), name
            for side in ("inputs", "outputs"):
                theirs, ours = told[name].get(side, {}), node.get(side, {})
                assert list(theirs) == list(ours), (name, side)
                # What something is called is what the help and other people's words call it.
                assert all(theirs[one].get("name", ours[one]["name"]) for one in ours)
                lacking = {
                    one
                    for one, slot in ours.items()
                    if slot.get("tooltip") and not theirs[one].get("tooltip")
                }
                assert lacking == set(), (name, side)


def test_no_field_is_called_otherwise_than_the_script_of_the_page_looks_for() -> None:
    """web/peers.js finds a field by the label that it has on the screen."""
    for language in LANGUAGES:
        for name, node in read(language, "nodeDefs.json").items():
            for field, slot in node.get("inputs", {}).items():
                assert slot.get("name", field) == field, (language, name)


def test_the_menus_of_all_our_categories_have_a_name() -> None:
    with write_locales._nodes() as pack:
        classes = [cls for module in pack.MODULES for cls in module.NODES.values()]
        categories = {cls.define_schema().said["category"].partition("/")[0] for cls in classes}
    for language in LANGUAGES:
        assert set(read(language, "main.json")) == {"nodeCategories"}
        assert set(read(language, "main.json")["nodeCategories"]) == categories


def test_settings_and_commands_are_those_that_the_page_registers() -> None:
    """None today. With their dots as underscores, as the page looks them up."""
    for kind in ("settings", "commands"):
        registered = set()
        for script in (ROOT / "web").glob("*.js"):
            for block in re.findall(rf"\b{kind}: \[(.*?)\n  \]", script.read_text("utf-8"), re.S):
                registered |= set(re.findall(r'\bid: "([^"]+)"', block))
        for language in LANGUAGES:
            told = read(language, f"{kind}.json")
            assert set(told) == {name.replace(".", "_") for name in registered}
