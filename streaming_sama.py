"""The text of an answer while it is generated: pieces without tags that join to the text of the reply."""

from collections.abc import Callable

from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from .prompts_sama import ANSWER_TAGS


class AnswerStreamer(BaseStreamer):
    """
    A streamer for `generate` that hands on the parsed text of an answer piece by piece.

    After each token the answer so far is parsed, and what later tokens cannot change any more is sent. So tags and the
    blanks around them are never seen, and the pieces join to the text of the reply.

    Args:
        processor ([`SamaProcessor`])
        send (`Callable`): Takes the next piece; an empty one where there is nothing to send, so that it may raise to
            stop the generation.
    """

    def __init__(self, processor, send: Callable[[str], None]):
        self.processor, self.send = processor, send
        self.tokens: list[int] | None = None  # until the prompt was seen
        self.sent = ""
        markers = {*ANSWER_TAGS, *processor.tokenizer.all_special_tokens, processor.answer_suffix.strip()}
        self.beginnings = {marker[:end] for marker in markers for end in range(1, len(marker))}

    def put(self, value) -> None:
        """Takes the prompt first, then each new token, as tensors; called by `generate`."""
        if self.tokens is None:
            self.tokens = []
            self.send("")
            return
        self.tokens += value.flatten().tolist()
        self._send_up_to(stable_prefix(self.processor.post_process_answer(self.tokens).text, self.beginnings))

    def end(self) -> None:
        """Called by `generate` when the answer is complete; what was held back is sent by [`finish`]."""

    def finish(self, text: str) -> None:
        """Sends the rest of the answer `text`; raises `RuntimeError` if what was sent is not its beginning."""
        if not text.startswith(self.sent):
            raise RuntimeError(f"The streamed text {self.sent!r} is not the beginning of the answer {text!r}.")
        self._send_up_to(text)

    def _send_up_to(self, text: str) -> None:
        piece, self.sent = text[len(self.sent) :], max(self.sent, text, key=len)
        self.send(piece)


class LibraryTextStreamer(AnswerStreamer):
    """
    Hands the text of an answer to one of the library's text streamers ([`TextStreamer`], [`TextIteratorStreamer`]),
    which by themselves decode tags and leave doubled blanks. Whatever their settings, they get the answer alone.

    Args:
        processor ([`SamaProcessor`])
        streamer ([`TextStreamer`])
    """

    def __init__(self, processor, streamer: TextStreamer):
        super().__init__(processor, self._hand_on)
        self.streamer, self.stopped = streamer, False

    def _hand_on(self, text: str) -> None:
        if text:
            self.streamer.on_finalized_text(text)

    def finish(self, text: str) -> None:
        super().finish(text)
        self.stop()

    def stop(self) -> None:
        """Ends the stream, so that nobody waits for more."""
        if not self.stopped:
            self.stopped = True
            self.streamer.on_finalized_text("", stream_end=True)


def stable_prefix(text: str, beginnings: set[str]) -> str:
    """
    The part of an unfinished answer that stays as it is, whatever follows. Held back are an incomplete character (it
    decodes to U+FFFD), what may be the beginning of a tag or an end mark, and blanks at the end.

    Args:
        text (`str`): the parsed text of the tokens so far.
        beginnings (`set[str]`): all proper prefixes of the tags and end marks.
    """
    longest = max(map(len, beginnings), default=0)
    text = text.rstrip("\ufffd")
    while held := next((n for n in range(min(longest, len(text)), 0, -1) if text[-n:] in beginnings), 0):
        text = text[:-held]
    return text.rstrip()
