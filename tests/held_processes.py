"""What processes of tests hold until they are killed, for [`processes.CONTEXT`]."""

import os
import time
from multiprocessing.queues import Queue
from pathlib import Path

from sama.feature_store_sama import SamFeatureStore
from sama.training.output_lock import lock_output


def hold_features(folder: str, made: Queue) -> None:
    """Makes a store without a model, writes a feature file, and waits to be killed."""
    store = SamFeatureStore(None, folder=folder)
    (Path(store.folder.name) / "0.pt").write_bytes(bytes(1000))
    made.put(store.folder.name)
    time.sleep(600)


def hold_lock(folder: Path, held: Queue) -> None:
    """Holds the lock, with a child as a process that loads batches has it, until it is killed."""
    with lock_output(folder):
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(1)
        held.put(child)
        time.sleep(600)
