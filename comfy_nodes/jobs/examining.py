"""Whether a job of another peer can run on this ComfyUI, and its prompt as it would be queued."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from zbus.job import Taken
from zbus.protocol.outcomes import runs_no_prompts
from zbus.reasons import Reason
from zbus.values import payload

from .. import host
from ..prompt import preflight
from ..prompt.cutting import value_names, with_digests, with_job
from ..prompt.graph import Graph, ancestors, clean, title
from ..prompt.separators import separators


class Examined(NamedTuple):
    """What was found.

    Attributes:
        reasons: All that is wrong with it; none: it can run.
        prompt: As it is to be queued.
        outputs: The ids of those to execute.
    """

    reasons: list[Reason]
    prompt: Graph
    outputs: tuple[str, ...]


async def examine(job: Taken) -> Examined:
    """Look at a job before it is queued. Raises whatever nodes' own code does."""
    if not host.runs_prompts():
        return Examined([runs_no_prompts()], {}, ())
    prompt = await _prompt(job)
    wanted, classes = job.request.outputs, host.Classes()
    found = [
        Reason("output", i, text=f"node #{i}, which was asked for, is not in the prompt")
        for i in wanted
        if i not in prompt
    ]
    found += preflight.look(prompt, classes, job.request.types)
    outputs: tuple[str, ...] = ()
    if not any(reason.kind in ("class", "output") for reason in found):
        said = await host.validate(job.id, prompt, wanted)
        outputs = said.outputs
        found += preflight.from_host(
            prompt, said.error, said.node_errors, classes, host.without_paths
        )
        dropped = [i for i in wanted if i not in outputs]
        if not found:
            text = "{} was asked for, and is not an output node"
            found += [Reason("output", i, text=text.format(title(i, prompt[i]))) for i in dropped]
    return Examined(preflight.unique(found), prompt, outputs)


async def _prompt(job: Taken) -> Graph:
    """What of it is to be executed, in this ComfyUI's words."""
    given, wanted = job.request.prompt, job.request.outputs
    needed = ancestors(given, wanted) if wanted else given
    prompt = host.replaced({i: clean(node) for i, node in given.items() if i in needed})
    prompt = with_job(separators(prompt, host.Classes()), job.id)
    return await _with_digests(prompt, job.request.values)


async def _with_digests(
    prompt: dict[str, dict[str, Any]], values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The prompt with the digests of what has come with it: by them ComfyUI runs again only what
    has changed. Those that it brings itself count for nothing: they are another's word."""
    names = value_names(prompt) & values.keys()
    if not names:
        return with_digests(prompt, {})

    def look() -> dict[str, str]:
        return {name: digest(values[name]) for name in names}

    return with_digests(prompt, await asyncio.to_thread(look))


def digest(value: Any) -> str:
    """Names a value by its content; nobody can make another one of the same digest."""
    packed = payload.pack(payload.flatten(value), "never")
    hasher = hashlib.blake2b(len(packed.spec).to_bytes(8, "big"), digest_size=20)
    hasher.update(packed.spec)
    for buffer in packed.buffers:
        hasher.update(buffer.view)
    return hasher.hexdigest()
