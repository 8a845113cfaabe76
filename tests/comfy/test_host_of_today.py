"""What newer ComfyUIs have: jobs cancelled by their id, tokens for nodes that cost money."""

from __future__ import annotations

import urllib.error

import pytest
from chains import jumper, node, wait_both
from children import until


def run_on(peer, value):
    how = {"here": "no", "on_failure": "stop", "quality": "exact"}
    return node("ZBusRun", value=value, peer=peer, **how)


@pytest.fixture
def cancel():
    """``cancel(comfyui, prompt_id)``: what the page's list of jobs does."""

    def cancel(comfyui, prompt_id):
        try:
            comfyui.post(f"/api/jobs/{prompt_id}/cancel", {})
        except urllib.error.HTTPError as error:
            assert error.code in (404, 405)
            pytest.skip("this ComfyUI has no /api/jobs/ID/cancel: it came with 0.26")

    return cancel


def test_a_chain_that_is_cancelled_by_its_id(pair, addr, cancel):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    waits = here.step("Receive String")
    there.then("TestSlow", seconds=60.0)
    there.step("Send String", string="never")
    events, since = pair.a.events, pair.a.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    events.wait_text("has not come to this yet", waits, 30, since=since)
    cancel(pair.a, ids[0])
    mine, theirs = wait_both(pair.a, ids[0], pair.b, ids[1], 15)
    assert pair.a.outcome(mine) == "interrupted"
    assert pair.b.outcome(theirs) != "success", "it is stopped, since the other run has ended"


def test_a_job_that_is_cancelled_there_by_its_id(pair, cancel):
    made = node("TestSlow", value=["text", 0], seconds=20.0)
    text = node("PrimitiveString", value="x")
    prompt = {"text": text, "slow": made, "run": run_on(pair.b.url, ["slow", 0])}
    prompt["end"] = node("PreviewAny", source=["run", 0])
    prompt_id = pair.a.prompt(prompt)
    (job,) = until(lambda: pair.b.queue()[0], 15, "the job runs there")
    cancel(pair.b, job)
    entry = pair.a.wait(prompt_id, 15)
    assert "interrupted there" in pair.a.errors(entry)


def test_no_token_travels_with_a_job(pair):
    prompt = {"token": node("TestToken"), "run": run_on(pair.b.url, ["token", 0])}
    prompt["there"] = node("PreviewAny", source=["run", 0])
    prompt["here"] = node("PreviewAny", source=["token", 0])
    tokens = {"auth_token_comfy_org": "secret-token", "api_key_comfy_org": "secret-key"}
    entry = pair.a.wait(pair.a.prompt(prompt, extra_data=tokens))
    assert pair.a.outcome(entry) == "success", pair.a.errors(entry)
    assert pair.a.ui(entry, "here", "text") == "token secret-token, key secret-key"
    assert pair.a.ui(entry, "there", "text") == "token None, key None"
