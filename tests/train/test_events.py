"""What is said where a run goes on elsewhere."""

import torch

from headct.run import append_jsonl, read_jsonl
from headct.train.events import FILE, Events
from headct.train.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_another_number_of_threads_is_said_and_the_same_is_not(tmp_path, capsys):
    events = Events(tmp_path, CPU)
    events.tell_what_differs()
    events.note("started", 0, {})
    events.tell_what_differs()
    assert capsys.readouterr().err == ""
    (row,) = read_jsonl(tmp_path / FILE)
    append_jsonl(tmp_path / FILE, [row | {"threads": row["threads"] + 3}])
    events.tell_what_differs()
    said = capsys.readouterr().err
    assert f"earlier {row['threads'] + 3} threads, now {row['threads']}" in said
    assert "ranks" not in said
