"""A node that the other ComfyUIs of a test do not have."""

from __future__ import annotations

from typing import Any


class TestMore:
    """Gives a text."""

    CATEGORY, FUNCTION, RETURN_TYPES = "zbus tests", "run", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": ""})}}

    def run(self, text: str) -> tuple[str]:
        return (f"more {text}",)


NODE_CLASS_MAPPINGS = {"TestMore": TestMore}
