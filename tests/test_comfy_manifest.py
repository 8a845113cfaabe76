"""What is read from a prompt before it runs: `comfy_nodes.exchange.plans`, without a ComfyUI."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
A, B = "127.0.0.1:8282", "127.0.0.1:9000"
LAZY = {("Switch", "on_true"), ("Switch", "on_false")}
RETURNS = {"VAEDecode": ["image"], "Encode": ["latent"], "ZBusSend": ["any", "number"]}


class Classes:
    def is_lazy(self, class_type, name):
        return (class_type, name) in LAZY

    def expands(self, class_type):
        return class_type in ("LoopEnd", "StartLoop")

    def loop_boundary(self, class_type):
        return {"StartLoop": "start", "EndLoop": "end"}.get(class_type, "")

    def kind(self, class_type, slot):
        return dict(enumerate(RETURNS.get(class_type, []))).get(slot, "any")


@pytest.fixture(scope="module")
def modules():
    """The pure modules, in a package whose own __init__ (which needs ComfyUI) is not run."""
    name = "zbus_comfy_nodes_under_test"
    package = types.ModuleType(name)
    package.__path__ = [str(FOLDER)]
    sys.modules[name] = package
    import importlib

    yield [importlib.import_module(f"{name}.exchange.{module}") for module in ("plans", "meeting")]
    for loaded in [n for n in sys.modules if n.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture
def planned(modules):
    """``planned(prompt, outputs)`` -> {"kind address channel": its manifest}."""

    def planned(prompt, *outputs):
        found = modules[0].plan_meetings(prompt, outputs or ["out"], Classes())
        return {" ".join(m): p.manifest for m, p in found.items()}

    return planned


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def send(order=None, addr=A, mode="Client", **more):
    inputs = {"addr": addr, "mode": mode, "string": "x", **more}
    return node("Send String", **inputs, **({} if order is None else {"order": order}))


def receive(order=None, addr=A, mode="Client"):
    inputs = {"addr": addr, "mode": mode}
    return node("Receive Images", **inputs, **({} if order is None else {"order": order}))


def own(direction, order=None, peer=A, channel="main", **more):
    inputs = {"peer": peer, "channel": channel, **more}
    return node(direction, **inputs, **({} if order is None else {"order": order}))


def test_jumpers_local_example(planned):
    prompt = {
        "11": node("PrimitiveInt", value=0),
        "9": send(["11", 0]),
        "7": send(["9", 0]),
        "8": receive(["7", 0]),
        "10": node("PreviewAny", source=["8", 1]),
        "12": node("PreviewImage", images=["8", 0]),
    }
    assert planned(prompt, "10", "12") == {
        f"dial {A} jumper": (
            ("send", "text", None, True, "Send String #9"),
            ("send", "text", None, True, "Send String #7"),
            ("receive", "image", None, True, "Receive Images #8"),
        )
    }


def test_where_a_chain_starts_does_not_matter_to_jumper(planned):
    def prompt(start):
        return {"s": node("PrimitiveInt", value=start), "1": send(["s", 0]), "2": send(["1", 0])}

    assert planned(prompt(0), "2") == planned(prompt(41), "2")


def test_the_sequence_is_of_links_and_not_of_ids(planned):
    prompt = {"1": send(["3", 0]), "2": send(), "3": send(["2", 0])}
    (manifest,) = planned(prompt, "1").values()
    assert [op[4] for op in manifest] == ["Send String #2", "Send String #3", "Send String #1"]


def test_data_links_make_a_sequence_as_well(planned):
    prompt = {"1": receive(), "2": node("Caption", image=["1", 0]), "3": send(string=["2", 0])}
    (manifest,) = planned(prompt, "3").values()
    assert [(*op[:2], op[3]) for op in manifest] == [
        ("receive", "image", True),
        ("send", "text", True),
    ]


def test_only_what_will_run(planned):
    prompt = {
        "1": send(),
        "2": send(["1", 0]),  # nothing that is wanted follows it
        "out": node("PreviewAny", source=["1", 0]),
        "other": node("PreviewAny", source=["2", 0]),
    }
    assert [len(m) for m in planned(prompt, "out").values()] == [1]
    assert [len(m) for m in planned(prompt, "out", "other").values()] == [2]


def test_an_api_prompt_with_a_bypassed_send(planned):
    """The page hands the order through: the chain is shorter by one."""
    prompt = {"11": node("PrimitiveInt", value=0), "7": send(["11", 0]), "8": receive(["7", 0])}
    (manifest,) = planned(prompt, "8").values()
    assert [op[0] for op in manifest] == ["send", "receive"]


def test_a_chain_over_two_addresses(planned):
    prompt = {"0": send(), "1": send(["0", 0], addr=B, mode="Server"), "2": receive(["1", 0])}
    assert planned(prompt, "2") == {
        f"dial {A} jumper": (
            ("send", "text", None, True, "Send String #0"),
            ("receive", "image", None, True, "Receive Images #2"),
        ),
        f"listen {B} jumper": (("send", "text", None, True, "Send String #1"),),
    }


def test_two_spellings_of_one_address(planned):
    prompt = {"0": send(addr="localhost:8282"), "1": send(["0", 0], addr=" 127.0.0.1:8282 ")}
    assert [len(m) for m in planned(prompt, "1").values()] == [2]


def test_jumper_nodes_that_are_not_linked_are_not_certain(planned):
    prompt = {"1": send(), "2": send(["1", 0]), "3": send(["1", 0]), "4": send()}
    prompt["4"]["inputs"]["string"] = ["j", 0]
    prompt["j"] = node("Join", a=["2", 0], b=["3", 0])
    (manifest,) = planned(prompt, "4").values()
    assert [op[3] for op in manifest] == [True, False, False, False]


def test_behind_a_lazy_input_it_is_possible(planned):
    prompt = {
        "1": send(),
        "2": receive(["1", 0]),
        "switch": node("Switch", on_true=["2", 0], on_false="", always=["1", 0]),
        "out": node("PreviewAny", source=["switch", 0]),
    }
    (manifest,) = planned(prompt).values()
    assert [op[3] for op in manifest] == [True, False]


def test_what_a_loop_repeats_is_possible(planned):
    prompt = {
        "1": own("ZBusSend", value=["x", 0]),
        "end": node("LoopEnd", flow=["1", 0]),
        "2": own("ZBusSend", order=5, value=["end", 0]),
    }
    (manifest,) = planned(prompt, "2").values()
    assert [(op[2], op[3]) for op in manifest] == [(None, False), (5, True)]


def test_an_address_that_only_the_run_knows(planned):
    """It may be one of the others': their chain is not certain where it comes in."""
    prompt = {"1": send(), "2": send(["1", 0], addr=["x", 0]), "3": send(["2", 0])}
    prompt["x"] = node("StringConcatenate", string_a="127.0.0.1", string_b=":1")
    (manifest,) = planned(prompt, "3").values()
    assert [op[3] for op in manifest] == [True, False, True]


def test_an_address_of_a_primitive(planned):
    prompt = {"p": node("PrimitiveString", value=B), "1": send(addr=["p", 0])}
    assert list(planned(prompt, "1")) == [f"dial {B} jumper"]


@pytest.mark.parametrize("addr", ["127.0.0.1", "", "host:port", 7, None, ["gone", 0], ["x"]])
def test_an_address_that_cannot_be_used_is_the_nodes_own_matter(planned, addr):
    assert planned({"1": send(addr=addr)}, "1") == {}


def test_orders_of_our_own_nodes(planned):
    prompt = {
        "s": node("PrimitiveInt", value=3),
        "1": own("ZBusSend", ["s", 0], value=["v", 0]),
        "2": own("ZBusReceive", ["1", 1], expect="latent"),
        "3": own("ZBusSend", ["2", 1], value=["2", 0]),
        "4": own("ZBusSend", 9, value=["d", 0]),
        "5": own("ZBusSend", ["m", 0], value=["l", 0]),
        "6": own("ZBusSend", value="x"),
        "v": node("Unknown"),
        "d": node("VAEDecode"),
        "l": node("Encode"),
        "m": node("Math", a=["1", 1]),
    }
    (manifest,) = planned(prompt, "1", "2", "3", "4", "5", "6").values()
    assert sorted(op[:4] for op in manifest if op[2] is not None) == [
        ("receive", "latent", 4, True),
        ("send", "any", 0, True),
        ("send", "any", 3, True),
        ("send", "any", 5, True),
        ("send", "image", 9, True),
    ]
    assert [op[:2] for op in manifest if op[2] is None] == [("send", "latent")]


def test_our_own_places(planned):
    prompt = {
        "1": own("ZBusReceive", peer="", expect="any"),
        "2": own("ZBusReceive", peer=f"listen:{A}", expect="any", channel="back"),
        "3": own("ZBusReceive", expect=["x", 0]),
        "4": own("ZBusReceive", channel="jumper"),  # not to be had
    }
    found = planned(prompt, "1", "2", "3", "4")
    assert set(found) == {"any  main", f"listen {A} back", f"dial {A} main"}


def test_titles_and_subgraphs(planned):
    prompt = {"57:8": send(), "57:9:1": receive(["57:8", 0])}
    prompt["57:8"]["_meta"] = {"title": " My words "}
    prompt["57:9:1"]["_meta"] = {"title": ""}
    (manifest,) = planned(prompt, "57:9:1").values()
    assert [op[4] for op in manifest] == ["My words #57:8", "Receive Images #57:9:1"]


def test_a_manifest_too_long_to_travel_is_not_told(planned, modules):
    prompt = {"0": send()}
    prompt |= {str(i): send([str(i - 1), 0]) for i in range(1, 300)}
    assert planned(prompt, "299") == {f"dial {A} jumper": None}
    (plan,) = modules[0].plan_meetings(prompt, ["299"], Classes()).values()
    assert len(plan.nodes) == 300


def test_broken_prompts_do_no_harm(planned):
    prompt = {
        "1": {"class_type": "Send String"},
        "2": {"class_type": "ZBusSend", "inputs": {"peer": A, "channel": "c", "order": ["2", 1]}},
        "3": {"inputs": {"a": ["3", 0], "b": ["1", 0], "c": ["2", "x"], "d": ["2", 0]}},
    }
    found = planned(prompt, "3", "gone")
    assert [op[2] for op in found[f"dial {A} c"]] == [None]


def test_the_manifest_travels(planned):
    from zbus.protocol.messages import Announce, decode, encode

    title = "\u540d" * 500
    prompt = {str(i): own("ZBusSend", i, value="x") for i in range(150)}
    for made in prompt.values():
        made["_meta"] = {"title": title}
    (manifest,) = planned(prompt, *prompt).values()
    message = Announce("run", "main", "14:02", ("main",), manifest)
    assert decode(encode(message, 1), False) == (1, message)
