"""A server that forks trainings of a run and kills them at chosen moments.

Importing the frameworks takes seconds, so one process does it, and every training is a child that
it forks. In: a line of JSON for each training. Out: a line of JSON for how it ended.

A moment is the n-th call or return of a function, of Python or of C, at a place of the run. A
place is a stage and what is being written there, as the temporary directory is named: `prune-0.5`
is a step, `prune-0.5/checkpoint` the writing of a checkpoint, `behind prune-0.5` what comes before
the next stage. Then the child gets SIGKILL.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from cofi_deploy.config import TrainSettings
from cofi_deploy.loading import load_tokenizer
from cofi_deploy.tasks import load_task
from cofi_deploy.train.pipeline import Pipeline
from cofi_deploy.train.progress import RunProgress
from cofi_deploy.train.stage_runner import StageRunner

_TEMPORARY = re.compile(r"/\.([^/]+?)\.[^./]+\.tmp$")


class Moments:
    """Counts calls and returns at every place, and kills the process at one of them."""

    def __init__(self, place: str, number: int) -> None:
        self.counts: Counter[str] = Counter()
        self._target = (place, number)
        self._stage = "start"
        self._writing = ""

    def watch(self) -> None:
        """From now on."""
        start, say, mark_done = RunProgress.start, RunProgress.say, StageRunner.mark_done

        def entered(progress: RunProgress, stage: str, **options: Any) -> None:
            self._stage = stage
            start(progress, stage, **options)

        def said(progress: RunProgress, text: str) -> None:
            self._stage = "report" if text.startswith("scoring") else self._stage
            say(progress, text)

        def marked(runner: StageRunner, stage: str) -> None:
            mark_done(runner, stage)
            self._stage = f"behind {stage}"

        RunProgress.start, RunProgress.say = entered, said  # type: ignore[method-assign]
        StageRunner.mark_done = marked  # type: ignore[method-assign]
        sys.addaudithook(self._notice)
        sys.setprofile(self._count)

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "tempfile.mkdtemp":
            found = _TEMPORARY.search(str(arguments[0]))
            self._writing = "" if found is None else f"/{found[1]}"
        elif event == "shutil.rmtree" and _TEMPORARY.search(str(arguments[0])):
            self._writing = ""

    def _count(self, *_: object) -> None:
        place = self._stage + self._writing
        self.counts[place] += 1
        if (place, self.counts[place]) == self._target:
            os.kill(os.getpid(), signal.SIGKILL)


def serve(model: str, data: str, settings: dict[str, Any]) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(model)
    for line in sys.stdin:
        request = json.loads(line)
        report, answer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(report)
            moments = Moments(request["place"], request["number"])
            pipeline = Pipeline(
                Path(request["directory"]),
                task=load_task("sst2", data_dir=Path(data), max_length=48),
                model=model,
                teacher=None,
                tokenizer=tokenizer,
                settings=TrainSettings(**settings),
            )
            moments.watch()
            result = pipeline.train()
            sys.setprofile(None)
            counts = dict(moments.counts)
            os.write(answer, json.dumps({"result": result, "counts": counts}).encode())
            os._exit(0)
        os.close(answer)
        with os.fdopen(report, "rb") as stream:
            content = stream.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps({"status": status, **json.loads(content or b"{}")}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
