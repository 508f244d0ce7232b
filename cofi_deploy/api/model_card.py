"""README.md of a compact model: a hub model card with the numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cofi_deploy.arch import Arch
from cofi_deploy.family_tables import FAMILIES


def model_card(run: Mapping[str, Any], model: Mapping[str, Any], base: Arch) -> str:
    """Render the card.

    Args:
        run: Content of run.json, results included.
        model: The entry of ``run["result"]["models"]`` that the card is for.
        base: `Arch` of the dense model.
    """
    environment = Environment(
        loader=PackageLoader("cofi_deploy", "templates"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("model_card.md.j2")
    family = FAMILIES[base.family].title
    return template.render(run=run, result=run["result"], model=model, family=family)
