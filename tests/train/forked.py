"""Ranks of a run as processes that start at once: forked from one that has imported everything."""

import multiprocessing
import os
import socket
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["headct.cli.pretrain", "headct.train.pretrain"])


def start_ranks(ranks: int, toml: Path, store: Path, out: Path) -> list[multiprocessing.Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(ranks):
        more = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=_train, args=(more, str(toml), store, out))
        process.start()
        processes.append(process)
    return processes


def _train(environment: dict[str, str], toml: str, store: Path, out: Path) -> None:
    """What `headct pretrain` does, in a session that says nothing."""
    from headct.cli.pretrain import Call

    os.environ.update(environment)
    out.parent.mkdir(exist_ok=True)
    with (out.parent / f"{out.name}-{environment['RANK']}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        Call(toml, store, out, (), 1, None, None, None).train()
