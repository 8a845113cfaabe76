"""The nodes that zbus itself puts into prompts. Users do not see them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from zbus.errors import JobError, LocalProtocolError
from zbus.values.payload import flatten

from .. import host, node_ids
from ..exchange.once import SMALL
from ..exchange.runs import RUNS
from ..host.lists import unwrap, wrap
from ..prompt.single import only
from .in_prompts import JOBS

CATEGORY = "zbus/internal"
SLOTS = 32  # outputs of a stand-in: more than any node has


def _schema(node_id: str, inputs: list[Any], outputs: list[Any], what: str, **more: Any) -> Any:
    return io.Schema(
        node_id=node_id,
        category=CATEGORY,
        description=f"Made by zbus itself. {what}",
        inputs=inputs,
        outputs=outputs,
        is_deprecated=True,  # keeps it out of the search
        **more,
    )


class Value(io.ComfyNode):
    """A value that came with the job. It is cached by its digest, which `examining` has made: one
    that a peer claims could name another's value, or be another's later."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            node_ids.VALUE,
            [io.String.Input("name", default=""), io.String.Input("digest", default="")],
            [io.AnyType.Output("value", display_name="value", is_output_list=True)],
            "Gives a value that came with a job.",
        )

    @classmethod
    def execute(cls, name: str, digest: str) -> Any:
        here = host.executing()
        once = RUNS.of(here.prompt_id).once
        once.find(here.key)  # raises where the value has been let go
        value = JOBS.value(here.prompt_id, name)
        if flatten(value).nbytes > SMALL:
            once.keep(
                here.key,
                None,
                None,
                give_back=lambda: JOBS.let_go(here.prompt_id, here.node_id, name),
            )
        return io.NodeOutput(unwrap(value))


class Result(io.ComfyNode):
    """Hands a value to the peer that gave the job, and does not wait until it is there."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            node_ids.RESULT,
            [
                io.AnyType.Input("value"),
                io.String.Input("name", default=""),
                io.String.Input("job", default=""),
            ],
            [],
            "Hands a value to the peer that gave the job.",
            is_output_node=True,
            is_input_list=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, value: list[Any], name: Any, job: Any) -> Any:
        prompt_id = host.executing().prompt_id
        if only("job", job) != prompt_id:  # nobody hands results to another's job
            raise JobError(
                "this node belongs to another job",
                stage="handing over a result",
                remedy="Take it out of the workflow: Run on Peers makes its own",
            )
        declared = host.no_picture("value")
        JOBS.result(prompt_id, only("name", name), wrap(value), declared)
        return io.NodeOutput()


class There(io.ComfyNode):
    """Stands for a node that only the other ComfyUI can run; never executed."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            node_ids.THERE,
            [
                io.String.Input("class_type", default=""),
                io.String.Input("inputs", default="{}"),
                io.String.Input("of", default="", optional=True),
            ],
            [io.AnyType.Output(f"output_{slot}") for slot in range(SLOTS)],
            "Stands for a node that is not installed here, and that another peer runs.",
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, class_type: str, inputs: str, **_: Any) -> Any:
        raise LocalProtocolError(
            f"{class_type} is to run on another peer, and was reached here",
            remedy="Only Run on Peers may take what it gives",
        )


class Wanted(io.ComfyNode):
    """What a part is looked into for, before the lazy value of Run on Peers: never executed."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            node_ids.WANTED,
            [io.AnyType.Input("value")],
            [io.AnyType.Output("same")],
            "Says what another peer is to bring along with the value.",
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, **_: Any) -> Any:
        raise LocalProtocolError(
            "this node is to be read by Run on Peers, and was reached here",
            remedy="It is made by zbus itself: remove it",
        )


class Tap(io.ComfyNode):
    """Gives one of the values that Run on Peers has brought along, to a preview or a save."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            node_ids.TAP,
            [io.AnyType.Input("tapped"), io.String.Input("name", default="")],
            [io.AnyType.Output("value", display_name="value", is_output_list=True)],
            "Gives a value out of the part that another peer runs.",
            is_input_list=True,
        )

    @classmethod
    def execute(cls, tapped: list[Any], name: Any) -> Any:
        values = only("tapped", tapped).get(only("name", name))
        return io.NodeOutput(host.blocked() if values is None else values)


NODES: dict[str, type[io.ComfyNode]] = {
    node_ids.VALUE: Value,
    node_ids.RESULT: Result,
    node_ids.THERE: There,
    node_ids.WANTED: Wanted,
    node_ids.TAP: Tap,
}
