"""Generates the sentences of the demo task: who gave what to whom, who is taller, where the key is now.

Every *scene* is a short text with *claims* about it. A claim is a pair of sentences with the same wording: one follows
from the text and one does not, mostly because two words are swapped. Both use only words that are plausible in the
text, so a bag of words cannot separate them; order, roles and relations across sentences can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Words = tuple[str, ...]
Wordings = tuple[str, ...]  # ways to state one fact; swapping {a} and {b} gives a claim that does not follow
Claim = tuple[str, str]
Item = TypeVar("Item")


def words(text: str) -> Words:
    """Split a string into words."""
    return tuple(text.split())


NAMES = words(
    "Adam Alice Anna Ben Carla Daniel David Diana Ella Emma Eric Eva Felix Frank George Grace Hannah Henry Ida Jack "
    "James Julia Kate Laura Leo Lily Lucas Maria Martin Max Nina Nora Oliver Oscar Paul Peter Rosa Ruth Sam Sarah"
)
THINGS = words(
    "ball book bottle camera candle clock coat coin cup guitar hat key knife lamp letter map pen phone photo ring "
    "scarf ticket umbrella watch"
)
CONTAINERS = words("bag basket box bucket chest cupboard drawer jar sack suitcase")
ROOMS = words("attic bathroom bedroom cellar garage garden hall kitchen library office shed workshop")
FOODS = words("bread cake cheese coffee fish honey milk rice soup tea")
ABILITIES = words("cook dance draw drive paint sing ski swim type whistle")

TRANSFERS: tuple[Wordings, ...] = (
    ("{a} gave the {x} to {b}", "{a} gave {b} the {x}", "{b} got the {x} from {a}", "{b} was given the {x} by {a}"),
    ("{a} sold the {x} to {b}", "{a} sold {b} the {x}", "{b} bought the {x} from {a}"),
    ("{a} lent the {x} to {b}", "{a} lent {b} the {x}", "{b} borrowed the {x} from {a}"),
    ("{a} sent the {x} to {b}", "{a} sent {b} the {x}", "{b} received the {x} from {a}"),
)
ACTS: tuple[Wordings, ...] = tuple(
    (f"{{a}} {verb} {{b}}", f"{{b}} was {verb} by {{a}}", f"it was {{a}} who {verb} {{b}}")
    for verb in words("called followed found helped invited praised thanked visited warned watched")
)
PEOPLE_COMPARED: tuple[Wordings, ...] = tuple(
    (f"{{a}} is {more} than {{b}}", f"{{b}} is {less} than {{a}}", f"{{b}} is not as {plain} as {{a}}")
    for plain, more, less in (
        ("tall", "taller", "shorter"),
        ("old", "older", "younger"),
        ("fast", "faster", "slower"),
        ("strong", "stronger", "weaker"),
        ("rich", "richer", "poorer"),
    )
)
ORDER_IN_TIME: tuple[Wordings, ...] = tuple(
    (f"{{a}} {verb} before {{b}}", f"{{b}} {verb} after {{a}}", f"{{b}} {verb} later than {{a}}")
    for verb in ("arrived", "finished", "left", "started", "woke up")
)
THINGS_COMPARED: tuple[Wordings, ...] = tuple(
    (f"the {{a}} is {more} than the {{b}}", f"the {{b}} is {less} than the {{a}}")
    for more, less in (("heavier", "lighter"), ("bigger", "smaller"), ("newer", "older"), ("cleaner", "dirtier"))
)
POSITIONS: tuple[Wordings, ...] = tuple(
    (f"the {{a}} is {here} the {{b}}", f"the {{b}} is {there} the {{a}}")
    for here, there in (("above", "below"), ("to the left of", "to the right of"), ("in front of", "behind"))
)


@dataclass(frozen=True)
class Cast:
    """The vocabulary that scenes draw from; the full vocabulary by default."""

    names: Words = NAMES
    things: Words = THINGS
    containers: Words = CONTAINERS
    rooms: Words = ROOMS
    foods: Words = FOODS
    abilities: Words = ABILITIES
    transfers: tuple[Wordings, ...] = TRANSFERS
    acts: tuple[Wordings, ...] = ACTS
    people_in_order: tuple[Wordings, ...] = PEOPLE_COMPARED + ORDER_IN_TIME
    things_in_order: tuple[Wordings, ...] = THINGS_COMPARED + POSITIONS


def small_cast(rng: Random, size: int) -> Cast:
    """A random cast with as many people and things as one scene needs."""

    def few(everything: tuple[Item, ...], count: int) -> tuple[Item, ...]:
        return tuple(rng.sample(everything, count))

    return Cast(
        names=few(NAMES, size),
        things=few(THINGS, size),
        containers=few(CONTAINERS, 2),
        rooms=few(ROOMS, 2),
        foods=few(FOODS, 2),
        abilities=few(ABILITIES, 1),
        transfers=few(TRANSFERS, 2),
        acts=few(ACTS, 2),
        people_in_order=few(Cast.people_in_order, 1),
        things_in_order=few(Cast.things_in_order, 1),
    )


@dataclass(frozen=True)
class Scene:
    """A text and claims about it, each as (a sentence that follows, a sentence that does not)."""

    text: str
    claims: tuple[Claim, ...]


def sentence(clause: str) -> str:
    """`anna is here` becomes `Anna is here.`"""
    return f"{clause[0].upper()}{clause[1:]}."


def sentences(clauses: list[str]) -> str:
    """Each clause as its own sentence."""
    return " ".join(map(sentence, clauses))


def joined(rng: Random, clauses: list[str]) -> str:
    """The clauses as a short text: one sentence each, or the first two joined in one sentence."""
    if rng.random() < 0.5:
        return sentences(clauses)
    return sentences([rng.choice((", and ", ", while ")).join(clauses[:2]), *clauses[2:]])


def claim(true_clause: str, false_clause: str) -> Claim:
    """Both clauses as sentences."""
    return sentence(true_clause), sentence(false_clause)


def swapped(wording: str, a: str, b: str, x: str = "") -> Claim:
    """The fact, and the same wording with the two roles swapped."""
    return claim(wording.format(a=a, b=b, x=x), wording.format(a=b, b=a, x=x))


def one_event(rng: Random, cast: Cast) -> Scene:
    """Anna lent the lamp to Paul. -> Paul borrowed the lamp from Anna."""
    a, b = rng.sample(cast.names, 2)
    x = rng.choice(cast.things)
    wordings = rng.choice((*cast.transfers, *cast.acts))
    spoken, *others = rng.sample(wordings, len(wordings))
    return Scene(sentence(spoken.format(a=a, b=b, x=x)), tuple(swapped(other, a, b, x) for other in others))


def two_events(rng: Random, cast: Cast) -> Scene:
    """Anna sold the lamp to Paul, and Ruth sent Leo the map. -> Leo received the map from Ruth."""
    a, b, c, d = rng.sample(cast.names, 4)
    if rng.random() < 0.5:  # one person takes part in both events
        c, d = rng.choice(((a, c), (c, a), (b, c), (c, b)))
    x, y = rng.sample(cast.things, 2)
    first, second = rng.sample(rng.choice((cast.transfers, cast.acts)), 2)
    text = joined(rng, [rng.choice(first).format(a=a, b=b, x=x), rng.choice(second).format(a=c, b=d, x=y)])
    return Scene(text, (swapped(rng.choice(first), a, b, x), swapped(rng.choice(second), c, d, y)))


def passed_on(rng: Random, cast: Cast) -> Scene:
    """Anna gave the lamp to Paul, who sold it to Ruth. -> Ruth has the lamp now."""
    a, b, c = rng.sample(cast.names, 3)
    x = rng.choice(cast.things)
    first, second = rng.sample(cast.transfers, 2)
    passing_on = second[0].replace("{a} ", "who ").replace("the {x}", "it").format(b=c)
    text = sentence(f"{first[0].format(a=a, b=b, x=x)}, {passing_on}")
    holder = claim(f"{c} has the {x} now", f"{rng.choice((a, b))} has the {x} now")
    return Scene(text, (holder, swapped(rng.choice(first), a, b, x), swapped(rng.choice(second), b, c, x)))


def in_order(rng: Random, cast: Cast) -> tuple[Words, Wordings]:
    """The names to compare and the wordings of a transitive comparison."""
    if rng.random() < 0.6:
        return cast.names, rng.choice(cast.people_in_order)
    return cast.things, rng.choice(cast.things_in_order)


def one_order(rng: Random, cast: Cast) -> Scene:
    """Anna is taller than Paul. -> Paul is shorter than Anna."""
    compared, wordings = in_order(rng, cast)
    a, b = rng.sample(compared, 2)
    spoken, *others = rng.sample(wordings, len(wordings))
    return Scene(sentence(spoken.format(a=a, b=b)), tuple(swapped(other, a, b) for other in others))


def two_orders(rng: Random, cast: Cast) -> Scene:
    """Anna is taller than Paul. Ruth is shorter than Paul. -> Ruth is shorter than Anna."""
    compared, wordings = in_order(rng, cast)
    a, b, c = rng.sample(compared, 3)
    steps = [rng.choice(wordings).format(a=a, b=b), rng.choice(wordings).format(a=b, b=c)]
    near = rng.choice(((a, b), (b, c)))
    text = joined(rng, rng.sample(steps, 2))
    return Scene(text, (swapped(rng.choice(wordings), a, c), swapped(rng.choice(wordings), *near)))


def three_orders(rng: Random, cast: Cast) -> Scene:
    """Anna is taller than Paul. Leo is shorter than Ruth. Paul is taller than Ruth. -> Leo is shorter than Anna."""
    compared, wordings = in_order(rng, cast)
    a, b, c, d = rng.sample(compared, 4)
    steps = [rng.choice(wordings).format(a=first, b=second) for first, second in ((a, b), (b, c), (c, d))]
    far = rng.choice(((a, c), (b, d)))
    text = joined(rng, rng.sample(steps, 3))
    return Scene(text, (swapped(rng.choice(wordings), a, d), swapped(rng.choice(wordings), *far)))


def moved(rng: Random, cast: Cast) -> Scene:
    """Anna took the key out of the box and put it in the bag. -> The key is in the bag now."""
    a, x = rng.choice(cast.names), rng.choice(cast.things)
    old, new = rng.sample(cast.containers, 2)
    text = rng.choice(
        (
            f"{a} put the {x} in the {old} and later moved it to the {new}",
            f"{a} took the {x} out of the {old} and put it in the {new}",
            f"the {x} is in the {new}, but at first it was in the {old}",
            f"before {a} moved it to the {new}, the {x} was in the {old}",
            f"{a} moved the {x} to the {new} after it had been in the {old}",
        )
    )
    claims = (
        claim(f"the {x} is in the {new} now", f"the {x} is in the {old} now"),
        claim(f"the {x} was in the {old} at first", f"the {x} was in the {new} at first"),
    )
    return Scene(sentence(text), claims)


def placed(rng: Random, cast: Cast) -> Scene:
    """Anna left the key in the hall, and Paul left the map in the shed. -> The map was in the shed."""
    a, b = rng.sample(cast.names, 2)
    x, y = rng.sample(cast.things, 2)
    p, q = rng.sample(rng.choice((cast.rooms, cast.containers)), 2)
    before, after, verb = rng.choice((("{} left the ", "", "was"), ("{} found the ", "", "was"), ("the ", " is", "is")))
    first, second = (f"{before}{thing}{after} in the {place}" for thing, place in ((x, p), (y, q)))
    return Scene(
        joined(rng, [first.format(a), second.format(b)]),
        (
            claim(f"the {x} {verb} in the {p}", f"the {x} {verb} in the {q}"),
            claim(f"the {y} {verb} in the {q}", f"the {y} {verb} in the {p}"),
        ),
    )


def inside(rng: Random, cast: Cast) -> Scene:
    """The coin is in the box, and the map is in the bag. The bag is in the hall. -> The map is in the hall."""
    x, y = rng.sample(cast.things, 2)
    room = rng.choice(cast.rooms)
    if rng.random() < 0.5:
        p, q = (f"the {container}" for container in rng.sample(cast.containers, 2))
        steps = [f"the {x} is in {p}", f"the {y} is in {q}"]
    else:
        p, q = rng.sample(cast.names, 2)
        steps = [f"{p} is carrying the {x}", f"{q} is carrying the {y}"]
    text = joined(rng, [*rng.sample(steps, 2), f"{p} is in the {room}"])
    return Scene(text, (claim(f"the {x} is in the {room}", f"the {y} is in the {room}"),))


def likes(rng: Random, cast: Cast) -> Scene:
    """Anna likes tea but not milk. Paul hates tea. -> Anna does not like milk."""
    a, b = rng.sample(cast.names, 2)
    x, y = rng.sample(cast.foods, 2)
    wordings = ("{a} likes {x} but not {y}", "{a} does not like {y} but likes {x}", "{a} likes {x} and hates {y}")
    clauses = [rng.choice(wordings).format(a=a, x=x, y=y)]
    if rng.random() < 0.5:
        clauses.append(rng.choice(wordings).format(a=b, x=y, y=x))
    claims = (
        claim(f"{a} likes {x}", f"{a} likes {y}"),
        claim(f"{a} does not like {y}", f"{a} does not like {x}"),
    )
    return Scene(sentences(rng.sample(clauses, len(clauses))), claims)


def able(rng: Random, cast: Cast) -> Scene:
    """Unlike Paul, Anna can swim. -> Paul cannot swim."""
    a, b = rng.sample(cast.names, 2)
    do = rng.choice(cast.abilities)
    text = rng.choice((f"{a} can {do}, but {b} cannot", f"{b} cannot {do}, but {a} can", f"unlike {b}, {a} can {do}"))
    claims = claim(f"{a} can {do}", f"{b} can {do}"), claim(f"{b} cannot {do}", f"{a} cannot {do}")
    return Scene(sentence(text), claims)


def either_or(rng: Random, cast: Cast) -> Scene:
    """Either Anna or Paul has the key. Paul does not have it. -> Anna has the key."""
    x = rng.choice(cast.things)
    if rng.random() < 0.5:
        a, b = rng.sample(cast.names, 2)
        first, second = rng.sample((a, b), 2)
        text = sentences([f"either {first} or {second} has the {x}", f"{b} does not have it"])
        return Scene(text, (claim(f"{a} has the {x}", f"{b} has the {x}"),))
    p, q = rng.sample(cast.containers, 2)
    first, second = rng.sample((p, q), 2)
    text = sentences([f"the {x} is in the {first} or in the {second}", f"it is not in the {q}"])
    return Scene(text, (claim(f"the {x} is in the {p}", f"the {x} is in the {q}"),))


Kind = Callable[[Random, Cast], Scene]
# Every kind with the cast size it needs. Some multi-step kinds are listed twice, so that they are drawn more often.
KINDS: tuple[tuple[Kind, int], ...] = (
    (one_event, 2),
    (two_events, 4),
    (two_events, 4),
    (passed_on, 3),
    (passed_on, 3),
    (one_order, 2),
    (two_orders, 3),
    (two_orders, 3),
    (three_orders, 4),
    (moved, 2),
    (placed, 2),
    (placed, 2),
    (inside, 2),
    (inside, 2),
    (likes, 2),
    (able, 2),
    (either_or, 2),
)
