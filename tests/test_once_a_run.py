"""What a run's nodes do once: `comfy_nodes.exchange.once`, and `late_readers` in `prompt`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from zbus.errors import TransferRefused

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
PACKAGE = "zbus_once_under_test"
MIB = 1 << 20
BIG = 100 * MIB


@pytest.fixture(scope="module")
def load():
    """``load("exchange.once")``: a module of comfy_nodes, whose own __init__ is not run."""
    sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    sys.modules[PACKAGE].__path__ = [str(FOLDER)]
    yield lambda module: importlib.import_module(f"{PACKAGE}.{module}")
    for loaded in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[loaded]


@pytest.fixture
def once(load):
    return load("exchange.once").Once(lambda: 10 * BIG)


def test_one_that_cannot_be_given_back_holds_up_no_other(once):
    given = []

    def broken():
        raise KeyboardInterrupt

    once.keep(("1", None), "a", BIG, give_back=broken)
    once.keep(("2", None), "b", BIG, give_back=lambda: given.append("2"))
    once.keep(("3", None), "c", give_back=lambda: given.append("3"))
    once.let_go(lambda node: False)
    assert given == ["2"]
    once.keep(("1", None), "a", give_back=broken)
    once.end()
    assert given == ["2", "3"] and once.held == 0


# --- what is kept


def test_what_came_of_a_node_comes_again(once):
    assert once.find(("1", 0)) is None
    once.keep(("1", 0), "text")
    once.keep(("2", 0), None)  # a send has no value, and is done even so
    assert once.find(("1", 0)).value == "text"
    assert once.find(("2", 0)) is not None and once.find(("2", 0)).value is None
    assert once.find(("1", 1)) is None, "another item of a list"


def test_a_large_value_is_kept_where_somebody_may_ask_for_it(once):
    once.keep(("1", 0), "large", BIG, is_wanted=lambda: True)
    assert once.find(("1", 0)).value == "large" and once.held == BIG and once.is_holding


def test_one_that_nobody_can_ask_for_is_not(once):
    once.keep(("1", 0), "large", BIG, is_wanted=lambda: False)
    assert once.held == 0 and not once.is_holding
    with pytest.raises(TransferRefused, match="of 100.0 MiB again, which could not be kept"):
        once.find(("1", 0))


def test_a_small_one_is_kept_to_the_end(once):
    once.keep(("1", 0), "small", MIB, is_wanted=lambda: False)
    once.let_go(lambda node: False)
    assert once.find(("1", 0)).value == "small"


def test_larger_ones_have_a_share_of_what_is_free(load):
    once = load("exchange.once").Once(lambda: BIG)
    for number in range(8):
        once.keep((str(number), 0), number, BIG)
    assert once.held == 4 * BIG, "4 of 5, and 1 is free"
    with pytest.raises(TransferRefused, match="Free memory on this side"):
        once.find(("4", 0))


def test_they_are_given_back_once_nobody_can_ask_any_more(once):
    gone = []
    once.keep(("1", 0), "a", BIG, give_back=lambda: gone.append("a"))
    once.keep(("2", 0), "jobs", None, give_back=lambda: gone.append("jobs"))
    once.keep(("3", 0), "b", BIG, give_back=lambda: gone.append("b"))
    once.let_go(lambda node: node == "3")
    assert gone == ["a", "jobs"] and once.held == BIG and once.is_holding
    once.let_go(lambda node: node == "3")
    once.end()
    once.end()
    assert gone == ["a", "jobs", "b"], "each once"


# --- who may ask late


class Classes:
    """`Switch` has lazy inputs, `Raw` gets a link itself, `Loop` sees all."""

    def asks_late(self, class_type, name):
        return (class_type, name) in {("Switch", "yes"), ("Switch", "no"), ("Raw", "value")}

    def sees_graph(self, class_type):
        return class_type == "Loop"


def node(class_type, **links):
    inputs = {name: [to, 0] if isinstance(to, str) else to for name, to in links.items()}
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def may_come(load):
    """``may_come(node, prompt, outputs, finished, added)``."""
    late_readers = load("prompt.late_readers")

    def may_come(at, prompt, outputs, finished=(), added=None):
        execution = late_readers.Execution(prompt, outputs.split(), added or {}, set(finished))
        return late_readers.may_come(at, execution, Classes())

    return may_come


RECEIVE = {"r": node("Receive"), "a": node("Scale", image="r"), "b": node("Blur", image="r")}
PLAIN = {**RECEIVE, "save": node("Save", a="a", b="b"), "show": node("Show", image="r")}


def test_those_that_wait_for_it_have_it_already(may_come):
    assert not may_come("r", PLAIN, "save show")


LATE = {**RECEIVE, "show": node("Show", image="r"), "s": node("Switch", when="show", no="a")}
LATE["save"] = node("Save", image="s")


def test_a_lazy_input_may_ask_late(may_come):
    assert may_come("r", LATE, "save show"), "by way of what comes between"
    assert may_come("a", LATE, "save show")
    assert not may_come("show", LATE, "save show"), "its input is not the lazy one"
    assert may_come("r", LATE, "save show", ["r", "a", "show"])
    assert not may_come("r", LATE, "save show", ["r", "a", "show", "s"]), "it has its answer"


def test_only_of_what_is_wanted(may_come):
    assert not may_come("r", LATE, "show")
    assert not may_come("r", LATE, "save show", ["save"]), "nothing needs the switch any more"


def test_a_done_node_that_is_computed_again_brings_its_own_lazy_inputs_along(may_come):
    prompt = {**LATE, "t": node("Switch", yes="save")}
    prompt["end"] = node("Save", image="t")
    assert may_come("r", prompt, "end", ["r", "show", "a", "s", "save"])


def test_a_link_that_is_given_as_such(may_come):
    assert may_come("r", {**RECEIVE, "raw": node("Raw", value="a")}, "raw")


def test_a_node_that_sees_the_graph_may_ask_for_anything(may_come):
    prompt = {**PLAIN, "loop": node("Loop", count=3)}
    assert may_come("r", prompt, "save show loop")
    assert not may_come("r", prompt, "save show loop", ["loop"])


def test_what_was_added_may_ask_as_long_as_it_is_not_done(may_come):
    prompt = {**PLAIN, "loop": node("Loop", count=3), "loop.0.x": node("Scale", image="r")}
    added = {"loop.0.x": "loop"}
    assert may_come("r", prompt, "save loop", ["loop"], added)
    assert not may_come("r", prompt, "save loop", ["loop", "loop.0.x"], added)


def test_what_an_added_node_gives_is_what_its_maker_gives(may_come):
    prompt = {"m": node("Maker"), "m.0.r": node("Receive"), "show": node("Show", image="m")}
    prompt |= {"s": node("Switch", when="show", no="m"), "save": node("Save", image="s")}
    assert may_come("m.0.r", prompt, "save", ["m.0.r", "m"], {"m.0.r": "m"})


def test_a_circle_of_links_has_an_end(may_come):
    prompt = {"r": node("Receive", x="b"), "a": node("Scale", x="r"), "b": node("Blur", x="a")}
    assert not may_come("r", prompt, "b")
