"""
Every sentence that is put before the model or taught as its answer. The renderer draws one of a set; `{}` is where
the message's own content goes.

Of the release's sentences we know single examples, which stand first in their sets, and how many there are, which is
named beside each set. The rest of the sentences are ours.
"""

# A question about a video should not say "image", as all questions of the release do; `release` names the other set.
_PLEAS = (
    "Please segment {} in this IMAGE",
    "Can you mark {} in the IMAGE for me",
    "Find {} in this IMAGE and give its mask",
    "Which part of the IMAGE shows {}? Answer with its mask",
    "I am looking for {}. Segment it in this IMAGE",
    "Show me where {} is in the IMAGE by a segmentation mask",
    "In this IMAGE, outline {}",
    "Could you separate {} from the rest of the IMAGE",
)
_MARKS = (".", "?", ".", ".", ".", ".", ".", "?")


def _segment(visual: str) -> tuple[str, ...]:
    """Every wording with and without its last mark: 16, as in the release."""
    return tuple(
        plea.replace("IMAGE", visual) + end
        for plea, mark in zip(_PLEAS, _MARKS, strict=True)
        for end in (mark, "")
    )  # fmt: skip


_BRIEF = (
    "Could you please give me a brief description of the image?",
    "What does this image show, in a sentence or two?",
    "Sum up the image briefly.",
    "Please tell me shortly what can be seen here.",
    "Give a short account of this picture.",
    "How would you caption this image?",
)
INTERLEAVED_ANSWER = "Please respond with interleaved segmentation masks for the corresponding parts of the answer."

_DETAILED = (
    "Please describe the region {} in {} in detail.",
    "What can you say about the region {} in {}?",
    "Give a detailed account of the region {} in {}.",
    "Tell me as much as you can about the region {} in {}.",
    "What does the region {} in {} show? Go into detail.",
    "Describe closely what you see in the region {} in {}.",
    "Explain at length what the region {} in {} contains.",
    "Look at the region {} in {} and describe it thoroughly.",
    "I would like a full description of the region {} in {}.",
    "Write a careful description of the region {} in {}.",
)


def _places(*places: str) -> tuple[str, ...]:
    return tuple(sentence.format("{}", place) for sentence in _DETAILED for place in places)


TEMPLATES: dict[str, tuple[str, ...]] = {
    # referring segmentation: a phrase goes in; 16 in the release
    "segment_image": _segment("image"),
    "segment_video": _segment("video"),
    # a whole description goes in; 1 in the release (Ref-SAV)
    "segment_described": ("Please segment the object according to the description: {}",),
    # grounded captions of stills: nothing goes in; 6 in the release
    "caption_image": tuple(f"{question} {INTERLEAVED_ANSWER}" for question in _BRIEF),
    # a region goes in; 30 in the release for stills (Osprey), 20 for videos (SAMA-239K)
    "describe_region_image": _places("the image", "this picture", "the photograph"),
    "describe_region_video": _places("the video", "this clip"),
    # the one question of SAMA-Bench-C
    "describe_region_bench": ("Please describe the region {} in the video in detail.",),
    # the questions of other benchmarks; a number stands for the region in RefCOCOg's
    "segment_image_bench": ("Please segment {} in this image.",),
    "segment_video_bench": ("Please segment {}.",),
    "caption_image_bench": (f"{_BRIEF[0]} {INTERLEAVED_ANSWER}",),
    "caption_region_bench": ("Please give me a short description of the region in the picture marked by {}.",),
    # answers to "segment ...": a bare [SEG] goes in; 5 in the release
    "segment_answer": ("Sure, {}.", "It is {}.", "Here it is: {}.", "{}.", "This is the mask: {}."),
}
# Sets that the preset `release` takes instead
RELEASE_TEMPLATES = {"segment_video": "segment_image"}
# The release asks for image captions over the end of a line, whose blanks are in the question
RELEASE_CAPTION_QUESTION = TEMPLATES["caption_image_bench"][0].replace("interleaved ", "interleaved     ")

# Put behind a SAMA-239K or SAMA-Bench question whose answer holds masks and which does not end like this itself
MASK_REQUEST = " Response with interleaved segmentation masks."
MASK_REQUEST_MARK = "with interleaved segmentation masks."
# Put behind every question of Osprey's short form
SHORT_ANSWER = " Answer the question using a single word or phrase."


def region_word(number: int | str) -> str:
    """How Osprey's questions and answers name a region."""
    return f"region{number}"


def region_list(count: int) -> list[str]:
    """Osprey's list of the regions of a picture: the text in front of each of them, and the end behind the last."""
    first = f"There are {count} part regions in the picture: {region_word(1)}"
    return [first, *(f", {region_word(number)}" for number in range(2, count + 1)), ".\n"]
