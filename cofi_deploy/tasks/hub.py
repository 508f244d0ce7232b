"""Data sets of the Hugging Face hub, without waiting for a network that is not there.

In: a data set id. Out: its splits, from the hub or from the local cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cofi_deploy.errors import DataError, HubUnreachableError
from cofi_deploy.hub import why_unreachable

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)


def load_hub_dataset(dataset_id: str, config: str | None, *, way_on: str) -> DatasetDict:
    """All splits of a hub data set; the local cache is used where the hub cannot be reached.

    Args:
        dataset_id: `owner/name`.
        config: Subset of the data set, such as `sst2` of GLUE.
        way_on: What the user can do without the hub, for the error message.

    Raises:
        HubUnreachableError: neither the hub nor the cache supplies it; told within seconds.
        DataError: the hub answers, but has no such data set, or it cannot be read.
    """
    reason = why_unreachable()
    # Takes seconds to import, and only hub data needs it.
    import datasets  # noqa: PLC0415

    try:
        if reason is None:
            return datasets.load_dataset(dataset_id, config)
        with _offline():
            return datasets.load_dataset(dataset_id, config)
    except (ConnectionError, TimeoutError) as error:
        raise _unreachable(dataset_id, reason or str(error), way_on) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if reason is not None:
            raise _unreachable(dataset_id, reason, way_on) from error
        raise DataError(
            f"the hub data set {dataset_id!r} cannot be used ({error}); check its name, or {way_on}"
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Have `datasets` look into its cache only, instead of retrying the network for minutes."""
    import datasets  # noqa: PLC0415
    import huggingface_hub  # noqa: PLC0415

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _unreachable(dataset_id: str, reason: str, way_on: str) -> HubUnreachableError:
    return HubUnreachableError(
        f"the data set {dataset_id!r} is not in the local cache and the hub cannot be reached "
        f"({reason}); {way_on}"
    )
