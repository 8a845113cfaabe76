"""Run on Peers: part of a workflow on other ComfyUIs; and the small nodes that go with it.

`ZBusRun` does not let its lazy `value` be computed. It cuts what feeds it out of the prompt,
gives that to the peers, and expands into the nodes of `expanding`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from zbus import codecs
from zbus.errors import InputError, UnknownPeer

from .. import host, node_ids
from ..exchange.queue_watcher import QUEUE_WATCHER
from ..exchange.runs import RUNS
from ..exchange.send_receive import CATEGORY, QUALITY
from ..exchange.waiting import WHO, interruptible
from ..page import peers
from ..prompt import own_paths, passing
from ..prompt.cutting import Part, cut
from ..prompt.elsewhere import ALSO, NO, ONLY, elsewhere
from ..prompt.graph import Link, link, title
from ..prompt.single import only
from ..prompt.wiring import taps_shown_by
from .expanding import INTERNAL, expand
from .planned import ON_FAILURE, JobPlan
from .submitting import SubmittedJobs

MAX_SEED = 0xFFFFFFFFFFFFFFFF


class RunOnPeers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        schema = cls.schema(node_ids.RUN, CATEGORY, [])
        return _found_by(schema, "remote", "second GPU", "multi GPU", "distributed", "parallel")

    @classmethod
    def schema(cls, node_id: str, category: str, outputs: list[Any], **more: Any) -> Any:
        """Its schema under that id; `outputs` come after its own."""
        peer = (
            '"any free": the one with the shortest queue; while it still waits there, the job '
            'moves to another that becomes free. "all": every one. Or the name of one on this '
            'computer or a paired one ("desk-8189"), several ("desk-8189,gpu-pc"), or the URL of '
            "its page."
        )
        here = (
            f'Whether this computer takes part. "{NO}" keeps its GPU free. "{ALSO}": it runs the '
            f'part, too, and comes first. "{ONLY}": nobody else does, as if this node were away.'
        )
        failure = (
            'When one fails. "stop": that is this node\'s error. "try another": a free peer that '
            'has not been tried. "return the rest": do without it, and say so in the report.'
        )
        quality = 'How results travel. "exact": bit for bit. "8-bit": images as 8 bits a channel.'
        return io.Schema(
            node_id=node_id,
            display_name="Run on Peers",
            category=category,
            description="Runs everything before it on other ComfyUIs, and returns what comes out. "
            "Compute Here marks what is to be computed here and sent along.",
            inputs=[
                io.AnyType.Input("value", lazy=True, tooltip="The end of the part to run there."),
                io.String.Input("peer", default=peers.ANY, tooltip=peer),
                io.Combo.Input("here", options=[NO, ALSO, ONLY], default=NO, tooltip=here),
                io.Combo.Input(
                    "on_failure", options=ON_FAILURE, default=ON_FAILURE[0], tooltip=failure
                ),
                io.Combo.Input("quality", options=QUALITY, default="exact", tooltip=quality),
            ],
            outputs=[
                io.AnyType.Output(
                    "result",
                    display_name="value",
                    is_output_list=True,
                    tooltip="What came out: of several machines one batch, or a list.",
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Who did what, in which time."
                ),
                *outputs,
            ],
            is_input_list=True,
            not_idempotent=True,
            enable_expand=True,
            **more,
        )

    @classmethod
    def check_lazy_status(cls, **_: Any) -> list[str]:
        return []  # it is computed elsewhere

    @classmethod
    async def execute(
        cls,
        peer: Any,
        here: Any,
        on_failure: Any,
        quality: Any,
        value: Any = None,
        **_: Any,  # what holds it back: see `prompt.loops`
    ) -> Any:
        QUEUE_WATCHER.start()
        node, graph = host.executing(), host.graph()
        wired = link(node.node.get("inputs", {}).get("value"))
        if wired is None:
            raise InputError("nothing is wired to value", remedy="Wire the part to run there to it")
        how = only("quality", quality)
        codecs.check(how)
        others, is_named = elsewhere(str(only("peer", peer)))
        share, failure = only("here", here), only("on_failure", on_failure)
        takes_part = is_named or share != NO
        local = wired if takes_part else None
        run = RUNS.of(node.prompt_id)
        before = run.once.find(node.key)
        if before is not None:  # ComfyUI computes this node again, for a reader that comes late
            return _expanded(before.value, node.node_id, local)
        classes = host.Classes()
        if share != ONLY and (others or not is_named):
            attach = own_paths.attached(graph, classes)
            piece = cut(graph, wired, attach=attach, is_core=classes.is_core)
            chosen = await _chosen(",".join(others))
            if any(peers.is_elsewhere(choice.remote) for choice in chosen.choices):
                told = [*chosen.left_out, *own_paths.left(piece.prompt, classes)]
                chosen = chosen._replace(left_out=told)
        else:  # as if this node were not there
            piece, chosen = Part({}, (), {}, {}, False), peers.Chosen([])
        plan = JobPlan(
            piece,
            title(node.node_id, node.node),
            chosen.choices,
            first=int(takes_part),
            on_failure=failure,
            quality=how,
            group=node.node_id,
            left_out=chosen.left_out,
            notes=[*passing.told(graph, piece.prompt, classes.is_output)],
            brought=piece.brought,
            shown_by=_shown_by(piece, taps_shown_by(graph, node.node_id, classes.is_output)),
        )
        jobs = SubmittedJobs(plan, run, node.node_id)
        await jobs.begin()
        run.once.keep(node.key, jobs, None, give_back=jobs.forget)
        return _expanded(jobs, node.node_id, local)


def _expanded(jobs: SubmittedJobs, node_id: str, local: Link | None) -> Any:
    made = expand(jobs, node_id, local, collect=True)
    assert made.collected is not None
    collect = made.collected[0]
    return io.NodeOutput([collect, 0], [collect, 1], expand=made.nodes)


def _shown_by(piece: Part, taps: dict[str, list[str]]) -> dict[str, list[str]]:
    """For each result the nodes that show it, as the page knows them."""
    found: dict[str, list[str]] = {}
    for name, nodes in taps.items():
        if name in piece.brought:
            found.setdefault(piece.brought[name], []).extend(map(host.shown_as, nodes))
    return found


def _found_by(schema: Any, *words: str) -> Any:
    """The schema of a node that the page's search finds by these words, too. Set, and not given to
    it: an older ComfyUI's has no such field, and passes over what it does not know."""
    schema.search_aliases = [*words]
    return schema


async def _chosen(text: str) -> peers.Chosen:
    chosen = await interruptible(peers.chosen(text), WHO)
    return chosen._replace(choices=[_with_remedy(choice) for choice in chosen.choices])


def _with_remedy(choice: peers.Choice) -> peers.Choice:
    """Here a part may as well run on this computer."""
    error = choice.problem
    if not isinstance(error, UnknownPeer):
        return choice
    remedy = f'{error.remedy}; or set here to "{ONLY}"'
    return replace(choice, problem=UnknownPeer(error.what, peer=error.peer, remedy=remedy))


def _vary_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip="The first"
        ),
        io.Int.Input(
            "step", default=1, min=0, max=MAX_SEED, tooltip="How far the next machine's is from it."
        ),
    ]


def _vary_outputs() -> list[Any]:
    return [
        io.Int.Output("varied", display_name="seed", tooltip="seed + index x step"),
        io.Int.Output(
            "index",
            display_name="index",
            tooltip="0 on the first machine that takes part, 1 on the next...",
        ),
    ]


def _varied(seed: int, step: int, position: int) -> Any:
    return io.NodeOutput((seed + position * step) % (MAX_SEED + 1), position)


class Vary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        schema = io.Schema(
            node_id=node_ids.VARY,
            display_name="Different on Each Peer",
            category=CATEGORY,
            description="A seed that differs on each machine that takes part in Run on Peers. "
            "This machine, when it takes part, is the first.",
            inputs=_vary_inputs(),
            outputs=_vary_outputs(),
        )
        return _found_by(schema, "seed", "seed for each GPU", "distributed seed", "random", "noise")

    @classmethod
    def execute(cls, seed: int, step: int) -> Any:
        return _varied(seed, step, 0)


class VaryAt(io.ComfyNode):
    """`Vary` as it is on the machine at that position."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.VARY_AT,
            display_name="(zbus) different at a position",
            category=INTERNAL,
            inputs=[*_vary_inputs(), io.Int.Input("position", default=0, min=0)],
            outputs=_vary_outputs(),
            is_deprecated=True,
        )

    @classmethod
    def execute(cls, seed: int, step: int, position: int) -> Any:
        return _varied(seed, step, position)


class ComputeHere(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        schema = io.Schema(
            node_id=node_ids.COMPUTE_HERE,
            display_name="Compute Here",
            category=CATEGORY,
            description="Before Run on Peers: what comes before this node is computed on this "
            "machine, and its value sent along.",
            inputs=[io.AnyType.Input("value", tooltip="What to compute here.")],
            outputs=[
                io.AnyType.Output("same", display_name="value", is_output_list=True),
            ],
            is_input_list=True,
        )
        return _found_by(schema, "local", "this computer", "not on the peer")

    @classmethod
    def execute(cls, value: Any) -> Any:
        return io.NodeOutput(value)


NODES: dict[str, type[io.ComfyNode]] = {
    node_ids.RUN: RunOnPeers,
    node_ids.VARY: Vary,
    node_ids.COMPUTE_HERE: ComputeHere,
    node_ids.VARY_AT: VaryAt,
}
