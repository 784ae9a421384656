"""English for scenes: many wordings of the same thing, in any order, with parts left out."""

import random
import re
from collections.abc import Mapping

from longlive_trt.demo.scenes import ATTRIBUTES

Phrases = Mapping[str, tuple[str, ...]]

NOUNS: Phrases = {
    "car": ("car", "car", "automobile", "little car", "motor car"),
    "train": ("train", "train", "steam train", "locomotive", "railway train"),
    "boat": ("boat", "boat", "sailboat", "sailing boat", "ship", "sailing ship", "yacht"),
    "balloon": ("balloon", "balloon", "hot air balloon", "air balloon"),
    "bird": ("bird", "bird", "little bird", "songbird"),
}
VERBS: Phrases = {
    "car": ("drives", "rolls", "travels", "driving", "rolling", "is driving", "goes", "moves",
            "is on its way", "drive", "moving", "traveling"),
    "train": ("rides", "steams", "travels", "rolling", "rolls", "is traveling", "goes", "moves",
              "is on its way", "steaming", "runs", "running", "moving"),
    "boat": ("sails", "drifts", "sailing", "drifting", "travels", "is sailing", "goes", "moves",
             "glides", "is on its way", "gliding", "moving"),
    "balloon": ("floats", "drifts", "floating", "drifting", "glides", "is floating", "flies",
                "moves", "hovers", "flying", "travels", "moving"),
    "bird": ("flies", "flaps", "flying", "glides", "soars", "is flying", "travels", "moves",
             "soaring", "gliding", "flapping", "moving"),
}  # fmt: skip
# Verbs that say a pace, of which some fit one kind of traveler alone.
PACED_VERBS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "slow": {
        "": ("creeps", "ambles", "strolls", "wanders", "crawls", "creeping", "wandering"),
        "balloon": ("hovers slowly", "wafts"),
    },
    "fast": {
        "": ("hurries", "races", "speeds", "rushes", "dashes", "hurrying", "racing", "speeding"),
        "bird": ("darts", "shoots"),
    },
}
COLORS: Phrases = {
    "red": ("red", "red", "crimson", "scarlet", "bright red"),
    "orange": ("orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "golden", "bright yellow"),
    "green": ("green", "green", "emerald", "bright green"),
    "blue": ("blue", "blue", "azure", "bright blue"),
    "purple": ("purple", "purple", "violet"),
    "white": ("white", "white", "snow white"),
}
PACES: Phrases = {
    "slow": ("slowly", "slowly", "slow", "leisurely", "gently", "at a slow pace", "without hurry",
             "unhurried", "calmly"),
    "medium": ("", "", "steadily", "at a steady pace"),
    "fast": ("fast", "fast", "quickly", "at high speed", "rapidly", "in a hurry", "swiftly",
             "at full speed", "very fast"),
}  # fmt: skip
DIRECTIONS: Phrases = {
    "left": ("left", "to the left", "to the left", "leftward", "toward the left",
             "from right to left", "leftwards", "heading left"),
    "right": ("right", "to the right", "to the right", "rightward", "toward the right",
              "from left to right", "rightwards", "heading right"),
}  # fmt: skip
PLACES: Phrases = {
    "sea": ("over the sea", "at sea", "on the ocean", "across the ocean", "by the sea",
            "above the waves", "on the sea", "across the sea", "over the water", "on the waves"),
    "desert": ("through the desert", "in the desert", "across the desert", "among the dunes",
               "over sand and cactus", "past dunes and cacti", "over the desert", "on desert sand"),
    "mountains": ("through the mountains", "in the mountains", "among snowy peaks",
                  "past the mountains", "in the alps", "past high peaks", "over the mountains",
                  "through mountain country"),
    "forest": ("through the forest", "in the woods", "in the forest", "past the trees of a forest",
               "through the woods", "among the trees", "over the forest", "through a forest"),
    "city": ("through the city", "in the city", "in town", "through the town",
             "past tall buildings", "downtown", "past houses and towers", "over the city"),
    "meadow": ("through the meadow", "across green meadows", "in the countryside",
               "past fields and flowers", "over the meadow", "among windmills",
               "through a meadow", "over green fields", "through the fields"),
}  # fmt: skip
TIMES: Phrases = {
    "morning": ("in the morning", "at dawn", "early in the morning", "at sunrise",
                "on a bright morning", "morning", "in the early morning", "at daybreak"),
    "noon": ("at noon", "at midday", "in the middle of the day", "in daylight", "by day", "noon",
             "in the daytime", "in full daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening", "under a red evening sky",
               "as the sun sets", "sunset", "at twilight", "as the sun goes down"),
    "night": ("at night", "under the moon", "in the dark", "by moonlight", "at midnight", "night",
              "by night", "under the stars"),
}  # fmt: skip
WEATHERS: Phrases = {
    "clear": ("under a clear sky", "in clear weather", "clear", "in fine weather",
              "with clear skies", "in good weather"),
    "rain": ("in the rain", "in rainy weather", "it is raining", "rain", "in a downpour",
             "while rain falls", "through the rain", "in heavy rain", "as it rains"),
    "snow": ("in the snow", "while it snows", "snow", "in falling snow", "it is snowing",
             "through the snow", "in a snowstorm", "in snowfall", "as snow falls"),
    "fog": ("in the fog", "in thick fog", "fog", "in the mist", "on a foggy day", "misty",
            "through the fog", "foggy weather", "in the haze"),
}  # fmt: skip
_ARTICLES = ("a", "a", "the", "one", "", "the same", "this")
_SIZES = ("", "", "", "", "small", "lonely", "pretty", "shiny", "old", "big", "little")
_LEAD_INS = ("", "", "", "", "a picture of", "a video of", "there is", "we see", "now")
_DROP = {"color": 0.08, "place": 0.08, "time": 0.10, "weather": 0.10, "direction": 0.18,
         "pace": 0.15}  # fmt: skip
_DROP_CLEAR = 0.5
_TABLES = (NOUNS, VERBS, COLORS, PACES, DIRECTIONS, PLACES, TIMES, WEATHERS)
SPOKEN = tuple(_DROP)
"""The attributes that a caption may leave out; the traveler is always named."""
STEERING = ("color", "direction", "pace")
"""What history tells as well as words do, so that words are easily overheard."""


def vocabulary() -> list[str]:
    """Every word that a caption may hold, sorted."""
    phrases = [p for table in _TABLES for choices in table.values() for p in choices]
    phrases += [p for verbs in PACED_VERBS.values() for choices in verbs.values() for p in choices]
    known = {w for p in (*phrases, *_ARTICLES, *_SIZES, *_LEAD_INS, "and") for w in words(p)}
    return sorted(known)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def caption(scene: Mapping[str, int], rng: random.Random, drop: float = 1.0) -> str:
    """One wording of a scene, whose attributes are left out ``drop`` times as often as usual."""
    return stated_caption(scene, rng, drop)[0]


def stated_caption(
    scene: Mapping[str, int], rng: random.Random, drop: float = 1.0
) -> tuple[str, dict[str, int]]:
    """A wording, and the attributes that it states."""
    text, _, stated = caption_pair(scene, rng, drop)
    return text, stated


def caption_pair(
    scene: Mapping[str, int], rng: random.Random, drop: float = 1.0
) -> tuple[str, str, dict[str, int]]:
    """A wording, the same without its words of ``STEERING``, and the attributes that it states."""
    said = {name: values[scene[name]] for name, values in ATTRIBUTES.items()}
    for attribute, often in _DROP.items():
        if attribute == "weather" and said["weather"] == "clear":
            often = _DROP_CLEAR
        if rng.random() < often * drop:
            said[attribute] = ""
    stated = {name: scene[name] for name, value in said.items() if value}
    if said["pace"] == "medium":
        # Most of its wordings say nothing.
        del stated["pace"]
    begun = rng.getstate()
    silent = _Wording(said, rng, silent=STEERING).sentence()
    rng.setstate(begun)
    return _Wording(said, rng).sentence(), silent, stated


class _Wording:
    """Of what is silent, words are drawn all the same, so that the others stay as they are."""

    def __init__(
        self, said: dict[str, str], rng: random.Random, silent: tuple[str, ...] = ()
    ) -> None:
        self.said, self.rng, self.silent = said, rng, silent

    def sentence(self) -> str:
        rng = self.rng
        noun = " ".join([rng.choice(_SIZES), self._one_of(COLORS, "color"), self._noun()])
        verb, manner = self._verb_and_manner()
        place = self._one_of(PLACES, "place")
        around = [self._one_of(TIMES, "time"), self._one_of(WEATHERS, "weather")]
        rng.shuffle(around)
        style = rng.random()
        clause = [rng.choice(_ARTICLES), noun, verb, *manner]
        if style < 0.18:
            parts = [noun, *manner, place, *around]
            rng.shuffle(parts)
            text = ", ".join(p for p in parts if p.strip())
        elif style < 0.55:
            text = " ".join([rng.choice(_LEAD_INS), *clause, place, *around])
        elif style < 0.75:
            text = " ".join([*around, place]) + ", " + " ".join(clause)
        elif style < 0.88:
            text = " ".join([*around, *clause, place])
        else:
            text = " ".join([*clause, *around, place])
        return re.sub(r"\s+", " ", text).strip(" ,").replace(" ,", ",")

    def _one_of(self, table: Phrases, attribute: str) -> str:
        value = self.said[attribute]
        phrase = self.rng.choice(table[value]) if value else ""
        return "" if attribute in self.silent else phrase

    def _noun(self) -> str:
        return self.rng.choice(NOUNS[self.said["traveler"]])

    def _verb_and_manner(self) -> tuple[str, list[str]]:
        rng, traveler, pace = self.rng, self.said["traveler"], self.said["pace"]
        direction = self._one_of(DIRECTIONS, "direction")
        if pace in PACED_VERBS and rng.random() < 0.35:
            verbs = PACED_VERBS[pace]
            verb = rng.choice(verbs[""] + verbs.get(traveler, ()))
            return "" if "pace" in self.silent else verb, [direction]
        manner = [self._one_of(PACES, "pace"), direction]
        rng.shuffle(manner)
        return rng.choice(VERBS[traveler]), manner
