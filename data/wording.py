"""
Every sentence that the data adds to a question or an answer. The renderer draws one of a set; the content of the
message takes the place of `{}`.

Of the published sentences only single examples are known, which come first in their sets, and how many there are,
which is noted at each set. All other sentences are our own.
"""

# A question about a video should not say "image" as all published ones do; the preset `published` takes that set
_REQUESTS = (
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
    """Every request with and without its final punctuation mark: 16, as in the published training."""
    return tuple(
        request.replace("IMAGE", visual) + end
        for request, mark in zip(_REQUESTS, _MARKS, strict=True)
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
    # referring segmentation, for a phrase; 16 published
    "segment_image": _segment("image"),
    "segment_video": _segment("video"),
    # the same for a whole description; 1 published (Ref-SAV)
    "segment_described": ("Please segment the object according to the description: {}",),
    # grounded captions of images, without a slot; 6 published
    "caption_image": tuple(f"{question} {INTERLEAVED_ANSWER}" for question in _BRIEF),
    # for a region; 30 published for images (Osprey), 20 for videos (SAMA-239K)
    "describe_region_image": _places("the image", "this picture", "the photograph"),
    "describe_region_video": _places("the video", "this clip"),
    # the only question of SAMA-Bench-C
    "describe_region_bench": ("Please describe the region {} in the video in detail.",),
    # the questions of other benchmarks; RefCOCOg's takes the number of a region
    "segment_image_bench": ("Please segment {} in this image.",),
    "segment_video_bench": ("Please segment {}.",),
    "caption_image_bench": (f"{_BRIEF[0]} {INTERLEAVED_ANSWER}",),
    "caption_region_bench": ("Please give me a short description of the region in the picture marked by {}.",),
    # answers to the requests for masks, for a [SEG] without words; 5 published
    "segment_answer": ("Sure, {}.", "It is {}.", "Here it is: {}.", "{}.", "This is the mask: {}."),
}
# Answers to a referring question that fits nothing, where the data has no words of its own. They have no slot and no
# [SEG]. The release has no such answers
NO_TARGET_ANSWERS = {
    "image": (
        "Nothing in the image fits that description.",
        "There is nothing like that in the image.",
        "I do not see anything that matches this in the image.",
        "No object in the image matches that description.",
    ),
    "video": (
        "Nothing in the video fits that description.",
        "There is nothing like that in the video.",
        "I do not see anything that matches this in the video.",
        "No object in the video matches that description.",
    ),
}
# The published benchmark breaks this question across two lines of code: the indentation is part of the text
RELEASE_CAPTION_QUESTION = TEMPLATES["caption_image_bench"][0].replace("interleaved ", "interleaved     ")

# Appended to a question of SAMA-239K or SAMA-Bench whose answer has masks, unless it contains the mark already
MASK_REQUEST = " Response with interleaved segmentation masks."
MASK_REQUEST_MARK = "with interleaved segmentation masks."
# Appended to every question of Osprey's short form
SHORT_ANSWER = " Answer the question using a single word or phrase."


def region_word(number: int | str) -> str:
    """The name of a region in the questions and answers of Osprey."""
    return f"region{number}"


def region_list(count: int) -> list[str]:
    """The texts of Osprey's list of regions: one in front of each region, and one behind the last."""
    first = f"There are {count} part regions in the picture: {region_word(1)}"
    return [first, *(f", {region_word(number)}" for number in range(2, count + 1)), ".\n"]
