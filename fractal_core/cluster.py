"""Workers on a Ray cluster: one per slot, on whichever nodes there are; the head commits.

On its node, an actor keeps the recipe in a folder of its own and has a worker process do the units,
watched as on one machine. What comes back is the bytes of a unit's file, so that nodes need to
share no folder with the head. They need what the head has: this version of Python, of Ray and of
this package, installed or as the same checkout. A node whose code could give other answers is
refused in the words of `experiments.open_run`.

A unit is lost to nothing but its own faults: where its node dies it is put off and done elsewhere.
Slots own no node; each has the worker that is free, so that one whose node is gone holds up nothing.
"""

import contextlib
import importlib.util
import logging
import math
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fractal_core import experiments, raylink, worker
from fractal_core.agenda import Exit, Order
from fractal_core.errors import Refused
from fractal_core.local import LocalCrew, Patience
from fractal_core.machine import Slot
from fractal_core.store import Store

log = logging.getLogger(__name__)

PLACING_SECONDS = 120.0
"""How long a run goes on in which no node has room for a worker."""

BEGINNING, LEAVING = 5.0, 30.0
"""How long the end of a run waits for an actor to begin, and for those that have begun to clean up."""

RECIPE = ("sweep.json", "axes.npz", "plan.json")
RESOURCE = {"cpu": "CPU", "cuda": "GPU"}


class Agent:
    """Does units on a node and gives back their files.

    Args:
        recipe: Files of the run folder that say what is to be computed.
        slot: Where it works, as seen on the node.
    """

    def __init__(self, recipe: dict[str, bytes], slot: Slot):
        self._slot = slot
        self._crew: LocalCrew | None = None
        self._path = Path(tempfile.mkdtemp(prefix="fractal-node-"))
        for name, data in recipe.items():
            (self._path / name).parent.mkdir(exist_ok=True)
            (self._path / name).write_bytes(data)

    def open(self) -> tuple[str, str]:
        """Begin a worker process.

        Returns:
            The name of this node, and why it cannot work on the run; empty if it can.
        """
        name = socket.gethostname()
        try:
            self._store = experiments.open_run(self._path)
        except Refused as refused:
            self.leave()
            return name, str(refused).replace(str(self._path), "the run")
        self._crew = LocalCrew(self._path, [self._slot])
        return name, ""

    def do(self, order: Order) -> tuple[Exit, bytes]:
        """Have a unit done; what became of it, and its file if it is done."""
        assert self._crew, "opened first"
        exit = self._crew.do(self._slot, order)
        if exit.code != worker.DONE:
            return exit, b""
        key = f"units/{order.unit.key}.npz"
        data = self._store.files.get(key)
        self._store.files.drop(key)
        return exit, data

    def beat(self) -> None:
        """A sign of life, a moment after it was asked for."""
        time.sleep(worker.BEAT_SECONDS)

    def leave(self) -> None:
        """End the worker and remove the folder."""
        if self._crew:
            self._crew.close()
        shutil.rmtree(self._path, ignore_errors=True)


@dataclass(frozen=True)
class Place:
    """A share of a node, in which one actor works.

    Args:
        node: Its id.
        slot: The same place as seen by whoever hands out units.
        cpus: CPUs that are reserved.
        gpus: GPUs that are reserved.
    """

    node: str
    slot: Slot
    cpus: float
    gpus: float


def places(
    nodes: Sequence[dict[str, Any]], kinds: tuple[str, ...], count: int | None = None
) -> list[Place]:
    """The places of a run: one for each GPU, or one for each node and all of its CPUs.

    Args:
        nodes: The nodes as Ray describes them.
        kinds: Kinds of device that the experiment can train on, the fastest first.
        count: So many places instead; they are dealt out in turn, and share what they must.

    Raises:
        Refused: No node has a device of these kinds.
    """
    nodes = [node for node in nodes if node["Alive"]]
    for kind in kinds:
        have = [(node, node["Resources"].get(RESOURCE[kind], 0.0)) for node in nodes]
        copies = [(node, 1 if kind == "cpu" else int(amount)) for node, amount in have if amount]
        devices = [node for node, number in copies for _ in range(number)]
        if devices:
            break
    else:
        raise Refused(
            f"this experiment trains on {' or '.join(kinds)} and none of the {len(nodes)} nodes "
            "of the cluster has that; add one with `ray start --address HOST:PORT`"
        )
    chosen = [devices[index % len(devices)] for index in range(count or len(devices))]
    beside = Counter(node["NodeID"] for node in chosen)
    gpus = 0.0 if kind == "cpu" else _part(1.0, math.ceil(len(chosen) / len(devices)))
    found = []
    for index, node in enumerate(chosen):
        cpus = _part(node["Resources"].get("CPU", 0.0), beside[node["NodeID"]])
        found.append(Place(node["NodeID"], Slot(index, kind, max(1, int(cpus))), cpus, gpus))
    return found


def _part(amount: float, count: int) -> float:
    """What Ray can reserve `count` times of an amount: whole, or in parts of 1e-4."""
    part = amount / count
    return float(math.floor(part)) if part >= 1 else math.floor(part * 1e4) / 1e4


def hire(kinds: tuple[str, ...], slots: int | None = None) -> Callable[[Store], "RayCrew"]:
    """What makes a crew on the cluster that `RAY_ADDRESS` names, or else on one that it begins.

    Args:
        kinds: Kinds of device that the experiment can train on, the fastest first.
        slots: Workers in all; left out, one per GPU, or one per node that has all of its CPUs.

    Raises:
        Refused: Ray is not installed; or later, when the crew is made, the cluster cannot be
            reached or has no device that the experiment can use.
    """
    if slots is not None and not 1 <= slots <= 1024:
        raise Refused(f"{slots} slots; write a number from 1 to 1024, or leave --slots out")
    if importlib.util.find_spec("ray") is None:
        raise Refused(
            "--engine ray needs Ray, which is not installed; say `uv sync --extra ray` or "
            "`pip install 'fractal-llm[ray]'`"
        )

    def crew(store: Store) -> RayCrew:
        with contextlib.ExitStack() as stay:
            ray = stay.enter_context(raylink.joined())
            return RayCrew(store, ray, places(ray.nodes(), kinds, slots), stay.pop_all())

    return crew


class _Post:
    """An actor in its place, and what is known of it.

    Args:
        place: Where it works, or waits for room.
        actor: The handle of it.
    """

    def __init__(self, place: Place, actor: Any):
        self.place, self.actor = place, actor
        self.opened = actor.open.remote()
        self.open = self.busy = False
        self.beat: Any = None


class RayCrew:
    """One actor per slot, on the nodes of a Ray cluster.

    Args:
        store: The run, on the head.
        ray: The module, which is on a cluster.
        places: Where to work.
        stay: Leaves the cluster when it is closed.
        patience: How long an actor that is silent is waited for.
        placing: Seconds to wait while no actor has a place.
    """

    def __init__(
        self,
        store: Store,
        ray: ModuleType,
        places: Sequence[Place],
        stay: contextlib.ExitStack,
        patience: Patience | None = None,
        placing: float = PLACING_SECONDS,
    ):
        self._ray, self._store, self._stay = ray, store, stay
        self._patience, self._placing = patience or Patience(), placing
        self.slots: Sequence[Slot] = [place.slot for place in places]
        names = [name for name in RECIPE if (store.path / name).exists()]
        recipe = {n: store.files.get(n) for n in (*names, *store.files.list("surveys"))}
        self._recipe = ray.put(recipe)
        self._head = ray.get_runtime_context().gcs_address
        # Who is to do what again is decided in one place, and that is not here.
        once = {"max_restarts": 0, "max_task_retries": 0}
        self._agent = ray.remote(concurrency_groups={"beats": 1}, **once)(Agent)
        self._changed = threading.Condition()
        self._leaving = self._closed = self._lost = False
        self._posts = [self._post(place) for place in places]

    def _post(self, place: Place) -> _Post:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        slot = place.slot
        if slot.device == "cuda":
            slot = replace(slot, device="cuda:0")  # Ray shows an actor no GPU but its own
        hired = self._agent.options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            # Another node will do once this one is gone.
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=True),
        )
        return _Post(place, hired.remote(self._recipe, slot))

    def do(self, slot: Slot, order: Order) -> Exit:
        """Have a unit done by an actor that is free, and commit it here.

        Raises:
            Refused: No node has room for an actor, or one has other code.
        """
        post = self._take(slot)
        if post is None:
            return Exit(order, worker.TEMPORARY, cause="stopped")
        exit, data = self._done_by(post, order)
        if exit.code != worker.DONE:
            return exit
        try:
            committed = worker.deliver(
                self._store, order.unit, data, exit.seconds, self._heed_waiting
            )
        except OSError as error:
            return Exit(order, worker.code_of(error), cause=worker.in_words(error))
        return replace(exit, committed=committed)

    def _heed_waiting(self, words: str) -> None:
        if self._closed:
            raise InterruptedError("stopped")
        log.warning("%s; waiting for room", words)

    def _take(self, slot: Slot) -> _Post | None:
        """An actor that is free, the slot's own if possible; None if nobody is to begin more."""
        deadline = time.monotonic() + self._placing
        with self._changed:
            while not self._leaving:
                free = [post for post in self._posts if not post.busy and self._is_open(post)]
                if free:
                    post = min(free, key=lambda post: post.place.slot.index != slot.index)
                    post.busy = True
                    return post
                now = time.monotonic()
                if any(post.busy for post in self._posts):
                    deadline = now + self._placing
                elif now > deadline:
                    raise Refused(
                        f"no node of the cluster had room for a worker in {self._placing:.0f} s; "
                        "see with `ray status` who has it; nothing that was finished is lost"
                    )
                self._changed.wait(0.2)
        return None

    def _is_open(self, post: _Post) -> bool:
        if post.open:
            return True
        ready, _ = self._ray.wait([post.opened], timeout=0)
        if not ready:
            return False
        try:
            node, trouble = self._ray.get(post.opened)
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False) or hasattr(error, "cause"):
                last = str(error).strip().splitlines()[-1]
                raise Refused(
                    f"a node of the cluster cannot begin a worker ({last}); install this version "
                    "of fractal-llm there"
                ) from None
            self._replace(post)
            return False
        if trouble:
            raise Refused(f"node {node} of the cluster cannot work on this run: {trouble}")
        post.open = True
        return True

    def _replace(self, post: _Post) -> None:
        """Have another actor in the place of one that is gone, once there is room for it."""
        if not raylink.answers(self._head):
            self._lost = True
            raise Refused(
                f"the head of the cluster at {self._head} is gone; begin it again: nothing that "
                "was finished is lost, and the same command goes on"
            )
        with self._changed:
            self._ray.kill(post.actor)
            if not self._leaving:
                self._posts[self._posts.index(post)] = self._post(post.place)

    def _done_by(self, post: _Post, order: Order) -> tuple[Exit, bytes]:
        ray = self._ray
        try:
            answer = post.actor.do.remote(order)
            while not self._closed:
                if post.beat is None:
                    post.beat = post.actor.beat.options(concurrency_group="beats").remote()
                ready, _ = ray.wait([answer, post.beat], timeout=self._patience.silence)
                if answer in ready:
                    return ray.get(answer)
                if not ready:
                    cause = f"gave no sign of life for {self._patience.silence:.0f} s"
                    self._replace(post)
                    return Exit(order, worker.TEMPORARY, cause=cause), b""
                ray.get(post.beat)
                post.beat = None
            return Exit(order, worker.TEMPORARY, cause="stopped"), b""
        except ray.exceptions.RayError as error:
            self._replace(post)
            return self._fate(order, error), b""
        finally:
            with self._changed:
                post.busy = False
                self._changed.notify_all()

    def _fate(self, order: Order, error: Any) -> Exit:
        """What is to be made of an actor's end."""
        if self._closed:
            return Exit(order, worker.TEMPORARY, cause="stopped")
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return Exit(order, worker.MEMORY, cause="its node ran out of memory")
        if isinstance(error, self._ray.exceptions.RayTaskError):
            code, cause = worker.code_of(error.cause), worker.in_words(error.cause)
            return Exit(order, 1 if code == worker.WRONG else code, cause=cause)
        # A unit has a process of its own to die in; this is no fault of it.
        return Exit(order, worker.TEMPORARY, cause="its node died, or was cut off")

    def processes(self) -> dict[int, int]:
        """None: the workers' processes are those of other machines."""
        return {}

    def ask(self) -> None:
        """Have nobody begin more; what is in hand is finished."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    def kill(self) -> None:
        """End all actors at once; their workers end with them."""
        self.ask()
        self._closed = True
        for post in list(self._posts) if not self._lost else []:
            self._ray.kill(post.actor)

    def close(self) -> None:
        """Let the actors clean up, and leave the cluster."""
        self.ask()
        idle = [post for post in self._posts if not post.busy] if not self._closed else []
        with contextlib.suppress(self._ray.exceptions.RayError):
            # One that came too late for a unit has a folder, too; another may never have had room.
            begun = self._answered([post.opened for post in idle], BEGINNING)
            left = [post.actor.leave.remote() for post in idle if post.opened in begun]
            self._answered(left, LEAVING)
        self.kill()
        self._stay.close()

    def _answered(self, asked: list[Any], seconds: float) -> list[Any]:
        """Those calls of actors that are answered within so many seconds."""
        return self._ray.wait(asked, num_returns=len(asked), timeout=seconds)[0] if asked else []
