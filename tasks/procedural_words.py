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

# Few enough that each occurs in dozens of training tasks.
NAMES = _words("anna bob tom eve max lucy sam kate")
CITIES = _words("rome paris london berlin madrid oslo vienna prague athens cairo delhi tokyo lima boston dublin lisbon")
DRINKS = _words("tea coffee milk water juice cocoa wine beer cider cola lemonade soda punch rum mead broth")
OBJECTS = _words("ball key cup coin ring book letter pen doll map candle stone clock bottle")
PLACES = _words("box bag drawer kitchen garden car basket room cave tent barn tower")
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

# base, past, gerund
VERBS = tuple(
    map(
        _words,
        (
            "walk walked walking",
            "sing sang singing",
            "run ran running",
            "write wrote writing",
            "eat ate eating",
            "sleep slept sleeping",
            "swim swam swimming",
            "speak spoke speaking",
            "jump jumped jumping",
            "draw drew drawing",
            "fly flew flying",
            "sell sold selling",
            "laugh laughed laughing",
            "go went going",
            "buy bought buying",
            "ride rode riding",
            "throw threw throwing",
            "carry carried carrying",
            "sit sat sitting",
            "think thought thinking",
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
# adjective, opposite, comparative
ADJECTIVES = tuple(
    map(
        _words,
        (
            "big small bigger",
            "small big smaller",
            "hot cold hotter",
            "cold hot colder",
            "old young older",
            "young old younger",
            "fast slow faster",
            "slow fast slower",
            "high low higher",
            "low high lower",
            "hard soft harder",
            "soft hard softer",
            "rich poor richer",
            "poor rich poorer",
            "strong weak stronger",
            "weak strong weaker",
            "long short longer",
            "short long shorter",
            "dark bright darker",
            "bright dark brighter",
        ),
    )
)
LANGUAGES = _words("spanish french")
# By kind: english, then one word per language of LANGUAGES (lower case, without accents).
TRANSLATIONS = {
    kind: tuple(map(_words, rows.split(",")))
    for kind, rows in {
        "animal": "cat gato chat,dog perro chien,horse caballo cheval,cow vaca vache,fox zorro renard,wolf lobo loup,"
        "bear oso ours,pig cerdo cochon",
        "colour": "red rojo rouge,blue azul bleu,green verde vert,black negro noir,white blanco blanc,"
        "yellow amarillo jaune,pink rosado rose,silver plata argent",
        "food": "bread pan pain,cheese queso fromage,rice arroz riz,egg huevo oeuf,apple manzana pomme,pear pera poire,"
        "onion cebolla oignon,soup sopa soupe",
        "nature": "sun sol soleil,moon luna lune,sea mar mer,snow nieve neige,fire fuego feu,tree arbol arbre,"
        "star estrella etoile,rain lluvia pluie",
    }.items()
}
ROMAN = {2: "II", 3: "III", 4: "IV", 6: "VI", 7: "VII", 8: "VIII", 9: "IX", 11: "XI", 12: "XII"}

# (from, to, factor): the amount in the input is in `from`. No two factors are equal: they would be one function.
CONVERSIONS = (
    ("weeks", "days", 7),
    ("yards", "feet", 3),
    ("decades", "years", 10),
    ("pairs", "pieces", 2),
    ("dozens", "units", 12),
    ("nickels", "cents", 5),
    ("gallons", "quarts", 4),
)
