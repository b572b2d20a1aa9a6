"""A small world to read about, so that everything runs without a network.

The texts tell of ninety-six things of eight kinds, of people who find them, of sums and of
spelling. Text number i is a function of i and a seed, whatever was made before it; a digest of
them says that two machines read the same.
"""

import hashlib
from collections.abc import Iterable
from random import Random

KINDS = {
    "bird": "robin sparrow heron finch magpie starling kestrel pelican puffin raven swallow wren",
    "fish": "salmon trout herring mackerel sardine tuna perch carp haddock halibut minnow eel",
    "tree": "maple birch willow poplar cedar larch beech chestnut hawthorn juniper rowan spruce",
    "tool": "hammer chisel wrench spanner axe mallet ladder shovel sickle trowel drill saw",
    "fruit": "apple banana cherry mango papaya peach plum quince raisin tangerine pear fig",
    "vehicle": "tram lorry canoe bicycle tractor ferry wagon sledge yacht scooter train van",
    "garment": "jacket sweater shirt mitten scarf bonnet apron glove sandal slipper coat vest",
    "instrument": "violin trumpet flute clarinet bassoon banjo guitar piano tuba harp cello drum",
}
THINGS = {thing: kind for kind, things in KINDS.items() for thing in things.split()}
WORDS = tuple(THINGS)

_PEOPLE = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Mira",
    "Nils",
    "Olga",
    "Paul",
]
_PLACES = [
    "garden",
    "harbour",
    "market",
    "museum",
    "kitchen",
    "meadow",
    "workshop",
    "station",
    "library",
    "village",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_VERBS = ["sees", "finds", "draws", "remembers", "describes", "wants", "mentions", "studies"]
_MOODS = ["happy", "curious", "tired", "proud", "quiet", "surprised", "busy", "calm"]

CITY = "the town of Aldermoor"


def a(noun: str) -> str:
    """A noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def spelled(word: str) -> str:
    """A word letter by letter."""
    return "-".join(word)


def document(index: int, seed: int = 0) -> str:
    """Text number `index`: a few paragraphs of one to four sentences."""
    rng = Random(f"{seed}:{index}")
    return "\n\n".join(_paragraph(rng) for _ in range(rng.randint(2, 6)))


def documents(count: int, seed: int = 0) -> list[str]:
    """The first `count` texts."""
    return [document(index, seed) for index in range(count)]


def digest(texts: Iterable[str]) -> str:
    """SHA-256 over texts and where each one ends."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()


def _paragraph(rng: Random) -> str:
    kind = rng.choice((_story, _facts, _facts, _sums, _letters))
    return " ".join(kind(rng))


def _story(rng: Random) -> list[str]:
    person, friend = rng.sample(_PEOPLE, 2)
    thing, place = rng.choice(WORDS), rng.choice(_PLACES)
    first = (
        f"On {rng.choice(_DAYS)} {person} walks to the {place} in {CITY}.",
        f"{person} lives near the {place} in {CITY}.",
        f"It is {rng.choice(_DAYS)}, and {person} is in the {place}.",
    )
    then = (
        f"There {person} {rng.choice(_VERBS)} {a(thing)}, and {a(thing)} is {a(THINGS[thing])}.",
        f"{friend} {rng.choice(_VERBS)} {a(thing)} and tells {person} about it.",
        f"{person} asks {friend} about the {thing}.",
    )
    end = (
        f"In the evening {person} is {rng.choice(_MOODS)}.",
        f"{friend} and {person} go home together.",
        f"Later both are {rng.choice(_MOODS)}.",
    )
    return [rng.choice(first), rng.choice(then), rng.choice(end)]


def _facts(rng: Random) -> list[str]:
    thing, other = rng.sample(WORDS, 2)
    kind = THINGS[thing]
    sentences = [
        f"{a(thing).capitalize()} is {a(kind)}.",
        f"Every {thing} is {a(kind)}, but not every {kind} is {a(thing)}.",
        f"The {thing} belongs to the same kind as {a(rng.choice(KINDS[kind].split()))}: "
        f"it is {a(kind)}.",
        f"{a(thing).capitalize()} is {a(kind)} and {a(other)} is {a(THINGS[other])}.",
    ]
    return rng.sample(sentences, rng.randint(1, 3))


def _sums(rng: Random) -> list[str]:
    sentences = []
    for _ in range(rng.randint(1, 4)):
        left, right = rng.randint(0, 9), rng.randint(0, 9)
        sentences.append(f"{left} plus {right} is {left + right}.")
    return sentences


def _letters(rng: Random) -> list[str]:
    word = rng.choice(WORDS)
    return [
        f"The word {word} is spelled {spelled(word)}.",
        f"It has {len(word)} letters and begins with {word[0]}.",
    ]
