"""ComfyUI_NetDist's nodes for pictures, latents and workflows in files and behind URLs, drop-in."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from zbus.errors import InputError

from .. import host, node_ids
from ..exchange.waiting import interruptible
from ..host.files import load_image
from ..prompt.graph import whole
from . import decoding, fetching, urls
from .fileaccess import fetched, fingerprint, read, write

IMAGE, LATENT, ADVANCED = "remote/image", "remote/latent", "remote/advanced"
FORMATS = ["HTML_image", "Raw_data"]
LATENT_FILES = (".latent", ".safetensors", ".npy", ".npz")
JSON = io.Custom("JSON")
EXPORT = 'Export it in ComfyUI with "Export (API)", and use that file'

# --- over the network


class _UrlNode(io.ComfyNode):
    @classmethod
    def validate_inputs(cls, url: Any = None) -> bool | str:
        if url is None:
            return True  # comes over a link
        try:
            urls.web_address(url)
        except InputError as error:
            return str(error)
        return True


def _url(tooltip: str) -> Any:
    return io.String.Input("url", tooltip=f"{tooltip} http or https.")


class LoadImageUrl(_UrlNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.LOAD_IMAGE_URL,
            display_name="Load Image (URL)",
            category=IMAGE,
            description="Loads a picture from the web, as Load Image loads a file.",
            inputs=[_url("Where the picture is.")],
            outputs=[
                io.Image.Output("image", display_name="IMAGE"),
                io.Mask.Output(
                    "mask", display_name="MASK", tooltip="1 - alpha; zeros 64x64 without."
                ),
            ],
        )

    @classmethod
    async def execute(cls, url: str) -> Any:
        return io.NodeOutput(*await fetched(url, "loading the picture", _picture))


def _picture(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """What this ComfyUI's own Load Image makes of it; ours is for what that cannot take."""
    ending = decoding.picture_format(data).lower()
    return load_image(data, ending) or decoding.picture(data)


class SaveImageUrl(_UrlNode):
    @classmethod
    def define_schema(cls) -> Any:
        prefix = "Of the names that the pictures are given: prefix_00001.png and so on."
        data_format = "HTML_image: base64 with data:image/png;base64, before it. Raw_data: without."
        return io.Schema(
            node_id=node_ids.SAVE_IMAGE_URL,
            display_name="Save Image (URL)",
            category=IMAGE,
            description=(
                "Posts the pictures as one JSON object: file name -> base64 of a PNG, with the "
                "workflow inside. Nothing is saved here."
            ),
            inputs=[
                io.Image.Input("images"),
                _url("Where to post them."),
                io.String.Input("filename_prefix", default="ComfyUI", tooltip=prefix),
                io.Combo.Input("data_format", options=FORMATS, tooltip=data_format),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    async def execute(cls, images: Any, url: str, filename_prefix: str, data_format: str) -> Any:
        name = _base_name(filename_prefix)
        start = "data:image/png;base64," if data_format == "HTML_image" else ""
        texts = _metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        files = {}
        for number, image in enumerate(images, 1):
            host.check_interrupt()
            data = b64encode(_png(image, texts)).decode()
            files[f"{name}_{number:05}.png"] = start + data
            await asyncio.sleep(0)  # other nodes wait meanwhile
        await interruptible(fetching.post_json(url, files, what="posting the pictures"))
        return io.NodeOutput()


def _base_name(prefix: str) -> str:
    name = prefix.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name if name.strip(". ") else "ComfyUI"


def _metadata(prompt: Any, extra: Any) -> dict[str, str]:
    if not host.metadata_wanted():
        return {}
    texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
    return texts | {str(key): json.dumps(value) for key, value in (extra or {}).items()}


def _png(image: torch.Tensor, texts: Mapping[str, str]) -> bytes:
    try:
        return decoding.png(image, texts)
    except decoding.Undecodable as error:
        raise InputError(str(error)) from error


class CombineImageBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.COMBINE_IMAGES,
            display_name="Combine images",
            category=IMAGE,
            description="One batch of two, which must have pictures of one size.",
            inputs=[io.Image.Input("images_a"), io.Image.Input("images_b")],
            outputs=[io.Image.Output("images", display_name="images")],
        )

    @classmethod
    def execute(cls, images_a: torch.Tensor, images_b: torch.Tensor) -> Any:
        if images_a.shape[1:] != images_b.shape[1:]:
            raise InputError(
                f"images_a has pictures of {_size(images_a)}, images_b of {_size(images_b)}: one "
                "batch holds one size only",
                remedy="Bring them to one size with ImageScale, or keep them apart in a list",
            )
        return io.NodeOutput(torch.cat((images_a, images_b.to(images_a.device)), 0))


def _size(images: torch.Tensor) -> str:
    height, width, channels = images.shape[1:]
    return f"{width} x {height} in {channels} channel{'s' * (channels != 1)}"


# --- files of the input and output folders


class _FileNode(io.ComfyNode):
    """Has one input, the name of a file; each kind checks what `_check` says of it."""

    @classmethod
    def _validated(cls, name: Any) -> bool | str:
        if name is None:
            return True  # comes over a link
        try:
            cls._check(host.input_file(name))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def _check(cls, path: Path) -> None:
        """Raises InputError where a look into the file tells that it cannot be used."""


def _samples() -> Any:
    return io.Latent.Output("loaded", display_name="LATENT")


class LoadLatentNumpy(_FileNode):
    @classmethod
    def define_schema(cls) -> Any:
        tooltip = "A file of the input folder: .latent, .safetensors, .npy or .npz."
        files = host.input_files(*LATENT_FILES)
        return io.Schema(
            node_id=node_ids.LOAD_LATENT_NUMPY,
            display_name="Load Latent (Numpy)",
            category=LATENT,
            description="Loads a latent that ComfyUI, NumPy or sd-scripts has saved.",
            inputs=[io.Combo.Input("latent", options=files, tooltip=tooltip)],
            outputs=[_samples()],
        )

    @classmethod
    def validate_inputs(cls, latent: Any = None) -> bool | str:
        return cls._validated(latent)

    @classmethod
    def fingerprint_inputs(cls, latent: Any = None) -> Any:
        return fingerprint(latent)

    @classmethod
    def execute(cls, latent: str) -> Any:
        try:
            samples = decoding.latent(read(host.input_file(latent)))
        except decoding.Undecodable as error:
            raise InputError(
                f'"{latent}" cannot be used: {error}', remedy="Choose another file"
            ) from error
        return io.NodeOutput({"samples": samples})


class LoadLatentUrl(_UrlNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.LOAD_LATENT_URL,
            display_name="Load Latent (URL)",
            category=LATENT,
            description="Loads a latent file from the web: .latent, .safetensors, .npy or .npz.",
            inputs=[_url("Where the file is.")],
            outputs=[_samples()],
        )

    @classmethod
    async def execute(cls, url: str) -> Any:
        samples = await fetched(url, "loading the latent", decoding.latent)
        return io.NodeOutput({"samples": samples})


class SaveLatentNumpy(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        prefix = "The file's name, maybe with folders, in the output folder."
        return io.Schema(
            node_id=node_ids.SAVE_LATENT_NUMPY,
            display_name="Save Latent (Numpy)",
            category=LATENT,
            description="Saves a latent's samples as a .npy file into the output folder.",
            inputs=[
                io.Latent.Input("samples"),
                io.String.Input("filename_prefix", default="latents/ComfyUI", tooltip=prefix),
            ],
            outputs=[
                io.String.Output(
                    "filename", display_name="filename", tooltip="The file's name, without folder."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: Any, filename_prefix: str) -> Any:
        tensor = samples["samples"]
        if not isinstance(tensor, torch.Tensor):  # ComfyUI's NestedTensor
            raise InputError(
                "this latent has several parts (video with audio, say), and a .npy file holds one",
                remedy="Separate its parts, and save each",
            )
        return io.NodeOutput(write(filename_prefix, "npy", decoding.npy_file(tensor)))


# --- workflows


def _workflow_output() -> Any:
    return JSON.Output("workflow_json", display_name="Workflow JSON")


def _workflow(data: bytes, name: str) -> dict[str, Any]:
    """The API-format workflow in a file.

    Raises:
        InputError: It is something else; the text says what.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f'"{name}" is not JSON', remedy=EXPORT) from error
    if isinstance(found, dict):
        if isinstance(found.get("nodes"), list) and isinstance(found.get("links"), list):
            raise InputError(f'"{name}" is a workflow in the page\'s format', remedy=EXPORT)
        if any(isinstance(node, dict) and "class_type" in node for node in found.values()):
            return found
    raise InputError(f'"{name}" is JSON, but not a workflow in API format', remedy=EXPORT)


class SaveDiskWorkflowJSON(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        prefix = "The file's name, maybe with folders, in the output folder."
        return io.Schema(
            node_id=node_ids.SAVE_WORKFLOW,
            display_name="Save workflow (disk)",
            category=ADVANCED,
            description="Saves a workflow in API format into the output folder.",
            inputs=[
                JSON.Input("workflow"),
                io.String.Input("filename_prefix", default="workflow/ComfyUI", tooltip=prefix),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, workflow: Any, filename_prefix: str) -> Any:
        try:
            text = json.dumps(workflow, indent=2)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"workflow cannot be written as JSON: {error}",
                remedy="Wire a Load workflow node to it",
            ) from error
        write(filename_prefix, "json", text.encode())
        return io.NodeOutput()


class LoadDiskWorkflowJSON(_FileNode):
    @classmethod
    def define_schema(cls) -> Any:
        tooltip = "A file of the input folder, which ComfyUI's Export (API) has made."
        files = host.input_files(".json")
        return io.Schema(
            node_id=node_ids.LOAD_WORKFLOW,
            display_name="Load workflow (disk)",
            category=ADVANCED,
            description="Loads a workflow in API format.",
            inputs=[io.Combo.Input("workflow", options=files, tooltip=tooltip)],
            outputs=[_workflow_output()],
        )

    @classmethod
    def _check(cls, path: Path) -> None:
        _workflow(read(path), path.name)

    @classmethod
    def validate_inputs(cls, workflow: Any = None) -> bool | str:
        return cls._validated(workflow)

    @classmethod
    def fingerprint_inputs(cls, workflow: Any = None) -> Any:
        return fingerprint(workflow)

    @classmethod
    def execute(cls, workflow: str) -> Any:
        return io.NodeOutput(_workflow(read(host.input_file(workflow)), workflow))


class LoadCurrentWorkflowJSON(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.CURRENT_WORKFLOW,
            display_name="Load workflow (current)",
            category=ADVANCED,
            description="The workflow that is being executed, in API format.",
            inputs=[],
            outputs=[_workflow_output()],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls) -> Any:
        text = json.dumps(whole(host.current_prompt()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def execute(cls) -> Any:
        return io.NodeOutput(whole(cls.hidden.prompt))


NODES: dict[str, type[io.ComfyNode]] = {
    node_ids.LOAD_IMAGE_URL: LoadImageUrl,
    node_ids.SAVE_IMAGE_URL: SaveImageUrl,
    node_ids.COMBINE_IMAGES: CombineImageBatch,
    node_ids.LOAD_LATENT_NUMPY: LoadLatentNumpy,
    node_ids.LOAD_LATENT_URL: LoadLatentUrl,
    node_ids.SAVE_LATENT_NUMPY: SaveLatentNumpy,
    node_ids.SAVE_WORKFLOW: SaveDiskWorkflowJSON,
    node_ids.LOAD_WORKFLOW: LoadDiskWorkflowJSON,
    node_ids.CURRENT_WORKFLOW: LoadCurrentWorkflowJSON,
}
