"""English words that the exact checks look for: numbers, units and colours."""

from .render import COLORS


NUMBER_WORDS = {
    word: number
    for number, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), start=1)
}
# Regular expressions: behind a number, these make it a measure
UNITS = (
    r"(?:[mck]?m|[mk]?g|ft|yds?|lbs?|hz|fps|mph|"
    r"(?:centi|milli|kilo)?met(?:re|er)s?|feet|foot|inch(?:es)?|yards?|miles?|lit(?:re|er)s?|gallons?|"
    r"(?:kilo)?grams?|kilos?|pounds?|ounces?|tons?|tonnes?|degrees?|per ?cent|"
    r"years?|months?|weeks?|days?|hours?|minutes?|seconds?|times?)"
)
# Those that are drawn, and others that stand beside them in lists: "red, white and blue"
COLOR_WORDS = "|".join([*COLORS, *"white black gr[ae]y brown gold silver violet turquoise beige".split()])
