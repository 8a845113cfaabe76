"""ComfyUI_NetDist's nodes for files and URLs on a real ComfyUI."""

from __future__ import annotations

import http.server
import io
import json
import struct
import threading
import time
import zlib
from base64 import b64decode
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from chains import node
from children import slowness, until
from comfyui import PromptRefused
from hosts import made_here, make_or_skip
from PIL import Image
from testpack import values

FILE_LATENT = (["LATENT"], ["LATENT"])
FILE_JSON = (["JSON"], ["Workflow JSON"])
# id -> category, title, inputs, (types, names of outputs), is an output node
NODES = {
    "LoadImageUrl": (
        *("remote/image", "Load Image (URL)", ["url"]),
        *((["IMAGE", "MASK"], ["IMAGE", "MASK"]), False),
    ),
    "SaveImageUrl": (
        *("remote/image", "Save Image (URL)"),
        *(["images", "url", "filename_prefix", "data_format"], ([], []), True),
    ),
    "CombineImageBatch": (
        *("remote/image", "Combine images", ["images_a", "images_b"]),
        *((["IMAGE"], ["images"]), False),
    ),
    "LoadLatentNumpy": ("remote/latent", "Load Latent (Numpy)", ["latent"], FILE_LATENT, False),
    "LoadLatentUrl": ("remote/latent", "Load Latent (URL)", ["url"], FILE_LATENT, False),
    "SaveLatentNumpy": (
        *("remote/latent", "Save Latent (Numpy)", ["samples", "filename_prefix"]),
        *((["STRING"], ["filename"]), True),
    ),
    "SaveDiskWorkflowJSON": (
        *("remote/advanced", "Save workflow (disk)", ["workflow", "filename_prefix"]),
        *(([], []), True),
    ),
    "LoadDiskWorkflowJSON": (
        *("remote/advanced", "Load workflow (disk)", ["workflow"], FILE_JSON, False),
    ),
    "LoadCurrentWorkflowJSON": (
        *("remote/advanced", "Load workflow (current)", [], FILE_JSON, False),
    ),
}
DEFAULTS = {
    ("SaveImageUrl", "filename_prefix"): "ComfyUI",
    ("SaveLatentNumpy", "filename_prefix"): "latents/ComfyUI",
    ("SaveDiskWorkflowJSON", "filename_prefix"): "workflow/ComfyUI",
}
RGBA = np.arange(20 * 30 * 4, dtype=np.uint32).reshape(20, 30, 4).astype(np.uint8)


@contextmanager
def serve(files=(), *, status=200):
    """A server of `files` (path -> bytes) that keeps what is asked and posted; /hang says nothing.

    Gives: url, asked (paths), posted (bodies).
    """
    files, release = dict(files), threading.Event()
    state = SimpleNamespace(asked=[], posted=[], files=files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            if self.path == "/hang":
                release.wait(30)
            body = files.get(self.path)
            self._answer(404 if body is None else 200, body or b"no such file\nat all")

        def do_POST(self):
            state.posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(status, b"disk full")

        def _answer(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # clients that hang up
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            release.set()
            server.shutdown()


def png(array, **more):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", **more)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def digests(*sources):
    """A TestDigest for each link."""
    return {f"digest {i}": node("TestDigest", value=list(s)) for i, s in enumerate(sources)}


def good(comfyui, prompt):
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return entry


def error_of(comfyui, prompt):
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "error"
    return comfyui.errors(entry)


def latent_digest(tensor):
    return values.digest({"samples": tensor})


# --- what users see


@pytest.mark.parametrize("name", NODES)
def test_the_node_is_what_the_original_was(pair, name):
    category, title, inputs, (types, names), is_output = NODES[name]
    info = pair.a.object_info(name)[name]
    assert (info["category"], info["display_name"]) == (category, title)
    assert list(info["input"].get("required", {})) == inputs
    assert not info["input"].get("optional")
    assert (info["output"], info["output_name"]) == (types, names)
    assert info["output_node"] is is_output
    assert not info["deprecated"]
    for given in inputs:
        more = (info["input"]["required"][given] + [{}])[1]
        assert more.get("default") == DEFAULTS.get((name, given))


# --- pictures


def test_load_image_url_gives_what_load_image_gives(pair):
    pair.a.put_input(png(RGBA), "netfiles-rgba.png")
    with serve({"/p.png?x=1": png(RGBA), "/rgb": png(RGBA[..., :3])}) as server:
        prompt = {
            "1": node("LoadImageUrl", url=f"{server.url}/p.png?x=1"),
            "2": node("LoadImage", image="netfiles-rgba.png"),
            "3": node("LoadImageUrl", url=f" {server.url}/rgb "),
        }
        prompt |= digests(("1", 0), ("2", 0), ("1", 1), ("2", 1), ("3", 0), ("3", 1))
        entry = good(pair.a, prompt)
        found = [pair.a.ui(entry, f"digest {i}", "digest") for i in range(6)]
        expected = made_here(torch.from_numpy(RGBA[..., :3].astype(np.float32) / 255.0)[None])
        assert found[0] == found[1] == found[4] == values.digest(expected)
        assert found[2] == found[3]
        assert found[5] == values.digest(made_here(torch.zeros(1, 64, 64)))


def test_a_second_run_takes_the_pictures_from_the_cache(pair, keeps_results):
    with serve({"/rgb": png(RGBA[..., :3])}) as server:
        prompt = {"1": node("LoadImageUrl", url=f"{server.url}/rgb")} | digests(("1", 0))
        good(pair.a, prompt)
        good(pair.a, prompt)
        assert len(server.asked) == 1


def deep_png(colours):
    """A PNG of 16 bits a colour, which Pillow reads and does not write."""

    def chunk(name, data):
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, _ = colours.shape
    rows = colours.astype(">u2").reshape(height, -1).view(np.uint8)
    packed = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def kinds_of_picture():
    """Name -> file: what LoadImage treats in ways of its own."""
    colours = Image.fromarray(RGBA)
    turned = Image.Exif()
    turned[0x0112] = 8
    deep = Image.fromarray(RGBA[..., 0].astype(np.uint16) * 257)
    made = {
        "grey with alpha": (colours.convert("LA"), "png", {}),
        "palette": (colours.convert("P"), "png", {"transparency": 3}),
        "16 bits": (deep, "png", {}),
        "32 bits": (deep.convert("I"), "tiff", {}),
        "1 bit": (colours.convert("1"), "png", {}),
        "cmyk": (colours.convert("CMYK"), "jpeg", {}),
        "turned": (colours.convert("RGB"), "jpeg", {"exif": turned}),
        "a colour that is clear": (colours.convert("RGB"), "png", {"transparency": (0, 1, 2)}),
        "webp": (colours, "webp", {"lossless": True}),
        "bmp": (colours.convert("RGB"), "bmp", {}),
        "gif": (colours.convert("P"), "gif", {"transparency": 3}),
    }
    for orientation in (2, 5):  # mirrored, and mirrored and turned
        exif = Image.Exif()
        exif[0x0112] = orientation
        made[f"orientation {orientation}"] = (colours.convert("RGB"), "png", {"exif": exif})
    frames = [Image.fromarray(np.roll(RGBA[..., :3], step, 1)) for step in (0, 7, 14)]
    moving = {"save_all": True, "append_images": frames[1:]}
    for kind in ("gif", "webp", "png", "tiff"):
        made[f"moving {kind}"] = (frames[0], kind, moving)
    found = {"rgb of 16 bits": ("png", deep_png(np.arange(20 * 32 * 3).reshape(20, 32, 3) * 34))}
    for name, (image, kind, more) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        found[name] = (kind, buffer.getvalue())
    return found


def test_every_kind_of_picture_comes_as_load_image_gives_it(pair):
    made = kinds_of_picture()
    prompt = {}
    with serve({f"/{i}": data for i, (_, data) in enumerate(made.values())}) as server:
        for i, (name, (kind, data)) in enumerate(made.items()):
            file = pair.a.put_input(data, f"netfiles kind {i}.{kind}")
            prompt |= {f"url {name}": node("LoadImageUrl", url=f"{server.url}/{i}")}
            prompt |= {f"file {name}": node("LoadImage", image=file)}
            for slot in (0, 1):
                for source in ("url", "file"):
                    value = [f"{source} {name}", slot]
                    prompt[f"{source} {name} {slot}"] = node("TestDigest", value=value)
        entry = good(pair.a, prompt)
    found = {
        (name, slot): {pair.a.ui(entry, f"{s} {name} {slot}", "digest") for s in ("url", "file")}
        for name in made
        for slot in (0, 1)
    }
    assert [key for key, digests in found.items() if len(digests) > 1] == []


def test_every_kind_of_picture_is_worked_on_there_as_load_image_gives_it_here(pair):
    loaded_here_and_worked_on_there(pair)


def loaded_here_and_worked_on_there(pair):
    """The other ComfyUI has no such file, and may decode it otherwise."""
    prompt, made = {}, kinds_of_picture()
    for name, (kind, data) in made.items():
        file = pair.a.put_input(data, f"netfiles there {name}.{kind}")
        prompt |= {name: node("LoadImage", image=file)}
        for slot, work in enumerate(("ImageInvert", "InvertMask")):
            given = {"image" if slot == 0 else "mask": [name, slot]}
            prompt[f"{name} {slot}"] = node(work, **given)
            how = {"here": "no", "on_failure": "stop", "quality": "exact"}
            run = node("ZBusRun", value=[f"{name} {slot}", 0], peer=pair.b.peer, **how)
            prompt[f"{name} {slot} there"] = run
            for source in (f"{name} {slot}", f"{name} {slot} there"):
                prompt[f"digest {source}"] = node("TestDigest", value=[source, 0])
    entry = good(pair.a, prompt)
    for name in made:
        for slot in (0, 1):
            ids = f"digest {name} {slot}", f"digest {name} {slot} there"
            assert len({pair.a.ui(entry, i, "digest") for i in ids}) == 1, name


def test_nothing_of_a_fetched_picture_stays(pair):
    with serve({"/p": png(RGBA)}) as server:
        good(pair.a, {"1": node("LoadImageUrl", url=f"{server.url}/p")} | digests(("1", 0)))
    assert not list((pair.a.base / "temp").glob("zbus-*"))


def test_load_image_url_and_what_goes_wrong(pair, addr):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files = {"/text": b"no picture", "/cut.png": png(noise)[:-2000]}
    with serve(files) as server:
        where = server.url.replace("//", "//me:secret@")
        for url, words in (
            (f"{where}/gone?token=secret", f"FetchError: {server.url}/gone, loading the picture: "),
            (f"{where}/gone?token=secret", "404 Not Found: no such file"),
            (f"{where}/text", "it is no picture of a known format (PNG, JPEG"),
            (f"{where}/cut.png", "the picture is damaged"),
            (f"http://{addr}/", "Unreachable: "),
        ):
            said = error_of(pair.a, {"1": node("LoadImageUrl", url=url)} | digests(("1", 0)))
            assert words in said
            assert "secret" not in said
    assert "secret" not in pair.a.log()


@pytest.mark.parametrize("name", ["LoadImageUrl", "LoadLatentUrl"])
@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "127.0.0.1/a.png"])
def test_a_bad_url_is_refused_before_anything_runs(pair, name, url):
    with pytest.raises(PromptRefused, match="Write it in full"):
        pair.a.prompt({"1": node(name, url=url)} | digests(("1", 0)))


def test_the_x_ends_the_wait_for_a_server(pair):
    with serve() as server:
        prompt = {"1": node("LoadImageUrl", url=f"{server.url}/hang")} | digests(("1", 0))
        prompt_id = pair.a.prompt(prompt)
        until(lambda: server.asked)
        begun = time.monotonic()
        pair.a.interrupt(prompt_id)
        entry = pair.a.wait(prompt_id, 5)
        assert (
            time.monotonic() - begun < 1 * slowness()
        )  # HTTP of the X and of the history included
    assert pair.a.outcome(entry) == "interrupted"


@pytest.mark.parametrize("data_format", ["HTML_image", "Raw_data"])
@pytest.mark.parametrize("prefix", ["some/folder/photo", "C:\\folder\\photo", "photo"])
def test_save_image_url(pair, data_format, prefix):
    extra = {"workflow": {"nodes": [], "a": 1}}
    with serve() as server:
        prompt = {
            "1": node("TestMake", kind="image 8-bit", seed=3),
            "2": node(
                *("SaveImageUrl",),
                **{"images": ["1", 0], "url": f"{server.url}/up", "filename_prefix": prefix},
                data_format=data_format,
            ),
        }
        before = files_of(pair.a)
        sent = pair.a.prompt(prompt, extra_data={"extra_pnginfo": extra})
        assert pair.a.outcome(pair.a.wait(sent)) == "success"
    assert files_of(pair.a) == before, "nothing on disk"
    (body,) = server.posted
    pictures = json.loads(body)
    assert list(pictures) == ["photo_00001.png", "photo_00002.png"]
    images = values.make("image 8-bit", 3)
    for image, text in zip(images, pictures.values(), strict=True):
        start = "data:image/png;base64,"
        assert text.startswith(start) is (data_format == "HTML_image")
        data = b64decode(text.removeprefix(start), validate=True)
        with Image.open(io.BytesIO(data)) as opened:
            there = np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)
            assert np.array_equal(np.asarray(opened), there)
            assert json.loads(opened.text["prompt"])["2"]["inputs"]["url"] == f"{server.url}/up"
            assert json.loads(opened.text["workflow"]) == extra["workflow"]


def files_of(comfyui):
    folders = ("input", "output", "temp")
    return sorted(p for f in folders for p in (comfyui.base / f).rglob("*") if p.is_file())


def test_save_image_url_tells_a_failure(pair):
    with serve(status=507) as server:
        image = node("TestMake", kind="image", seed=1)
        more = {"filename_prefix": "x", "data_format": "Raw_data"}
        save = node("SaveImageUrl", images=["1", 0], url=f"{server.url}/up", **more)
        said = error_of(pair.a, {"1": image, "2": save})
    assert f"FetchError: {server.url}/up, posting the pictures: " in said
    assert said.endswith("507 Insufficient Storage: disk full")


def test_combine_image_batch(pair):
    prompt = {
        "1": node("TestNoise", batch=2, height=8, width=6, channels=3, seed=1),
        "2": node("TestNoise", batch=1, height=8, width=6, channels=3, seed=2),
        "3": node("CombineImageBatch", images_a=["1", 0], images_b=["2", 0]),
    }
    entry = good(pair.a, prompt | digests(("3", 0)))
    both = torch.cat([values.noise((2, 8, 6, 3), 1), values.noise((1, 8, 6, 3), 2)])
    assert pair.a.ui(entry, "digest 0", "digest") == values.digest(both)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"width": 9}, "6 x 8 in 3 channels, images_b of 9 x 8 in 3 channels"),
        ({"channels": 4}, "6 x 8 in 3 channels, images_b of 6 x 8 in 4 channels"),
    ],
)
def test_combine_image_batch_refuses_what_does_not_fit(pair, change, words):
    first = {"batch": 1, "height": 8, "width": 6, "channels": 3, "seed": 1}
    prompt = {
        "1": node("TestNoise", **first),
        "2": node("TestNoise", **(first | change)),
        "3": node("CombineImageBatch", images_a=["1", 0], images_b=["2", 0]),
    }
    said = error_of(pair.a, prompt | digests(("3", 0)))
    assert words in said
    assert "ImageScale" in said


# --- latents


def latent_files():
    """(name, content, what must come of it)."""
    samples = values.noise((2, 4, 8, 6), 7)
    archive = io.BytesIO()
    np.savez(archive, original_size=np.zeros(2), latents=samples[0].numpy())
    version = {"latent_format_version_0": torch.tensor([])}
    new = safetensors.torch.save({"latent_tensor": samples, **version})
    old = safetensors.torch.save({"latent_tensor": samples})
    return [
        ("netfiles a.latent", new, samples),
        ("netfiles b.safetensors", old, samples * (1.0 / 0.18215)),
        ("netfiles c.npy", npy(samples.double().numpy()), samples),
        ("netfiles d.npz", archive.getvalue(), samples[:1]),
    ]


@pytest.mark.parametrize("name, data, expected", latent_files(), ids=lambda v: str(v)[:22])
def test_latents_from_files_and_urls(pair, name, data, expected):
    pair.a.put_input(data, name)
    info = pair.a.object_info("LoadLatentNumpy")["LoadLatentNumpy"]
    kind, *more = info["input"]["required"]["latent"]
    assert name in (kind if isinstance(kind, list) else more[0]["options"])
    with serve({"/of?file=x": data}) as server:
        prompt = {
            "1": node("LoadLatentNumpy", latent=name),
            "2": node("LoadLatentUrl", url=f"{server.url}/of?file=x"),
        }
        entry = good(pair.a, prompt | digests(("1", 0), ("2", 0)))
    for i in range(2):
        assert pair.a.ui(entry, f"digest {i}", "digest") == latent_digest(expected)


@pytest.mark.usefixtures("keeps_results")
def test_a_changed_file_is_loaded_again_and_an_unchanged_one_is_not(pair):
    name = "netfiles changing.npy"
    prompt = {"1": node("LoadLatentNumpy", latent=name), "2": node("TestStamp", value=["1", 0])}
    prompt |= digests(("1", 0))
    ran = []
    for seed in (1, 1, 2):
        samples = values.noise((1, 4, 2, 2), seed)
        pair.a.put_input(npy(samples.numpy()), name)
        since = pair.a.events.mark()
        entry = good(pair.a, prompt)
        assert pair.a.ui(entry, "digest 0", "digest") == latent_digest(samples)
        ran.append("1" not in pair.a.events.all("execution_cached", since)[0].data["nodes"])
    assert ran == [True, False, True]


@pytest.mark.parametrize(
    "name, words",
    [
        ("not there.npy", "there is no file"),
        ("../user/x.npy", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("x.npy [output]", 'no file "x.npy" in the folder "output"'),
    ],
)
def test_a_file_that_is_not_there_is_refused_before_anything_runs(pair, name, words):
    for prompt in (
        {"1": node("LoadLatentNumpy", latent=name)} | digests(("1", 0)),
        {"1": node("LoadDiskWorkflowJSON", workflow=name)} | digests(("1", 0)),
    ):
        with pytest.raises(PromptRefused) as caught:
            pair.a.prompt(prompt)
        details = [
            e["details"] for n in caught.value.reply["node_errors"].values() for e in n["errors"]
        ]
        assert any(words in text for text in details), details


def test_a_file_that_is_no_latent(pair):
    name = pair.a.put_input(npy(np.zeros((4, 4))), "netfiles flat.npy")
    said = error_of(pair.a, {"1": node("LoadLatentNumpy", latent=name)} | digests(("1", 0)))
    assert 'InputError: "netfiles flat.npy" cannot be used: an array of shape [4, 4]' in said
    with serve({"/x.npy": b"<html>"}) as server:
        prompt = {"1": node("LoadLatentUrl", url=f"{server.url}/x.npy")} | digests(("1", 0))
        said = error_of(pair.a, prompt)
    assert f"FetchError: {server.url}/x.npy, loading the latent: it is neither a latent" in said


def test_save_latent_numpy_and_load_it_again(pair):
    prompt = {
        "1": node("TestMake", kind="latent", seed=9),
        "2": node("SaveLatentNumpy", samples=["1", 0], filename_prefix="latents/netfiles"),
        "3": node("PreviewAny", source=["2", 0]),
    }
    entry = good(pair.a, prompt)
    assert pair.a.ui(entry, 3, "text") == "netfiles_00001_.npy"
    path = pair.a.base / "output" / "latents" / "netfiles_00001_.npy"
    assert torch.equal(torch.from_numpy(np.load(path)), values.noise((1, 4, 16, 16), 9))
    load = node("LoadLatentNumpy", latent="latents/netfiles_00001_.npy [output]")
    entry = good(pair.a, {"1": load} | digests(("1", 0)))
    assert pair.a.ui(entry, "digest 0", "digest") == values.digest(values.make("latent", 9))
    prompt["1"]["inputs"]["seed"] = 10
    assert pair.a.ui(good(pair.a, prompt), 3, "text") == "netfiles_00002_.npy"


@pytest.mark.parametrize(
    "kind, prefix, words",
    [
        ("latent nested", "latents/x", "this latent has several parts"),
        ("latent", "../x", "leads out of the output folder"),
    ],
)
def test_save_latent_numpy_refuses(pair, kind, prefix, words):
    save = node("SaveLatentNumpy", samples=["1", 0], filename_prefix=prefix)
    made = node("TestMake", kind=make_or_skip(kind, pair.a), seed=1)
    said = error_of(pair.a, {"1": made, "2": save})
    assert "InputError" in said and words in said


# --- workflows


def test_the_current_workflow_is_saved_and_loaded_again(pair):
    prompt = {
        "1": node("LoadCurrentWorkflowJSON", title="the workflow"),
        "2": node("SaveDiskWorkflowJSON", workflow=["1", 0], filename_prefix="workflow/netfiles"),
        "3": node("TestStamp", value=["4", 0]),
        "4": node("PrimitiveString", value="\u65e5\u672c\u8a9e"),
    }
    good(pair.a, prompt)
    path = pair.a.base / "output" / "workflow" / "netfiles_00001_.json"
    text = path.read_text(encoding="utf-8")
    # TestStamp is one that ComfyUI writes NaN into while it runs: this must not be in it.
    assert json.loads(text) == prompt
    assert text.startswith('{\n  "1": {\n    "')
    name = pair.a.put_input(path, "netfiles.json")
    loaded = {"1": node("LoadDiskWorkflowJSON", workflow=name)}
    entry = good(pair.a, loaded | digests(("1", 0)))
    assert pair.a.ui(entry, "digest 0", "digest") == values.digest(json.loads(text))


@pytest.mark.usefixtures("keeps_results")
def test_the_current_workflow_is_taken_anew_only_when_it_has_changed(pair):
    prompt = {
        "1": node("LoadCurrentWorkflowJSON"),
        "2": node("PreviewAny", source=["1", 0]),
        "3": node("PrimitiveString", value="first"),
        "4": node("PreviewAny", source=["3", 0]),
    }
    for value, cached in (("first", False), ("first", True), ("second", False)):
        prompt["3"]["inputs"]["value"] = value
        entry = good(pair.a, prompt)
        told = dict(entry["status"]["messages"])
        assert ("1" in told["execution_cached"]["nodes"]) is cached
        assert json.loads(pair.a.ui(entry, 2, "text")) == prompt


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", "is not JSON"),
        (b"[1, 2]", "not a workflow in API format"),
        (b"{}", "not a workflow in API format"),
        (b"[" * 200_000, "is not JSON"),
        (json.dumps({"nodes": [], "links": [], "version": 0.4}).encode(), "Export (API)"),
    ],
)
def test_a_file_that_is_no_workflow(pair, content, words):
    name = pair.a.put_input(content, "netfiles bad.json")
    prompt = {"1": node("LoadDiskWorkflowJSON", workflow=name)} | digests(("1", 0))
    with pytest.raises(PromptRefused) as caught:
        pair.a.prompt(prompt)
    assert words in str(caught.value)


def test_what_is_no_json_is_not_saved(pair):
    save = node("SaveDiskWorkflowJSON", workflow=["1", 0], filename_prefix="workflow/live")
    prompt = {"1": node("TestMake", kind="model", seed=1), "2": save}
    assert "cannot be written as JSON" in error_of(pair.a, prompt)
    assert not list((pair.a.base / "output").rglob("live*"))
