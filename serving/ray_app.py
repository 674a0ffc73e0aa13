"""The server on several GPUs or machines, as an application of Ray Serve:

    export SAMA_API_KEY=...
    serve run sama.serving.ray_app:app_builder model=sama-1b replicas=4

Two deployments: `Ingress` is the app of server.py, with the stored files, and needs no GPU; `Model` has one engine a
replica. Ray Serve's model multiplexing sends the questions of a conversation to the replica that answered it before.
docs/deployment.md describes clusters, files and Kubernetes.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.exceptions import RayServeException

from sama.feature_store_sama import make_feature_folder
from sama.serving.engine import Question
from sama.serving.file_copies import FileCopies
from sama.serving.files import FileStore
from sama.serving.limits import Limits
from sama.serving.loading import DEFAULT_MODEL
from sama.serving.replicas import PREVIEWS, EngineHost, HostLost, HostStatus, RemoteEngine
from sama.serving.security import Access, access_for
from sama.serving.server import create_app
from sama.serving.service import model_name
from sama.serving.settings import KEY_VARIABLE, make_engine


KNOWN_CONVERSATIONS = 256  # of a replica, by which it is found again
STARTING_SECONDS = 1.0  # between two questions whether a replica is there
UNLIMITED = 10**9  # requests that the ingress takes at once; the limits of its app are what counts


def _listed(value: Any) -> Any:
    """Arguments of `serve run` are texts: several names are separated by commas."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class AppArguments(BaseModel):
    """The arguments of the application: `name=value` after `serve run`, or `args` in a Serve config file. Those that
    `sama serve` has, too, mean the same there."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(str(DEFAULT_MODEL), description="folder, the same on all machines, or Hub name")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    preset: Literal["published", "consistent"] | None = None
    min_component_fraction: float | None = Field(None, ge=0, le=1)
    trust_remote_code: bool = False
    memory_pool: int | None = None
    compile: bool = False
    allow_origins: Names = ()
    allow_hosts: Names = ()
    allow_urls: bool = False
    folder: Path | None = Field(None, description="of uploaded files; best one that all machines share")
    replicas: int = Field(1, ge=1, description="of the model")
    gpus: float = Field(1.0, ge=0, description="of a replica; 0 for CPUs alone")
    cpus: float = Field(1.0, ge=0, description="of a replica")
    limits: dict[str, float] = Field({}, description="as in serving/limits.py; those of an engine hold per replica")

    @field_validator("limits")
    @classmethod
    def _known_limits(cls, limits: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(limits) - {one.name for one in fields(Limits)}):
            raise ValueError(f"there is no limit {unknown[0]}; docs/serving.md lists them")
        return limits

    def engine_limits(self) -> Limits:
        """The limits; those that count whole things are whole numbers."""
        kinds = {one.name: one.type for one in fields(Limits)}
        whole = {name: int(value) for name, value in self.limits.items() if kinds[name] is int and value == int(value)}
        return Limits(**(self.limits | whole))


def app_builder(arguments: AppArguments) -> serve.Application:
    """
    The application. The API key is what the variable SAMA_API_KEY holds where this is called: it stands in no config
    file.

    Raises:
        ValueError: without the key, which is always needed: the app cannot know on which addresses Ray listens.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ValueError(
            f"Set the variable {KEY_VARIABLE} to the key that clients must send; Ray may listen anywhere."
        )
    limits = arguments.engine_limits()
    access = access_for("0.0.0.0", key, arguments.allow_origins, arguments.allow_hosts, arguments.allow_urls)
    model = serve.deployment(
        name="Model",
        num_replicas=arguments.replicas,
        # When a conversation's own replica has no place left, another one is better than the line of the engine
        max_ongoing_requests=limits.running + PREVIEWS,
        ray_actor_options={"num_gpus": arguments.gpus, "num_cpus": arguments.cpus},
    )(ModelReplica)
    app_maker = ingress_app_maker(arguments, limits, access)
    ingress = serve.deployment(
        name="Ingress", max_ongoing_requests=UNLIMITED, ray_actor_options={"num_cpus": 0.1}
    )(serve.ingress(app_maker)())  # fmt: skip
    return ingress.bind(model.bind(arguments, limits))


# ---- where a model is -----------------------------------------------------------------------------------------------


class ModelReplica:
    """
    One engine. Its methods are those of [`EngineHost`].

    Args:
        arguments ([`AppArguments`])
        limits ([`Limits`])
    """

    def __init__(self, arguments: AppArguments, limits: Limits):
        self.folder = make_feature_folder()
        copies = FileCopies(Path(self.folder.name) / "copies", limits.store_bytes)
        name = serve.get_replica_context().replica_tag
        self.host = EngineHost(make_engine(arguments, limits), copies, name, os.getpid())

    @serve.multiplexed(max_num_models_per_replica=KNOWN_CONVERSATIONS)
    async def remember(self, key: str) -> str:
        """Tells Ray Serve that the questions of a conversation belong here."""
        return key

    async def ask(self, question: Question, content: bytes | None = None) -> AsyncIterator[Any]:
        """See [`EngineHost.ask`]."""
        await self.remember(serve.get_multiplexed_model_id())
        async for event in self.host.ask(question, content):
            yield event

    async def preview(self, question: Question, region: dict, content: bytes | None = None) -> Any:
        """See [`EngineHost.preview`]."""
        await self.remember(serve.get_multiplexed_model_id())
        return await self.host.preview(question, region, content)

    async def forget(self, source_id: str) -> None:
        """See [`EngineHost.forget`]."""
        await self.host.forget(source_id)

    async def status(self) -> HostStatus:
        """See [`EngineHost.status`]."""
        return self.host.status()


# ---- what clients reach ---------------------------------------------------------------------------------------------


def ingress_app_maker(arguments: AppArguments, limits: Limits, access: Access) -> Callable[[], FastAPI]:
    """A function that makes the app in the process of an ingress, whose event loop is running."""

    def make_app() -> FastAPI:
        loop = asyncio.get_running_loop()
        handle = serve.get_deployment_handle("Model", app_name=serve.get_replica_context().app_name)
        total = replace(limits, running=limits.running * arguments.replicas)
        temporary = make_feature_folder() if arguments.folder is None else None
        store = FileStore(arguments.folder or Path(temporary.name) / "files", limits)

        def make_remote_engine() -> RemoteEngine:
            hosts = RayHosts(handle, loop)
            while not hosts.is_ready():
                time.sleep(STARTING_SECONDS)
            return RemoteEngine(hosts, total.running + total.waiting, arguments.replicas)

        app = create_app(make_remote_engine, store, total, access, model_name(arguments.model))
        app.state.temporary_folder = temporary  # as long as the app
        return app

    return make_app


class RayHosts:
    """
    The replicas of `Model` as [`Hosts`], called from threads.

    Args:
        handle (`DeploymentHandle`)
        loop (`asyncio.AbstractEventLoop`): of the process; runs in another thread than the callers.
    """

    def __init__(self, handle: Any, loop: asyncio.AbstractEventLoop):
        self.handle, self.loop = handle, loop

    def is_ready(self) -> bool:
        """Whether a replica has loaded its model. Waits for one."""
        try:
            return isinstance(self.call("", "status"), HostStatus)
        except (RayError, RayServeException, HostLost):
            return False

    def stream(self, key: str, question: Question, content: bytes | None) -> "RayCall":
        return RayCall(self, key, question, content)

    def call(self, key: str, method: str, *arguments: Any) -> Any:
        async def call() -> Any:
            return await self.options(key, method).remote(*arguments)

        return self.wait(call())

    def options(self, key: str, method: str, stream: bool = False) -> Any:
        """The handle of a method."""
        return self.handle.options(method_name=method, multiplexed_model_id=key, stream=stream)

    def wait(self, coroutine: Any) -> Any:
        """Runs a coroutine in the loop and returns its result; raises [`HostLost`]."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
        except (RayActorError, ObjectLostError) as error:
            raise HostLost from error


class RayCall:
    """What a replica sends back for one question, see [`Call`]."""

    def __init__(self, hosts: RayHosts, key: str, question: Question, content: bytes | None):
        self.hosts = hosts
        handle = hosts.options(key, "ask", stream=True)

        async def start() -> Any:
            return handle.remote(question, content)

        self.response = hosts.wait(start())

    def __iter__(self) -> "RayCall":
        return self

    def __next__(self) -> Any:
        async def advance() -> tuple:
            async for item in self.response:
                return (item,)
            return ()

        try:
            received = self.hosts.wait(advance())
        except CancelledError:
            raise StopIteration from None
        if not received:
            raise StopIteration
        return received[0]

    def close(self) -> None:
        self.hosts.loop.call_soon_threadsafe(self.response.cancel)
