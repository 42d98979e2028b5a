"""The comparison of modes in `auto`: each by its value less the price of its joules, whatever its name. PURE."""

from __future__ import annotations

from moe2.coordinator.choosing.consensus import SAME_VALUE, voted_value
from moe2.coordinator.choosing.fine_level import net_value
from moe2.coordinator.choosing.quality import RosterVotes
from moe2.coordinator.choosing.result import NoExpert, Selection

AUTO_MIN_GAIN = 0.05
"""What a panel has to add to the chance of a good answer for several to vote, where nothing is recorded of votes."""


def is_worth_it(panel: Selection, votes: RosterVotes) -> bool:
    """True where a panel that scores choices is worth more than its best member, less the price of its joules.

    Its value is what recorded votes of its members reach. Where there are none it is the chance that any member answers
    well, which promises too much and so has to gain `AUTO_MIN_GAIN`; and as a prior from a model's size says nothing of
    what several models know together, the gate must know every member then.
    """
    places, outlook = _places(panel), panel.outlook
    if len(places) < 2:
        return False
    if voted_value(outlook, votes, places) is not None:
        return _net(panel, places, votes) >= max(_net(panel, [place], votes) for place in places) + SAME_VALUE
    alone = max(net_value(outlook, [place]) for place in places)
    is_known = bool(outlook.prompt_scores.trained[places].all())
    return is_known and net_value(outlook, places) - alone >= AUTO_MIN_GAIN


def is_better_vote(together: Selection | NoExpert, single: Selection | NoExpert, votes: RosterVotes) -> bool:
    """True where a vote over final answers of several has more value, less the price of its joules, than `single`."""
    if not isinstance(together, Selection) or together.vote is None or len(together.members) < 2:
        return False
    if not isinstance(single, Selection):
        return True
    net = together.vote.value - together.outlook.price_per_j * together.vote.expected_j
    return net >= _net(single, _places(single), votes) + SAME_VALUE


def _net(decided: Selection, places: list[int], votes: RosterVotes) -> float:
    """The value of the experts at `places` less the price of the joules to expect of them all."""
    outlook = decided.outlook
    value = voted_value(outlook, votes, places)
    if value is None:
        value = float(outlook.prompt_scores.scores[places].max())
    return value - outlook.price_per_j * float(outlook.expected_j[places].sum())


def _places(decided: Selection) -> list[int]:
    """The members' places in the roster."""
    keys = decided.outlook.forecast.roster.keys
    return [keys.index(member.expert.key) for member in decided.members]
