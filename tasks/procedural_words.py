"""Word lists of the procedural suite. Each word is one piece of the suite's vocabulary."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES = {
    "animal": _words("cat dog horse cow pig sheep lion tiger bear wolf fox mouse"),
    "food": _words("bread cheese rice soup cake egg apple pear plum lemon grape onion"),
    "colour": _words("red blue green black white pink brown grey yellow purple gold silver"),
    "tool": _words("hammer saw drill axe spade rake ladder nail screw knife brush rope"),
    "garment": _words("shirt coat hat shoe sock scarf glove dress belt skirt boot jacket"),
    "vehicle": _words("car bus train truck plane boat bike ship tram van taxi ferry"),
    "furniture": _words("table chair bed sofa desk shelf lamp stool bench couch cupboard mirror"),
    "instrument": _words("piano guitar violin drum flute harp trumpet banjo cello organ bell horn"),
    "plant": _words("rose oak tulip pine lily fern daisy birch moss ivy willow cactus"),
    "job": _words("doctor nurse baker farmer pilot teacher cook judge painter singer driver miner"),
    "country": _words("france spain italy greece egypt china japan india brazil peru kenya norway"),
    "sport": _words("tennis golf hockey rugby football cricket boxing rowing skiing judo cycling sailing"),
}
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
THINGS = tuple(CATEGORY_OF)


def of_categories(*categories: str) -> tuple[str, ...]:
    return tuple(word for category in categories for word in CATEGORIES[category])



# Few enough that each occurs in dozens of training tasks.
NAMES = _words("anna bob tom eve max lucy sam kate")
CITIES = _words("rome paris london berlin madrid oslo vienna prague athens cairo delhi tokyo lima boston dublin lisbon")
DRINKS = _words("tea coffee milk water juice cocoa wine beer cider cola lemonade soda punch rum mead broth")
OBJECTS = _words("ball key cup coin ring book letter pen doll map candle stone clock bottle")
PLACES = _words("box bag drawer kitchen garden car basket room cave tent barn tower")
FIELDS = _words("pet city hobby drink team school street hair house band number language")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

MONTHS = _words("january february march april may june july august september october november december")
SEASONS = dict(
    zip(MONTHS, _words("winter winter spring spring spring summer summer summer autumn autumn autumn winter"))
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")

NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
ORDINALS = _words(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
ROMANS = _words("nil I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX")
RADIO = _words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)

# base, past, progressive, third person
VERBS = tuple(
    map(
        _words,
        (
            "walk walked walking walks",
            "sing sang singing sings",
            "run ran running runs",
            "write wrote writing writes",
            "eat ate eating eats",
            "sleep slept sleeping sleeps",
            "swim swam swimming swims",
            "speak spoke speaking speaks",
            "jump jumped jumping jumps",
            "draw drew drawing draws",
            "fly flew flying flies",
            "sell sold selling sells",
            "laugh laughed laughing laughs",
            "go went going goes",
            "buy bought buying buys",
            "ride rode riding rides",
            "throw threw throwing throws",
            "carry carried carrying carries",
            "sit sat sitting sits",
            "think thought thinking thinks",
        ),
    )
)
PLURALS = dict(
    map(
        _words,
        (
            "child children",
            "man men",
            "woman women",
            "tooth teeth",
            "goose geese",
            "church churches",
            "village villages",
            "leaf leaves",
            "baby babies",
            "story stories",
            "bird birds",
            "flower flowers",
            "dish dishes",
            "king kings",
            "foot feet",
            "hero heroes",
        ),
    )
)
# adjective, opposite, comparative, superlative
ADJECTIVES = tuple(
    map(
        _words,
        (
            "big small bigger biggest",
            "small big smaller smallest",
            "hot cold hotter hottest",
            "cold hot colder coldest",
            "old young older oldest",
            "young old younger youngest",
            "fast slow faster fastest",
            "slow fast slower slowest",
            "high low higher highest",
            "low high lower lowest",
            "hard soft harder hardest",
            "soft hard softer softest",
            "rich poor richer richest",
            "poor rich poorer poorest",
            "strong weak stronger strongest",
            "weak strong weaker weakest",
            "long short longer longest",
            "short long shorter shortest",
            "dark bright darker darkest",
            "bright dark brighter brightest",
        ),
    )
)
LANGUAGES = _words("spanish french")
# english, then one word per language of LANGUAGES (lower case, without accents)
TRANSLATIONS = tuple(
    map(
        _words,
        (
            "hound perro chien hund cane",
            "home casa maison haus dimora",
            "sun sol soleil sonne sole",
            "moon luna lune mond astro",
            "friend amigo ami freund amico",
            "night noche nuit nacht notte",
            "sea mar mer meer mare",
            "door puerta porte pforte porta",
            "fish pez poisson fisch pesce",
            "snow nieve neige schnee neve",
            "fire fuego feu feuer fuoco",
            "hill colina colline huegel collina",
            "tree arbol arbre baum albero",
            "gift regalo cadeau geschenk dono",
            "street calle rue strasse via",
            "bridge puente pont bruecke ponte",
        ),
    )
)
# (from, to, factor): the amount in the input is in `from`. No two factors are equal: they would be one function.
CONVERSIONS = (("weeks", "days", 7), ("yards", "feet", 3), ("decades", "years", 10), ("pairs", "pieces", 2))
