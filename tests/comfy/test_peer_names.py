"""The names for the drop-down of `peer` fields, and the script that draws it."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from paired import away, home_of, paired

from zbus.card import CARD
from zbus.keys import fingerprint, generate, short, to_text
from zbus.resolver import Resolver
from zbus.trust import EXCHANGE, Trust

NAMES = "/zbus/peers"
ADDRESS = "192.0.2.77:18188"


def told(comfyui):
    """name -> (kind, online)"""
    answer = comfyui.get(NAMES)
    assert set(answer) == {"peers", "words"}
    assert all(set(peer) == {"name", "kind", "online"} for peer in answer["peers"])
    kinds = {peer["name"]: (peer["kind"], peer["online"]) for peer in answer["peers"]}
    assert len(kinds) == len(answer["peers"]), "a name twice"
    return kinds


def fetch(comfyui, path):
    """What it answers: the kind, the text."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(comfyui.url + path, timeout=20) as reply:
        return reply.headers.get_content_type(), reply.read().decode()


def script(comfyui):
    # Of the pack's folder, whatever it is called.
    where = next(path for path in comfyui.get("/extensions") if path.endswith("/peers.js"))
    return fetch(comfyui, where)


def test_those_of_this_computer_are_told_without_oneself(pair):
    a, b = pair
    assert told(a)[b.peer] == ("here", True)
    assert told(b)[a.peer] == ("here", True)
    assert a.peer not in told(a) and b.peer not in told(b)
    assert a.get(NAMES)["words"] == ["any free", "all"]


def test_the_page_asks_under_api(pair):
    assert pair.a.get(f"/api{NAMES}") == pair.a.get(NAMES)


def test_one_that_ends_is_told_no_longer(fresh_pair):
    a, b = fresh_pair
    name = b.peer
    assert name in told(a)
    b.kill()
    assert name not in told(a)


def test_the_paired_are_told_at_once_and_only_while_they_are(pair):
    with away(home_of(pair.a), ADDRESS, "cloud") as name:
        assert told(pair.a)[name] == ("paired", None)
    assert name not in told(pair.a)


def test_each_comfyui_of_a_paired_one_has_its_whole_name(pair):
    trust = Trust(home_of(pair.a))
    peers = (("one-8188", (ADDRESS,)), ("two-8189", (ADDRESS,)))
    trust.pair(generate().public, "studio", (EXCHANGE,), peers)
    try:
        found = told(pair.a)
    finally:
        trust.forget("studio")
    assert {name for name in found if "studio" in name} == {"studio/one-8188", "studio/two-8189"}


def test_one_that_can_only_come_by_itself_is_told(pair, tmp_path):
    with paired(home_of(pair.a), tmp_path, name="laptop"):
        assert told(pair.a)["laptop"] == ("paired", None)


def test_what_is_told_can_be_written_into_the_field(pair, tmp_path, monkeypatch):
    home = home_of(pair.a)
    monkeypatch.setenv("ZBUS_HOME", str(home))
    with away(home, ADDRESS, "cloud"), paired(home, tmp_path, name="laptop"):
        look = Resolver(Trust(home), pair.a.get(CARD)["id"])
        found = told(pair.a)
        assert {"cloud", "laptop", pair.b.peer} <= set(found)
        assert [look.named(name).name for name in found] == list(found)


def test_neither_ways_nor_keys_are_told(pair):
    home = home_of(pair.a)
    trust, there = Trust(home), generate().public
    trust.pair(there, "cloud", (EXCHANGE,), (("pod", (ADDRESS, "https://u:pass@example.org/")),))
    try:
        text = str(pair.a.get(NAMES))
    finally:
        trust.forget("cloud")
    assert "cloud" in text
    for key in (there, trust.keys.public):
        assert not any(form in text for form in (to_text(key), fingerprint(key), short(key)))
    ways = [ADDRESS, "example.org", "pass", *pair.b.get(CARD)["endpoints"], pair.b.get(CARD)["id"]]
    assert not [way for way in ways if way in text]


def test_a_broken_store_is_no_crash_and_no_news(make_comfyui, tmp_path):
    alone = make_comfyui(name="alone", env={"ZBUS_HOME": str(tmp_path)}).start()
    assert told(alone) == {}
    file = Trust(tmp_path).file
    file.write_text("{")
    file.chmod(0o600)
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(alone, NAMES)
    assert refused.value.code == 503
    assert str(tmp_path) not in refused.value.read().decode()
    assert told(alone) == {}, "what was known counts"


def test_the_page_gets_the_script(pair):
    kind, text = script(pair.a)
    assert kind in ("text/javascript", "application/javascript")
    assert f'"{NAMES}"' in text


def test_the_script_makes_no_markup_and_knows_all_fields(pair):
    _, text = script(pair.a)
    assert not [word for word in ("innerHTML", "outerHTML", "insertAdjacent") if word in text]
    ours = [name for name in pair.a.object_info() if name.startswith("ZBus")]
    fields = {
        name
        for name in ours
        if "peer" in pair.a.object_info(name)[name]["input"].get("required", ())
        and not pair.a.object_info(name)[name].get("deprecated")  # those that no user sees
    }
    assert fields and all(f"{name}: " in text for name in fields)


def test_the_field_stays_a_text(pair):
    """A combo would refuse, on another's computer, the name of a peer that is not known there."""
    for name in ("ZBusSend", "ZBusReceive", "ZBusRun"):
        assert pair.a.object_info(name)[name]["input"]["required"]["peer"][0] == "STRING"
