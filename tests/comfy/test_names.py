"""Two ComfyUIs of one user on one machine meet by name and by URL, with nothing set up."""

from __future__ import annotations

import pytest
import workflows
from chains import jumper, node, own, run_both
from comfyui import PromptRefused
from conftest import Pair
from test_run_on_peers import failure, good, ports, spans_of, texts
from testpack import values


@pytest.mark.parametrize("by", ["name", "url"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_an_exchange(pair, by, first):
    """Each names the other; neither listens on an address, whichever comes first."""
    targets = (pair.b.peer, pair.a.peer) if by == "name" else (pair.b.url, pair.a.url)
    here, there = own(targets[0]), own(targets[1])
    made = here.add(node("TestMake", kind="image", seed=11))
    here.step("ZBusSend", value=[made, 0], quality="exact")
    got = there.digest(there.step("ZBusReceive", expect="image", timeout=20))
    if first == "a":
        _, received = run_both(pair.a, here.end(), pair.b, there.prompt)
    else:
        received, _ = run_both(pair.b, there.prompt, pair.a, here.end())
    assert pair.b.ui(received, got, "digest") == values.digest(values.make("image", 11))


@pytest.mark.parametrize("modes", [("Client", "Server"), ("Client", "Client")])
def test_jumpers_nodes(pair, modes):
    here, there = jumper(pair.b.peer, modes[0]), jumper(pair.a.peer, modes[1])
    noise = here.add(workflows.noise_node(1, 32, 32, seed=6))
    here.step("Send Images", images=[noise, 0], send_as="raw")
    got = there.digest(there.step("Receive Images"))
    _, received = run_both(pair.a, here.end(), pair.b, there.prompt)
    assert pair.b.ui(received, got, "digest") == values.digest(values.noise((1, 32, 32, 3), 6))


@pytest.mark.parametrize("chain", [own("nobody-8188"), jumper("nobody-8188", "Client")])
def test_a_name_that_nobody_has_is_told_before_anything_runs(pair, chain):
    if chain.prompt and "peer" in chain.where:
        chain.digest(chain.step("ZBusReceive", expect="any", timeout=5))
    else:
        chain.digest(chain.step("Receive String"))
    with pytest.raises(PromptRefused, match="no peer named 'nobody-8188' here") as refused:
        pair.a.prompt(chain.end())
    assert pair.b.peer in str(refused.value)


def test_one_that_takes_no_jobs(pair: Pair, make_comfyui):
    """ZBUS_JOBS=0: it is found, values pass, jobs do not, and "all" leaves it out."""
    env = {"ZBUS_HOME": str(pair.a.zbus_home), "ZBUS_JOBS": "0"}
    off = make_comfyui(name="off", env=env).start()
    error = failure(pair.a, spans_of(off.peer))
    assert "runs workflows for nobody" in error["exception_message"]
    assert "ZBUS_JOBS=0" in error["exception_message"]
    entry = good(pair.a, spans_of("all"))
    assert off.port not in ports(entry) and pair.b.port in ports(entry)
    assert f"{off.peer}: left out of 'all'" in texts(entry, "report")[0]
    here, there = own(off.peer), own(pair.a.peer)
    made = here.add(node("TestMake", kind="latent", seed=3))
    here.step("ZBusSend", value=[made, 0], quality="exact")
    got = there.digest(there.step("ZBusReceive", expect="latent", timeout=20))
    _, received = run_both(pair.a, here.end(), off, there.prompt)
    assert off.ui(received, got, "digest") == values.digest(values.make("latent", 3))
