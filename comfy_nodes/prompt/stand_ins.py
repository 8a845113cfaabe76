"""Pure: a stand-in for a node of a part that runs elsewhere, and the node that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zbus.errors import InputError

from .. import node_ids
from .graph import class_type_of, copied, inputs_of, link

_OWN = ("class_type", "inputs", "of")  # inputs of a stand-in itself


def stood_in(node: Mapping[str, Any], *, of: str = "") -> dict[str, Any]:
    """A stand-in for that node; `of` where the node of that id is there as well."""
    given: dict[str, Any] = copied(inputs_of(node))
    # A link whose input is called like one of the stand-in's own travels with the constants.
    links = {name: value for name, value in given.items() if link(value) and name not in _OWN}
    constants = {name: value for name, value in given.items() if name not in links}
    text = json.dumps(constants, sort_keys=True)
    inputs = {"class_type": class_type_of(node), "inputs": text, **links}
    if of:
        inputs["of"] = of
    return {**copied(node), "class_type": node_ids.THERE, "inputs": inputs}


def is_twin(node: Mapping[str, Any]) -> bool:
    """Whether it stands for a node that is there as well."""
    return class_type_of(node) == node_ids.THERE and bool(inputs_of(node).get("of"))


def original(node_id: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node that it stands for, if it is a stand-in; else the same.

    Raises:
        InputError: It is one that zbus has not made.
    """
    if class_type_of(node) != node_ids.THERE:
        return node
    given = dict(inputs_of(node))
    class_type, text, _ = (given.pop(name, None) for name in _OWN)
    try:
        constants = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        constants = None
    if not isinstance(class_type, str) or not isinstance(constants, dict):
        raise InputError(
            f"node #{node_id} (ZBusThere) does not say which node it stands for",
            remedy="It is made by zbus itself: remove it, and put the node there that you mean.",
        )
    return {**node, "class_type": class_type, "inputs": {**constants, **given}}
