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
