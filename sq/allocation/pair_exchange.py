"""Local search: of all changes of one group or two that keep to the limits, the best, while there is one."""

from __future__ import annotations

import numpy as np

from sq.allocation.integer_program import EQUAL, Programme, ceiling


def improve(programme: Programme, chosen: np.ndarray) -> np.ndarray:
    """Return `chosen` with one or two groups changed at a time until no such change lowers the cost.

    With pairs P, e_k = c_k + sum over the chosen of P_k, and p, q what is chosen now in the groups
    of a and b, changing both costs (e_a - e_p) + (e_b - e_q) + P_ab - P_aq - P_pb + P_pq. Where b
    is q this is changing one group alone.

    Parameters
    ----------
    chosen : (G,) int, a choice within the limits
    """
    chosen = chosen.copy()
    while (change := _best(programme, chosen)) is not None:
        for option in change:
            chosen[programme.groups[option]] = option
    return chosen


def _best(programme: Programme, chosen: np.ndarray) -> tuple[int, int] | None:
    groups, states = programme.groups, programme.states
    pairs = programme.pairs
    assert pairs is not None
    now = chosen[groups]  # (n,) the option that each one would replace
    effect = programme.costs + pairs[:, states[chosen]].sum(1)[states]
    change = effect - effect[now]
    bounded = [(programme.uses[name], limit) for name, limit in programme.limits.items()]
    uses = [(use - use[now], ceiling(limit) - use[chosen].sum()) for use, limit in bounded]
    found, lowest = None, -EQUAL * max(abs(programme.cost(chosen)), float(np.abs(change).max()))
    for group, start in enumerate(programme.starts()):
        own = np.arange(start, start + np.count_nonzero(groups == group))
        both = pairs[states[own]] - pairs[states[chosen[group]]]  # (K, m)
        total = change[own][:, None] + change + both[:, states] - both[:, states[now]]
        total[:, own] = change[own][:, None]  # this group alone
        for use, room in uses:
            more = use[own][:, None] + use
            more[:, own] = use[own][:, None]
            total[more > room] = np.inf
        place = int(total.argmin())
        if total.flat[place] < lowest:
            lowest = float(total.flat[place])
            a, b = divmod(place, len(groups))
            # the other first: where it is in the same group, the change is this one's
            found = int(b), int(own[a])
    return found
