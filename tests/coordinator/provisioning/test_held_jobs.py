"""Jobs that wait for a sleeping host."""

from moe2.common.link.messages import FromAgent, JobFailed, Submit
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.provisioning.held_jobs import MAX_HELD_JOBS, HeldJobs


def job(job_id: str, model: str = "m") -> Submit:
    return Submit(job_id=job_id, request_id="r", model=model, prompt=TextPrompt(text="hi"), max_tokens=1)


class Told:
    """Holds jobs and keeps what is said of those that are given back."""

    def __init__(self) -> None:
        self.words: list[tuple[str, FromAgent]] = []
        self.held = HeldJobs(lambda agent_id, message: self.words.append((agent_id, message)))

    @property
    def failed(self) -> list[tuple[str, str]]:
        return [(agent, word.job_id) for agent, word in self.words if isinstance(word, JobFailed)]


def test_an_agent_takes_the_jobs_for_models_that_are_ready() -> None:
    """The others stay, in their order."""
    told = Told()
    for each in (job("a"), job("b", "other"), job("c")):
        told.held.hold("agent", each)
    assert [each.job_id for each in told.held.take("agent", {"m"})] == ["a", "c"]
    assert told.held.agents == ("agent",)
    assert [each.job_id for each in told.held.take("agent", {"other"})] == ["b"]
    assert not told.held
    assert told.failed == []


def test_a_cancelled_job_is_given_back_and_the_others_are_kept() -> None:
    """Nobody waits for a word that cannot come."""
    told = Told()
    told.held.hold("agent", job("a"))
    told.held.hold("agent", job("b"))
    assert told.held.cancel("agent", "a")
    assert told.failed == [("agent", "a")]
    assert [each.job_id for each in told.held.take("agent", {"m"})] == ["b"]


def test_nothing_is_cancelled_for_an_agent_without_held_jobs() -> None:
    """The caller is told that the message reached nobody."""
    assert not Told().held.cancel("agent", "a")


def test_giving_up_an_agent_fails_its_jobs_only() -> None:
    """With the reason, so that another expert is tried."""
    told = Told()
    told.held.hold("one", job("a"))
    told.held.hold("two", job("b"))
    told.held.give_up("one", "its host was not woken")
    assert told.failed == [("one", "a")]
    word = told.words[0][1]
    assert isinstance(word, JobFailed)
    assert word.message == "The expert did not get the request: its host was not woken."
    assert told.held.agents == ("two",)


def test_only_so_many_jobs_are_held_of_all_hosts() -> None:
    """A fleet that sleeps must not fill the memory of who waits for it."""
    held = Told().held
    for number in range(MAX_HELD_JOBS):
        assert held.has_room
        held.hold(f"agent {number % 3}", job(str(number)))
    assert not held.has_room


def test_jobs_for_models_that_are_still_loading_are_kept() -> None:
    """A host that comes back gives up the jobs that it will not take, and no others."""
    told = Told()
    for each in (job("a", "loading"), job("b", "gone")):
        told.held.hold("agent", each)
    told.held.give_up("agent", "it is gone", but={"loading"})
    assert told.failed == [("agent", "b")]
    assert [each.job_id for each in told.held.take("agent", {"loading"})] == ["a"]


def test_a_forgotten_agent_has_no_jobs() -> None:
    """Whoever was told already that the agent is lost is not told again."""
    told = Told()
    told.held.hold("agent", job("a"))
    told.held.forget("agent")
    assert (told.held.agents, told.failed) == ((), [])
