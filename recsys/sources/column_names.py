"""English words by topic, for the item texts of the synthetic world.

Why real words: a pretrained sentence encoder then encodes the planted topics like real ones.
"""

from __future__ import annotations

from typing import Final

_TEXT: Final = """
cooking: recipe oven simmer garlic sauce bake flour skillet roast herbs butter dough soup spice
football: goal striker penalty league referee midfield stadium defender kickoff dribble goalkeeper
    coach derby offside
astronomy: telescope galaxy planet nebula comet orbit eclipse asteroid lunar supernova constellation
    stargazing cosmos meteor
gardening: soil seedling compost pruning tulip greenhouse watering mulch orchard lawn perennial
    rosebush weeding trowel
jazz: saxophone swing trumpet improvisation bebop quartet ballad blues trombone syncopation
    bandstand drummer melody groove
programming: compiler python algorithm debugging database backend software recursion developer
    server kernel refactor code api
sailing: yacht regatta anchor harbour rigging spinnaker keel navigation skipper mast windward marina
    hull tide
photography: camera lens exposure portrait shutter aperture tripod darkroom landscape flash negative
    focus print zoom
chess: checkmate bishop gambit grandmaster endgame pawn castling knight rook stalemate tournament
    opening blitz zugzwang
medicine: diagnosis surgeon vaccine symptom hospital therapy antibiotic patient clinic anatomy
    cardiology nurse fever dosage
cycling: bicycle peloton saddle derailleur helmet gravel climb sprint velodrome pedal tyre breakaway
    chainring tour
fashion: couture runway fabric silk dress tailor wardrobe denim stiletto handbag vintage embroidery
    scarf designer
history: medieval empire archaeology dynasty revolution monarch treaty manuscript battlefield castle
    ancient archive crusade pharaoh
finance: stocks dividend portfolio mortgage interest hedge bonds inflation broker currency savings
    equity audit budget
camping: tent campfire hiking backpack trail wilderness lantern compass sleeping canoe mountain
    summit forest boots
painting: canvas watercolour easel pigment brush gallery acrylic fresco sketch impressionist palette
    mural oil portraiture
dogs: puppy leash kennel terrier retriever obedience bark collar labrador poodle spaniel grooming
    fetch breed
coffee: espresso barista roaster latte grinder arabica cappuccino aroma filter mocha beans brew
    crema percolator
horror: haunted vampire zombie ghost slasher demon nightmare werewolf creepy graveyard exorcism
    monster scream cursed
yoga: meditation asana breathing stretch mindfulness lotus chakra flexibility mat vinyasa posture
    relaxation namaste mantra
trains: locomotive railway carriage station signal steam freight timetable tunnel platform conductor
    track express viaduct
fishing: angler trout bait rod salmon lure reel river carp tackle hook pike fly netting
robotics: robot sensor actuator gripper autonomous drone servo automation circuit arduino gearbox
    lidar humanoid controller
poetry: sonnet verse rhyme stanza haiku metaphor lyric poet ode elegy couplet anthology iambic
    refrain
"""

TOPICS: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(words.split())
    for name, words in (
        entry.split(":") for entry in _TEXT.replace("\n    ", " ").strip().split("\n")
    )
}


def topic_words(num_topics: int) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names and words of ``num_topics`` topics; after the listed topics come pairs of them.

    >>> names, words = topic_words(30)
    >>> names[0], names[24], len(set(names))
    ('cooking', 'cooking & football', 30)
    """
    names = list(TOPICS)
    step = 1
    while len(names) < num_topics:
        pairs = [f"{one} & {other}" for one, other in zip(TOPICS, _rotated(step), strict=True)]
        names += pairs
        step += 1
    chosen = names[:num_topics]
    return tuple(chosen), tuple(_words(name) for name in chosen)


def _rotated(step: int) -> list[str]:
    names = list(TOPICS)
    shift = step % len(names)
    suffix = "" if step < len(names) else f" {step // len(names)}"
    return [name + suffix for name in names[shift:] + names[:shift]]


def _words(name: str) -> tuple[str, ...]:
    parts = [TOPICS[part.rstrip(" 0123456789")] for part in name.split(" & ")]
    return parts[0] if len(parts) == 1 else parts[0][:7] + parts[1][:7]
