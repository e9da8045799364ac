"""Processes that train together end together.

A process that dies leaves the others waiting: for good with NCCL, and with a message about sockets with gloo.  Here
every process keeps a connection to the first one.  The system closes it when a process dies, however it dies, so that
nothing has to be timed and a process that is merely busy is never taken for a dead one; keepalive probes notice a
machine that is gone.  Who meets an error says so before anything else.

The first process waits a moment for what others have to say, tells the cause in one line (an error rather than a death,
a death rather than an operation that failed because another process was gone), and all exit with status 1.  A process
that hangs is no dead one; operations that wait for it end after the process group's timeout, half an hour in Lightning
(``timeout`` of its ``DDPStrategy``).
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from wsflow.callbacks.generation import OtherProcessError

GRACE = 1.5
"""Seconds that the first process waits for what others have to say of a failure."""

PATIENCE = 20.0
"""Seconds after which a process that failed, and was told nothing, exits by itself."""

JOINING = 60.0
"""Seconds that a process has to connect to the first one."""

ERROR, DEATH, CONSEQUENCE = range(3)
"""What may have happened to a process, the likeliest cause first."""

COLLECTIVE = re.compile("gloo|nccl|process group|connection (closed|reset)|broken pipe|timed out|socket", re.IGNORECASE)
"""Errors of operations between processes: the other side's failure shows on this one."""


class Incident(NamedTuple):
    """What happened to a process; the least one of several is told."""

    kind: int
    rank: int
    text: str


class FailTogether(Callback):
    """Ends all processes of a job when one of them fails, with one message; of no effect with a single process.

    The command line uses it in every stage.  In Python, give it to a Trainer of a script that ends when training fails:
    it leaves by ``os._exit``.
    """

    def __init__(self) -> None:
        self._member: Member | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect the processes."""
        if trainer.world_size > 1 and self._member is None:
            _retire_observer()
            self._member = _join(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others, and do not return; where all end on purpose, leave in peace."""
        if self._member is None:  # not connected yet: processes that this one started would wait for it
            _end(getattr(trainer.strategy.launcher, "procs", None) or [])
            return
        if isinstance(exception, SIGTERMException):
            self.teardown(trainer, pl_module, "")
            return
        interrupted = isinstance(exception, KeyboardInterrupt)
        text = "interrupted" if interrupted else " ".join(str(exception).split()) or type(exception).__name__
        kind = CONSEQUENCE if _is_consequence(exception) else ERROR
        plain = interrupted or isinstance(exception, ValueError | OSError)
        if os.environ.get("WSFLOW_DEBUG") or (kind == ERROR and not plain):
            traceback.print_exception(exception)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.finalize("failed")
        self._member.fail(kind, text)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave: from now on this process may end without a word."""
        if self._member is not None:
            self._member.leave()
            self._member = None


class Member:
    """A process other than the first; :class:`Chair` is the first.

    Args:
        rank: Of the process.
        world: The number of processes.
        hint: Gives what a user can do next, such as ``; continue ...``.
    """

    def __init__(self, rank: int, world: int, hint: Callable[[], str]) -> None:
        self.rank, self.world, self.hint = rank, world, hint
        self._left = threading.Event()

    def join(self, host: str, port: int, token: str) -> None:
        """Connect to the first process, and listen to it from now on."""
        self._chair = socket.create_connection((host, port), timeout=JOINING)
        self._chair.settimeout(None)
        _keep_alive(self._chair)
        _send(self._chair, rank=self.rank, token=token)
        _background(self._listen)

    def fail(self, kind: int, text: str) -> None:
        """Report a failure and wait for the end; returns where the others have left."""
        self._report(kind, text)
        if not self._left.wait(PATIENCE):
            _exit(_told(Incident(kind, self.rank, text), self.world, self.hint()))

    def leave(self) -> None:
        """Say goodbye."""
        self._left.set()
        _send(self._chair, left=True)

    def _report(self, kind: int, text: str) -> None:
        _send(self._chair, kind=kind, text=text)

    def _listen(self) -> None:
        for message in _messages(self._chair):
            if message.get("left"):
                self._left.set()
                return
            if message.get("end"):
                _exit()
        if not self._left.is_set():
            _exit(_told(Incident(DEATH, 0, ""), self.world, self.hint()) if self.rank == 1 else None)


class Chair(Member):
    """The first process, which decides what is told.

    Args:
        world: The number of processes.
        hint: Gives what a user can do next.
        stop: Ends processes that this one started, if they have not ended by themselves.
    """

    def __init__(self, world: int, hint: Callable[[], str], stop: Callable[[], None]) -> None:
        super().__init__(0, world, hint)
        self._stop = stop
        self._members: list[socket.socket] = []
        self._incidents: queue.Queue[Incident | None] = queue.Queue()

    def open(self, host: str) -> tuple[int, str]:
        """The port and the password of the others' connections."""
        local = host in ("127.0.0.1", "localhost")
        self._server = socket.create_server(("127.0.0.1" if local else "", 0), backlog=self.world)
        self._server.settimeout(JOINING)
        self._token = secrets.token_hex(16)
        return self._server.getsockname()[1], self._token

    def gather(self) -> None:
        """Wait until all processes have connected, and listen to them from now on."""
        while len(self._members) < self.world - 1:
            peer, _ = self._server.accept()
            peer.settimeout(JOINING)
            messages = _messages(peer)
            first = next(messages, {})
            if first.get("token") == self._token:
                peer.settimeout(None)
                _keep_alive(peer)
                self._members.append(peer)
                _background(self._hear, int(first["rank"]), messages)
        self._server.close()
        _background(self._preside)

    def leave(self) -> None:
        """Say goodbye to all."""
        self._left.set()
        self._incidents.put(None)
        for peer in self._members:
            _send(peer, left=True)

    def _report(self, kind: int, text: str) -> None:
        self._incidents.put(Incident(kind, 0, text))

    def _hear(self, rank: int, messages: Iterator[dict[str, Any]]) -> None:
        """Note what another process says."""
        for message in messages:
            if message.get("left"):
                return
            self._incidents.put(Incident(message["kind"], rank, message["text"]))
        self._incidents.put(Incident(DEATH, rank, ""))

    def _preside(self) -> None:
        """Wait for a failure, and end all processes."""
        first = self._incidents.get()
        if first is None or self._left.is_set():
            return
        time.sleep(GRACE)
        found = [first]
        while not self._incidents.empty():
            found += [incident for incident in [self._incidents.get()] if incident is not None]
        print(_told(min(found), self.world, self.hint()), file=sys.stderr, flush=True)
        for peer in self._members:
            _send(peer, end=True)
        self._stop()
        _exit()


def _join(trainer: Trainer) -> Member:
    """Connect this process of a Trainer's with the others."""
    rank, world = trainer.global_rank, trainer.world_size
    host = trainer._accelerator_connector.cluster_environment.main_address
    if rank > 0:
        member = Member(rank, world, partial(_hint, trainer))
        address: tuple[int, str] = trainer.strategy.broadcast((0, ""))
        member.join(host, *address)
        return member
    procs = getattr(trainer.strategy.launcher, "procs", [])
    chair = Chair(world, partial(_hint, trainer), lambda: _end(procs))
    trainer.strategy.broadcast(chair.open(host))
    chair.gather()
    return chair


def _hint(trainer: Trainer) -> str:
    """How to go on, where a training has left something to go on from."""
    folders = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
    if trainer.state.fn != TrainerFn.FITTING or not any(list(Path(folder).glob("*last*.ckpt")) for folder in folders):
        return ""
    return "; continue the training from its last checkpoint with --ckpt_path last"


def _is_consequence(exception: BaseException) -> bool:
    text = str(exception)
    known = isinstance(exception, OtherProcessError)
    return known or (isinstance(exception, RuntimeError) and COLLECTIVE.search(text) is not None)


def _told(incident: Incident, world: int, hint: str) -> str:
    process = f"process {incident.rank} of {world} (counted from 0)"
    if incident.kind == DEATH:
        return f"wsflow: error: {process} was killed, or ended without a word{hint}"
    if incident.kind == CONSEQUENCE:
        return f"wsflow: error: {process} could not reach the others: {incident.text[:300]}{hint}"
    return f"wsflow: error: {process}: {incident.text}{hint}"


def _exit(text: str | None = None) -> NoReturn:
    """End this process at once, also where its main thread waits for others."""
    if text is not None:
        print(text, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def _end(procs: Iterable[Any]) -> None:
    """Kill processes that do not end by themselves in a moment."""
    limit = time.monotonic() + 3
    for proc in procs:
        while proc.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if proc.poll() is None:
            proc.kill()


def _retire_observer() -> None:
    """Take the processes that it started from Lightning's observer, which would kill this one before it can speak."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            vars(thread)["_child_processes"] = []


def _send(peer: socket.socket, **message: Any) -> None:
    try:
        peer.sendall((json.dumps(message) + "\n").encode())
    except OSError:  # who is gone need not be told
        return


def _messages(peer: socket.socket) -> Iterator[dict[str, Any]]:
    """What the other side says, until it is gone."""
    with suppress(OSError, ValueError), peer.makefile("r") as lines:
        yield from map(json.loads, lines)


def _background(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True, name="wsflow-together").start()


def _keep_alive(peer: socket.socket) -> None:
    """Let the system find out within half a minute that the other side's machine is gone."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
