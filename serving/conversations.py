"""What an engine remembers: chats whose beginning may be that of the next question, within a bound of memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..chat_sama import SamaChat
from ..feature_store_sama import SamFeatureStore
from ..objects_sama import MaskTrack
from .questions import EarlierTurn, Question
from .session import ChatTurn


@dataclass(eq=False)
class Conversation:
    """
    A chat and what was said in it.

    Attributes:
        chat ([`SamaChat`])
        source_id (`str`, *optional*): the file that it is about.
        system (`str`, *optional*): the system message.
        turns (`list[ChatTurn]`): as a session has them.
        asked (`list[EarlierTurn]`): the same turns as a later question repeats them.
        busy (`bool`): whether its next question is being answered.
        forgotten (`bool`): whether it is dropped as soon as it is not busy any more.
    """

    chat: SamaChat
    source_id: str | None = None
    system: str | None = None
    turns: list[ChatTurn] = field(default_factory=list)
    asked: list[EarlierTurn] = field(default_factory=list)
    busy: bool = True
    forgotten: bool = False

    @property
    def is_as_before(self) -> bool:
        """Whether the chat has no other answers than those of `asked`."""
        answers = sum(message["role"] == "assistant" for message in self.chat.messages)
        return answers == len(self.asked) == len(self.turns)

    def num_common_turns(self, question: Question) -> int:
        """How many turns at the beginning are those of the question's conversation."""
        if question.system != self.system:
            return 0
        common = 0
        for mine, theirs in zip(self.asked, question.earlier, strict=False):
            if not mine.matches(theirs):
                break
            common += 1
        return common

    def branch(self, num_turns: int) -> "Conversation":
        """Another conversation that begins with the first turns of this one."""
        chat = self.chat.branch(num_turns)
        system = self.system if num_turns else None
        return Conversation(chat, self.source_id, system, self.turns[:num_turns], self.asked[:num_turns])

    def tensors(self) -> Iterator[torch.Tensor]:
        """What it keeps on the device."""
        layers: list[Any] = self.chat.cache.layers
        for layer in layers:
            if layer.get_seq_length():
                yield from (layer.keys, layer.values)
        state = self.chat.state
        kept = (state.frame_features, state.deepstack_features, state.spatial_tokens)
        yield from (one for one in kept if one is not None)

    def tracks(self) -> Iterator[MaskTrack]:
        """The masks of its answers."""
        for turn in self.turns:
            yield from (phrase.track for phrase in turn.reply.objects if phrase.track is not None)


def measured_bytes(conversations: Iterable[Conversation]) -> int:
    """Bytes that conversations keep; tensors and masks that several share count once."""
    storages, tracks = {}, {}
    for conversation in conversations:
        tracks |= {id(track): track for track in conversation.tracks()}
        for tensor in conversation.tensors():
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) + sum(track.nbytes for track in tracks.values())


def feature_stores(conversations: Iterable[Conversation]) -> list[SamFeatureStore]:
    """The stores of SAM 2's features, which conversations about one file share."""
    stores = (one.chat.sam_features for one in conversations)
    return list({id(store): store for store in stores if store is not None}.values())


def feature_bytes(conversations: Iterable[Conversation]) -> int:
    """Bytes of SAM 2's features."""
    return sum(store.nbytes for store in feature_stores(conversations))


class ConversationCache:
    """
    Conversations in the order of their last use. The device's turn must be held by whoever calls a method.

    Args:
        max_bytes (`int`): of all conversations together. Beyond it those are dropped that were not used for the
            longest time; those whose question is being answered stay.
        max_conversations (`int`)
        max_feature_bytes (`int`): of SAM 2's features, in memory and on the disk.
        max_feature_memory_bytes (`int`): of those in memory.
    """

    def __init__(self, max_bytes: int, max_conversations: int, max_feature_bytes: int, max_feature_memory_bytes: int):
        self.max_bytes, self.max_conversations = max_bytes, max_conversations
        self.max_feature_bytes, self.max_feature_memory_bytes = max_feature_bytes, max_feature_memory_bytes
        self.conversations: list[Conversation] = []
        self.nbytes = 0

    def open(self, question: Question, start: Callable[[], SamaChat]) -> Conversation:
        """
        A conversation for a question, which has the longest known beginning of its messages: one that nobody else
        uses and that has no other turns, or a branch of one.

        Args:
            question ([`Question`])
            start (`Callable`): starts a chat about the question's file, if nothing is known of the file.
        """
        same_file = self._about(question.source_id)
        # Of several the one that need not be copied, and of these the latest
        found = max(same_file, key=lambda one: self._preference(one, question), default=None)
        if found is None:
            conversation = Conversation(start(), question.source_id)
        else:
            common = found.num_common_turns(question)
            if not self._is_free(found, common):
                conversation = found.branch(common)
            else:
                self.conversations.remove(found)
                conversation, found.busy = found, True
        if not conversation.turns:
            conversation.system = question.system
        self.conversations.append(conversation)
        return conversation

    def _preference(self, conversation: Conversation, question: Question) -> tuple[int, bool, int]:
        common = conversation.num_common_turns(question)
        return common, self._is_free(conversation, common), self.conversations.index(conversation)

    @staticmethod
    def _is_free(conversation: Conversation, common: int) -> bool:
        return (
            not conversation.busy
            and common == len(conversation.asked)
            and not (common == 0 and conversation.chat.messages)
        )

    def known(self, source_id: str | None) -> Conversation | None:
        """The latest conversation about a file, whether it is busy or not."""
        same_file = self._about(source_id)
        return same_file[-1] if same_file else None

    def _about(self, source_id: str | None) -> list[Conversation]:
        if source_id is None:
            return []
        return [one for one in self.conversations if one.source_id == source_id and not one.forgotten]

    def room_for_features(self) -> int:
        """Bytes that SAM 2's features of further frames may take."""
        return self.max_feature_bytes - feature_bytes(self.conversations)

    def room_for_features_in_memory(self) -> int:
        """How many of them may be in memory."""
        return self.max_feature_memory_bytes - sum(store.memory_nbytes for store in feature_stores(self.conversations))

    def close(self, conversation: Conversation) -> None:
        """Ends the use of a conversation, which may be dropped from now on."""
        conversation.busy = False
        self.conversations.remove(conversation)
        if conversation.source_id is not None and not conversation.forgotten:
            self.conversations.append(conversation)
        self._drop_oldest()

    def drop(self, conversation: Conversation) -> None:
        """Forgets a conversation."""
        self.conversations.remove(conversation)
        self.nbytes = measured_bytes(self.conversations)

    def drop_file(self, source_id: str) -> None:
        """Forgets everything about a file; conversations whose question is being answered, when it is answered."""
        for conversation in [one for one in self.conversations if one.source_id == source_id]:
            conversation.forgotten = True
            if not conversation.busy:
                self.conversations.remove(conversation)
        self.nbytes = measured_bytes(self.conversations)

    def _drop_oldest(self) -> None:
        self.nbytes = measured_bytes(self.conversations)
        idle = [one for one in self.conversations if not one.busy]
        while idle and self._is_full():
            self.conversations.remove(idle.pop(0))
            self.nbytes = measured_bytes(self.conversations)

    def _is_full(self) -> bool:
        if self.nbytes > self.max_bytes or len(self.conversations) > self.max_conversations:
            return True
        return feature_bytes(self.conversations) > self.max_feature_bytes
