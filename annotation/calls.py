"""Requests of the stages: from the store if it has the reply, else from the endpoint, and into the store."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from .completions import Completion, CompletionRequest
from .errors import StopError
from .prompts import Messages
from .schema import json_schema
from .store import ReplyStore, StoredReply, reply_key


class CompletesRequests(Protocol):
    """What is needed of an [`Endpoint`]."""

    def complete(
        self, request: CompletionRequest, stage: str = "", record: str = "", cut: "KeptCut | None" = None
    ) -> Completion: ...

    def stop(self, error: StopError | None = None) -> None: ...


@dataclass(frozen=True)
class Question:
    """
    A request of a stage.

    Args:
        key (`str`): Name of its reply, see `reply_key`.
        stage, role, video (`str`): Who asks which model about what.
        request ([`CompletionRequest`]): What is asked.
    """

    key: str
    stage: str
    role: str
    video: str
    request: CompletionRequest


Replies = Callable[[Question], StoredReply]


# Of the code of each stage; to be raised where equal requests are to be answered again
STAGE_VERSIONS = {"describe": 1, "converse": 1, "verify": 1, "refine": 1, "blind": 1, "judge": 1, "palette": 1}
ROLES = ("writer", "verifier", "blind")


@dataclass(frozen=True)
class ModelChoice:
    """
    A model, and where it is.

    Args:
        endpoint ([`Endpoint`], *optional*): Answers its requests. `None` in an actor of a pool, where the process of
            the run asks.
        name (`str`): Its name at the endpoint.
        revision (`str`): Version, where the name does not tell; part of the provenance.
        terms (`str`): Whether the terms of its use allow training on its output: "yes", "no" or "unknown".
        host (`str`): Of the endpoint; part of the provenance.
        max_tokens (`int`): Of an answer.
        temperature (`float`): 0 for the most likely answer.
        seed (`int`): Of the sampling.
    """

    endpoint: CompletesRequests | None
    name: str
    revision: str = ""
    terms: str = "unknown"
    host: str = ""
    max_tokens: int = 4096
    temperature: float = 0.0
    seed: int = 0

    def provenance(self) -> dict[str, str]:
        """What a record says about the model."""
        fields = {"model": self.name, "revision": self.revision, "host": self.host}
        return fields | {"terms_allow_training": self.terms}


@dataclass(frozen=True)
class KeptCut:
    """
    Where the answer that was cut at its limit is kept until there is a longer one: it is paid for.

    Args:
        store ([`ReplyStore`]), question ([`Question`]): Whose answer it is.
        host (`str`): Of the endpoint.
    """

    store: ReplyStore
    question: Question
    host: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.question.key}/cut".encode()).hexdigest()

    def get(self) -> Completion | None:
        """The cut answer of an earlier run."""
        reply = self.store.get(self.key)
        return None if reply is None else reply.completion

    def put(self, completion: Completion) -> None:
        """Keeps a cut answer."""
        self.store.put(self.key, self.question.stage, completion, self.host)


class StoredReplies:
    """
    Replies from the store if it has them, else from the endpoint, and into the store.

    Args:
        store ([`ReplyStore`]): Of this and earlier runs.
        models (`dict[str, ModelChoice]`): By role, with their endpoints.
    """

    def __init__(self, store: ReplyStore, models: Mapping[str, ModelChoice]):
        self.store, self.models = store, models

    def __call__(self, question: Question) -> StoredReply:
        """The reply to a question; an [`AnnotationError`] if there is none."""
        # Of two videos with the same request, such as the same questions without the video, the second waits
        with self.store.held(question.key):
            reply = self.store.get(question.key)
            if reply is not None:
                return reply
            model = self.models[question.role]
            assert model.endpoint is not None  # only the copies of a pool's actors have none
            cut = KeptCut(self.store, question, model.host)
            completion = model.endpoint.complete(question.request, question.stage, question.video, cut)
            return self.store.put(question.key, question.stage, completion, model.host)


@dataclass
class VideoCalls:
    """
    The requests about one video.

    Args:
        answer (`Callable`): From a [`Question`] to its reply, such as [`StoredReplies`].
        models (`dict[str, ModelChoice]`): By role: "writer", "verifier", "blind".
        video (`str`): Id of the video, for the costs.
        replies (`list[StoredReply]`): All replies that were used, in the order of the requests.
        hosts (`dict[str, set[str]]`): By role, the hosts that gave them.
    """

    answer: Replies
    models: dict[str, ModelChoice]
    video: str = ""
    replies: list[StoredReply] = field(default_factory=list)
    hosts: dict[str, set[str]] = field(default_factory=dict)

    def ask(self, stage: str, role: str, messages: Messages, form: type[BaseModel], attempt: int = 0) -> StoredReply:
        """The reply to a request. `attempt` numbers requests that are equal but for their seed."""
        model = self.models[role]
        request = CompletionRequest(
            model.name,
            messages,
            json_schema(form),
            max_tokens=model.max_tokens,
            temperature=model.temperature if attempt == 0 else max(model.temperature, 0.7),
            seed=model.seed + attempt,
        )
        key = reply_key(stage, STAGE_VERSIONS[stage], request.key(), attempt, model.revision)
        reply = self.answer(Question(key, stage, role, self.video, request))
        self.replies.append(reply)
        if reply.host:
            self.hosts.setdefault(role, set()).add(reply.host)
        return reply

    def provenance(self) -> dict[str, dict[str, str]]:
        """What records say about the models. The hosts are those that gave the replies, also in an earlier run."""
        return {
            role: model.provenance() | {"host": ", ".join(sorted(self.hosts.get(role, {model.host})))}
            for role, model in self.models.items()
        }

    def keys(self) -> Sequence[str]:
        """The keys of all replies that were used."""
        return list(dict.fromkeys(reply.key for reply in self.replies))
