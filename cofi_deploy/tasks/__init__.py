"""What is learnt and how it is scored: data in, features and a metric out.

Start with `load.py`.
"""

from cofi_deploy.task_names import TASK_NAMES
from cofi_deploy.tasks.encoding import EncodedSplit, length_bucketed_batches
from cofi_deploy.tasks.load import load_task
from cofi_deploy.tasks.task import Example, Split, Task

__all__ = [
    "TASK_NAMES",
    "EncodedSplit",
    "Example",
    "Split",
    "Task",
    "length_bucketed_batches",
    "load_task",
]
