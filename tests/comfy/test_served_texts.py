"""locales/en against a real ComfyUI: what it would show without it, and that it takes both."""

from __future__ import annotations

import json
from pathlib import Path

LOCALES = Path(__file__).resolve().parent.parent.parent / "locales"


def read(language, name):
    return json.loads((LOCALES / language / name).read_text(encoding="utf-8"))


def shown(info):
    """What the page shows of a node for which there is no translation, in their form."""
    inputs = {}
    for group in ("required", "optional"):
        for name, (_, *more) in info["input"].get(group, {}).items():
            inputs[name] = slot(name, more[0].get("tooltip") if more else None)
    tooltips = info.get("output_tooltips") or [None] * len(info["output"])
    outputs = {
        str(place): slot(name, tooltip)
        for place, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    told = {
        "display_name": info["display_name"] or info["name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }
    return {key: value for key, value in told.items() if value}


def slot(name, tooltip):
    return {"name": name, "tooltip": tooltip} if tooltip else {"name": name}


def test_english_changes_nothing_on_the_page(pair):
    written = read("en", "nodeDefs.json")
    info = pair.a.object_info()
    assert {name: shown(info[name]) for name in written} == written


def test_comfyui_hands_out_both_languages(pair):
    told = pair.a.get("/i18n")
    for language in ("en", "ja"):
        assert told[language]["nodeDefs"].items() >= read(language, "nodeDefs.json").items()
        categories = read(language, "main.json")["nodeCategories"]
        assert told[language]["nodeCategories"].items() >= categories.items()
