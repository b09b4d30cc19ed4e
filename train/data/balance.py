"""An order of a global batch in which each part of it costs about as much as any other."""

from collections.abc import Sequence
from heapq import heappop, heappush


def balanced(costs: Sequence[int]) -> list[int]:
    """The places of entries, in an order that deals their costs evenly.

    The batch is halved, the halves are halved, and so on; what is odd in the end is divided by its
    prime factors. Each time the costliest entry that is left goes to the part that costs least so
    far and has room, and costlier parts come first, so that ranks meet their costlier entries at
    the same time. Ranks and microbatches take runs of this order, whichever number of them there
    is: it knows of none. Where all costs are equal the order stays as it was.

    Source: Graham, "Bounds on Multiprocessing Timing Anomalies" (1969), for longest first; equal
    numbers of entries and the halving are ours.

    Args:
        costs: of each entry, as whole numbers, whose sums are the same everywhere.
    """
    return _balanced(list(range(len(costs))), costs, _prime_factors(len(costs)))


def _balanced(places: list[int], costs: Sequence[int], factors: list[int]) -> list[int]:
    if not factors or len({costs[place] for place in places}) == 1:
        return places
    count, *others = factors
    room = len(places) // count
    parts: list[list[int]] = [[] for _ in range(count)]
    cheapest = [(0, number) for number in range(count)]
    for place in sorted(places, key=lambda place: -costs[place]):
        cost, number = heappop(cheapest)
        parts[number].append(place)
        if len(parts[number]) < room:
            heappush(cheapest, (cost + costs[place], number))
    parts.sort(key=lambda part: -sum(costs[place] for place in part))
    return [place for part in parts for place in _balanced(part, costs, others)]


def _prime_factors(number: int) -> list[int]:
    """In rising order: twos come first, as numbers of ranks are mostly powers of two."""
    found: list[int] = []
    factor = 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found


def spaced(costs: Sequence[int], *, stages: int) -> list[int]:
    """The places of a rank's microbatches in the order in which it computes them.

    Where equal numbers of sequences cannot be made equal in cost, the order decides how long others
    wait. On one stage, costlier ones come first, as on every rank: those that meet are alike. The
    first of several stages computes the backward of one microbatch and the forward of that `stages`
    further on while the others do one: so many costly ones are followed by as many cheap ones.

    Args:
        costs: of each microbatch.
        stages: of the pipeline.
    """
    falling = sorted(range(len(costs)), key=lambda place: -costs[place])
    if len(set(costs)) == 1:
        return list(range(len(costs)))
    if stages == 1:
        return falling
    half = (len(costs) + 1) // 2
    costly, cheap = falling[:half], falling[: half - 1 : -1]
    return [
        place
        for first in range(0, half, stages)
        for part in (costly, cheap)
        for place in part[first : first + stages]
    ]
