"""The closed classes of English, and a few open ones, as the grammar of `rules` needs them."""

from __future__ import annotations

import re

Words = frozenset[str]


def _words(text: str) -> Words:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those some any no each every either neither both all another other "
    "my your his her its our their whose several many few various much more most enough such"
)
NUMBERS = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million dozen first second third fourth fifth sixth last next"
)
PRONOUNS = _words(
    "i me myself you yourself he him himself she herself it itself we us ourselves they them "
    "themselves mine yours hers ours theirs who whom which what someone somebody something anyone "
    "anybody anything everyone everybody everything nobody nothing none there here"
)
PREPOSITIONS = _words(
    "about above across after against along alongside amid among amongst around as at atop before "
    "behind below beneath beside besides between beyond by down during except for from in inside "
    "into like near nearby of off on onto opposite out outside over past per through throughout "
    "to toward towards under underneath until up upon via versus with within without"
)
CONJUNCTIONS = _words(
    "and or but nor yet so because although though if when whenever where while whereas than that "
    "whether since unless why how"
)
AUXILIARIES = _words(
    "am is are was were be been being isn't aren't wasn't weren't do does did don't doesn't "
    "didn't has have had having hasn't haven't hadn't can could will would shall should may might "
    "must cannot can't couldn't won't wouldn't shouldn't let's it's he's she's there's that's "
    "they're you're we're i'm i've they've we've i'll it'll"
)
COPULAS = _words(
    "am is are was were be been being seem seems seemed look looks looked appear appears appeared "
    "remain remains become becomes isn't aren't wasn't weren't it's he's she's that's they're"
)
VERBS = _words(
    "add adds appear appears arrive arrives become becomes begin begins belong belongs bring "
    "brings build builds built carry carries carried catch catches caught come comes came consist "
    "consists contain contains contained depict depicts depicted describe describes drive drives "
    "drove eat eats ate enjoy enjoys feature features featured feel feels fly flies flew get gets "
    "got give gives gave go goes went gone grow grows hang hangs hung happen happens hold holds "
    "held indicate indicates keep keeps kept know knows known lay lays lie lies lean leans leave "
    "leaves left live lives look looks looked made make makes move moves need needs overlook "
    "overlooks play plays played put puts read reads remain remains ride rides rode run runs ran "
    "sat say says said saw see sees seen seem seems shine shines show shows showed shown sit sits "
    "stand stands stood stay stays suggest suggests surround surrounds swim swims take takes "
    "taken took talk talks tell tells told think thinks throw throws threw touch touches use uses "
    "used walk walks walked want wants watch watches watched wear wears wore worn cover "
    "covers covered located placed positioned situated set"
)
"""In the forms that are rarely nouns where they stand behind a noun."""

ADVERBS = _words(
    "not never always often sometimes usually also too very quite rather almost just only even "
    "still again already away back together apart forward ahead now then perhaps maybe once twice "
    "well far fast indeed however therefore instead else everywhere somewhere upside about more "
    "most less least really pretty slightly fairly brightly"
)
INTERJECTIONS = _words("yes no ok okay sure hello hi thanks thank please oh well certainly sorry")
ADJECTIVES = _words(
    "red green blue yellow purple orange black white gray grey brown pink golden silver violet "
    "beige tan turquoise navy teal maroon magenta cyan colored coloured big large small tiny huge "
    "little tall short long wide narrow thin thick round flat old young new empty full open "
    "closed bright dark light pale clear clean dirty dry wet hot cold warm cool beautiful pretty "
    "nice good bad great happy sad high low deep heavy soft hard rough smooth sharp whole entire "
    "same different main left right upper lower inner outer top bottom front rear middle central "
    "visible present available wooden plastic metallic striped spotted plain similar single "
    "double many few several other own certain"
)
NOUNS_TOO = _words("light orange top bottom front rear flat plain plastic glass cold dark double")
"""Adjectives that may be the noun of a phrase: "an orange", "a traffic light"."""

ADJECTIVE_ENDINGS = ("ful", "ous", "able", "ible", "less", "ish", "ular", "ical", "ern")
PLACES = _words(
    "left right top bottom middle center centre side front back end rear half corner edge "
    "distance direction position way part left-hand right-hand upper lower"
)
"""Heads of phrases that say where something is: nothing to be grounded."""

THE_IMAGE = _words("image picture photo photograph photos images pictures scene view shot frame")
"""Heads of phrases that mean the whole image."""

NO_THING = _words(
    "example addition fact case order time times day moment kind sort type lot lots number "
    "variety answer question yes no result reason name description detail details end"
)
"""Heads that name nothing that can be seen."""

OF_WORDS = _words(
    "group groups pair pairs set sets bunch bunches stack stacks row rows line lines pile piles "
    "cup cups glass glasses bowl bowls plate plates bottle bottles piece pieces slice slices box "
    "boxes bag bags basket baskets can cans couple crowd herd flock lot lots number variety "
    "variation collection series type types kind kinds dozen dozens hundreds bouquet vase jar "
    "jars mug loaf sheet sheets ball team patch patches"
)
"""Nouns of amount and container, whose "of" stays in the phrase: "a group of people"."""

NOUNS_IN_ABLE = _words("vegetable timetable turntable constable")
NOUNS_IN_LY = _words("family fly butterfly lily belly jelly assembly supply ally bully dolly ply")
NOUNS_IN_ING = _words(
    "building buildings ceiling clothing ring rings king string strings wing wings painting "
    "paintings thing things sibling evening morning railing awning lighting earring earrings "
    "parking dining living swimming wedding bedding swing swings spring sling ping engineering "
    "crossing opening landing drawing drawings dressing icing frosting stuffing topping toppings"
)


def is_adverb(word: str) -> bool:
    return word in ADVERBS or (word.endswith("ly") and word not in NOUNS_IN_LY and len(word) > 4)


def is_adjective(word: str) -> bool:
    """Whether a word is rarely a noun: its last part decides, as in "well-known"."""
    last = word.rsplit("-", 1)[-1]
    if last in ADJECTIVES or re.search(r"-(\w+ed|lit|made|worn|lined|like|free)$", word):
        return True
    return last.endswith(ADJECTIVE_ENDINGS) and len(last) > 6 and last not in NOUNS_IN_ABLE


def is_participle(word: str) -> bool:
    """Whether a word looks like "running" or "parked": an adjective or a verb, by its place."""
    if word in NOUNS_IN_ING or len(word) < 5:
        return False
    return word.endswith("ing") or (word.endswith("ed") and not word.endswith("eed"))
