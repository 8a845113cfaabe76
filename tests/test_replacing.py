"""Classes that are gone, and what stands in their place: `comfy_nodes.prompt.replacing`."""

from __future__ import annotations

import importlib

import pytest
from prompts import PACKAGE, node, text

replaced = importlib.import_module(f"{PACKAGE}.prompt.replacing").replaced


class Manager:
    """As ComfyUI's: in place; it takes each node's title, and each old input, for granted."""

    def has_replacement(self, class_type):
        return class_type in ("Old", "Older")

    def apply_replacements(self, prompt):
        for i, old in prompt.items():
            if old["class_type"] == "Old":
                inputs = {"images.image0": old["inputs"]["image"], "mode": "new"}
                meta = old["_meta"].copy()
                prompt[i] = {"class_type": "New", "inputs": inputs, "_meta": meta}
                for other in prompt.values():
                    for value in other["inputs"].values():
                        if isinstance(value, list) and value[0] == i:
                            value[1] = 1


def prompt(**old):
    return {
        "1": node("A") | {"_meta": {"title": "mine"}},
        "2": node("Old", **old),
        "3": node("A", x=["2", 0]),
        "4": {"class_type": "A"},
    }


def test_what_is_gone_is_replaced_and_its_links_with_it():
    given = prompt(image=["1", 0])
    before = text(given)
    made = replaced(given, {"A", "New"}, Manager())
    assert made["2"] == node("New", **{"images.image0": ["1", 0], "mode": "new"})
    assert made["3"] == node("A", x=["2", 1])
    assert made["1"] == given["1"] and made["4"] == given["4"] and list(made) == list(given)
    assert text(given) == before


@pytest.mark.parametrize("names, manager", [({"A", "Old"}, Manager()), ({"A"}, None)])
def test_what_is_there_stays(names, manager):
    given = prompt(image=["1", 0])
    assert replaced(given, names, manager) is given


def test_one_that_cannot_be_replaced_leaves_all_as_it_is():
    given = prompt()
    before = text(given)
    with pytest.raises(KeyError):
        replaced(given, {"A", "New"}, Manager())
    assert text(given) == before
