"""Pulls as the coordinator keeps them: who is told what, and again after they were away. Made-up hosts."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from moe2.common.errors import Moe2Error
from moe2.common.link.messages import CommandAnswer, CommandOutcome
from moe2.common.link.supply import DeleteFile, ModelFile, ModelStore, Pulling, PullModel
from moe2.common.status import AgentRow
from moe2.coordinator.supply.orders import Orders, Wanted
from moe2.coordinator.supply.pulls import Pulls, PullWanted
from tests.coordinator.supply.test_hosts import row

SHA = "ab" * 32
SOURCE = f"https://models.example/llm/a.gguf?token=hush#sha256={SHA}"


def host(name: str = "one", **fields: Any) -> AgentRow:
    """A host that pulls from one folder and deletes."""
    store = ModelStore(takes_orders=True, pull_from=("https://models.example/llm/",), deletes=True)
    return replace(row(name), models=replace(store, **fields))


class Desk:
    """Pulls over hosts that a test changes. sent: what agents were told."""

    def __init__(self, *hosts: AgentRow) -> None:
        self.hosts = list(hosts)
        self.sent: list[tuple[str, Any]] = []
        self.pulls = Pulls(rows=lambda: self.hosts, send=self._send, clock=lambda: 1.0)
        self.orders = Orders(rows=lambda: self.hosts, send=self._send, aliases=dict, clock=lambda: 1.0)

    def _send(self, agent_id: str, message: Any) -> bool:
        is_there = any(one.agent_id == agent_id and one.connected for one in self.hosts)
        if is_there:
            self.sent.append((agent_id, message))
        return is_there

    def pull(self, source: str = SOURCE, *hosts: str) -> Any:
        return self.pulls.want(PullWanted(source=source, hosts=hosts or ("one",)))

    def state(self) -> list[str]:
        return [one.state for one in self.pulls.rows()]


def test_a_host_is_told_the_whole_source_and_nobody_else_sees_its_secrets() -> None:
    """What is shown ends before the question mark; the same order twice is one pull."""
    desk = Desk(host())
    [told] = desk.pull()
    [again] = desk.pull()
    [(_, order)] = desk.sent
    assert isinstance(order, PullModel)
    assert (order.source, again.command_id) == (SOURCE, told.command_id)
    assert (told.file, told.source) == ("a.gguf", "https://models.example/llm/a.gguf?…")
    assert (told.done_bytes, told.size_bytes) == (None, None)


def test_progress_is_the_hosts_own_and_the_answer_ends_it() -> None:
    """Unknown until the host tells; a second answer changes nothing."""
    desk = Desk(host())
    [told] = desk.pull()
    coming = Pulling(command_id=told.command_id, file="a.gguf", source="x", done_bytes=5, size_bytes=10)
    desk.hosts = [host(pulling=(replace(coming, size_bytes=None),))]
    desk.pulls.follow()
    assert desk.pulls.rows()[0].done_bytes is None
    desk.hosts = [host(pulling=(coming,))]
    desk.pulls.follow()
    assert (desk.pulls.rows()[0].done_bytes, desk.pulls.rows()[0].size_bytes) == (5, 10)
    agent_id = desk.hosts[0].agent_id
    done = CommandAnswer(command_id=told.command_id, outcome=CommandOutcome.DONE)
    assert not desk.pulls.answered("another", done)
    assert not desk.pulls.answered(agent_id, replace(done, command_id="unknown"))
    assert desk.pulls.answered(agent_id, done)
    assert desk.pulls.answered(agent_id, replace(done, outcome=CommandOutcome.FAILED))
    assert (desk.state(), desk.pulls.rows()[0].done_bytes) == (["done"], 10)


def test_a_pull_that_ended_before_its_host_told_its_size_has_it_from_the_hosts_folder() -> None:
    """A small file comes between two reports."""
    desk = Desk(host())
    [told] = desk.pull()
    desk.pulls.answered(desk.hosts[0].agent_id, CommandAnswer(command_id=told.command_id, outcome=CommandOutcome.DONE))
    desk.pulls.follow()
    assert (desk.state(), desk.pulls.rows()[0].size_bytes) == (["done"], None)
    file = ModelFile(name="a.gguf", size_bytes=7, sha256=SHA, origin=SOURCE, added_unix_s=1.0)
    desk.hosts = [host(files=(replace(file, name="b.gguf", size_bytes=8), file))]
    desk.pulls.follow()
    assert (desk.pulls.rows()[0].done_bytes, desk.pulls.rows()[0].size_bytes) == (7, 7)


def test_a_host_that_was_away_is_told_again_once() -> None:
    """The same order, so that an agent that never stopped takes it for what it has."""
    desk = Desk(host())
    desk.pull()
    desk.pulls.agent_lost("another")
    assert desk.state() == ["pulling"]
    away = replace(desk.hosts[0], connected=False)
    desk.hosts = [away]
    desk.pulls.agent_lost(away.agent_id)
    desk.pulls.follow()
    assert (desk.state(), len(desk.sent)) == (["waiting"], 1)
    desk.hosts = [host()]
    desk.pulls.follow()
    desk.pulls.follow()
    assert desk.state() == ["pulling"]
    assert desk.sent == [desk.sent[0]] * 2


@pytest.mark.parametrize(
    ("store", "source", "part"),
    [
        ({"pull_from": None}, SOURCE, "release that pulls nothing"),
        ({"pull_from": ()}, SOURCE, "pulls from nowhere"),
        ({"pull_from": ("hf:",)}, SOURCE, "pulls from hf:"),
        ({"takes_orders": False}, SOURCE, "takes no models"),
        ({}, "hf:org/repo/a.gguf", "and not hf:org/repo/a.gguf"),
        ({}, "/srv/a.gguf", "its own files"),
        ({}, "https://models.example/llm/a.gguf", "only with its checksum"),
        ({}, "https://models.example/llm/" + "a" * 3000 + ".gguf", "too long"),
        (
            {"files": (ModelFile(name="a.gguf", size_bytes=1, sha256="cd" * 32, origin="x", added_unix_s=1.0),)},
            SOURCE,
            "another file called a.gguf",
        ),
    ],
)
def test_what_one_host_would_not_do_is_refused_before_any_is_told(store: Any, source: str, part: str) -> None:
    """Each with a remedy."""
    desk = Desk(host("two"), host(**store))
    with pytest.raises(Moe2Error, match=part) as refused:
        desk.pull(source, "two", "one")
    assert refused.value.remedy
    assert "hush" not in str(refused.value)
    assert desk.sent == []


FILE = ModelFile(name="my model.gguf", size_bytes=1, sha256=SHA, origin="x", added_unix_s=1.0)


@pytest.mark.parametrize("name", ["my model.gguf", SHA[:8]])
def test_a_file_is_deleted_by_its_name_or_the_beginning_of_its_checksum(name: str) -> None:
    """The order names the checksum that was meant."""
    desk = Desk(host(files=(FILE,)))
    [told] = desk.orders.want(Wanted(verb="delete", name=name, hosts=("one",)))
    assert (told.verb, told.model) == ("delete", "my model.gguf")
    [(_, order)] = desk.sent
    assert (order.name, order.sha256) == ("my model.gguf", SHA)


def test_what_is_not_whole_is_not_reported_and_can_be_deleted_by_its_name() -> None:
    """Without a checksum."""
    desk = Desk(host())
    desk.orders.want(Wanted(verb="delete", name="half.gguf", hosts=("one",)))
    [(_, order)] = desk.sent
    assert isinstance(order, DeleteFile)
    assert (order.name, order.sha256) == ("half.gguf", None)


@pytest.mark.parametrize(
    ("store", "name", "part"),
    [
        ({"deletes": None}, FILE.name, "release that cannot delete files"),
        ({"deletes": False}, FILE.name, "does not let the coordinator delete files"),
        ({"files": (replace(FILE, served_as=("chat",)),)}, FILE.name, "is what chat is served from"),
        ({}, "../a.gguf", "cannot be a model's file"),
        ({}, "", "cannot be a model's file"),
    ],
)
def test_what_a_host_would_not_delete_is_refused(store: Any, name: str, part: str) -> None:
    """Before the order is given."""
    desk = Desk(host(**{"files": (FILE,), **store}))
    with pytest.raises(Moe2Error, match=part):
        desk.orders.want(Wanted(verb="delete", name=name, hosts=("one",)))
    assert desk.sent == []
