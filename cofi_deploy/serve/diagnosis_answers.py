"""Are answers off by more than their precision explains, and did numbers leave their range?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cofi_deploy.loading import load
from cofi_deploy.serve.accuracy import FeatureOutputs, Scored, compare
from cofi_deploy.serve.fault import Checked, Diagnosis, Texts
from cofi_deploy.tasks import EncodedSplit

# Largest difference of a logit, as a share of the largest logit (or of 1), that a precision may
# explain over a whole split. fp32 leaves room for the 10-bit products (TF32) of GPUs.
_TOLERANCE = {"fp32": 1e-2, "fp16": 5e-2, "bf16": 1.5e-1}
# int8 is off by much on single texts, and still answers like the model on most: the median counts.
_TYPICAL_TOLERANCE = 2.5e-1

FP16_MAX = 65504.0
_MAX_WATCHED = 256  # features that PyTorch reads again to find where numbers grow
_BATCH = 32


def is_off(reference: Scored, scored: Scored, precision: str) -> bool:
    """Whether answers differ from PyTorch's by more than ``precision`` explains.

    Answers to other tokens (a cut vocabulary) cannot be compared, and are not off.
    """
    difference = _differences(reference.outputs, scored.outputs)
    if difference is None or not len(difference):
        return False
    scale = max(1.0, _largest(reference.outputs))
    if precision in _TOLERANCE:
        return bool(difference.max() > _TOLERANCE[precision] * scale)
    return bool(np.median(difference) > _TYPICAL_TOLERANCE * scale)


def symptom(reference: Scored, scored: Scored) -> str:
    """How far answers are from PyTorch's, in words."""
    parity = compare(reference, scored)
    logits = parity.max_abs_logit_diff
    by = "" if logits is None else f", its logits by up to {logits:.3g}"
    return f"its answers differ from PyTorch's for {1 - parity.agreement:.1%} of the examples{by}"


def check_finite(checked: Checked, texts: Texts, scored: Scored) -> list[Diagnosis]:
    """NaN or infinity among the answers: fp16 that overflowed, or a broken model."""
    if not scored.not_finite:
        return []
    split = texts.fed(checked.label, checked.runtime)
    where = (
        f"answers are NaN or infinite for {len(scored.not_finite)} of {len(split)} inputs, first "
        f"for input {scored.not_finite[0]} ({_text(split, scored.not_finite[0])!r})"
    )
    if checked.runtime == "torch":
        what = f"{where}, in fp32 already: the weights are broken; train the model again"
        return [checked.diagnosis("not_finite", what)]
    precision = checked.manifest().precision
    if precision != "fp16":
        what = f"{where}, at {precision}: the artifact is broken; {checked.remedy()}"
        return [checked.diagnosis("not_finite", what)]
    return [_overflow(checked, where, _beyond_fp16(checked, texts))]


def check_range(checked: Checked, texts: Texts, told: str | None) -> list[Diagnosis]:
    """Numbers beyond fp16 in an artifact that computes in it, though its answers are finite.

    ONNX Runtime computes fp16 graphs in fp32 on a CPU, where they then answer as they should; on
    the device that they are made for they overflow. ``told`` is how far its answers are off.
    """
    manifest = checked.manifest()
    # OpenVINO stores fp16 and computes in fp32.
    if manifest.precision != "fp16" or manifest.format == "openvino":
        return []
    beyond = _beyond_fp16(checked, texts)
    where = told or "it does not show in this runtime, which computed in fp32"
    return [_overflow(checked, where, beyond)] if beyond else []


def other_answers(checked: Checked, told: str) -> Diagnosis:
    """The weights are right, since PyTorch answers with them: the fault is in the artifact."""
    what = (
        f"{told}, more than {checked.manifest().precision} explains, and PyTorch has the same "
        f"weights: the fault is in the artifact; {checked.remedy()}"
    )
    return checked.diagnosis("other_answers", what)


def _overflow(checked: Checked, where: str, beyond: tuple[str, float] | None) -> Diagnosis:
    reason = "fp16 overflow"
    if beyond is not None:
        *_, layer, sublayer = beyond[0].split(".")
        reason += (
            f": the {sublayer} sublayer of layer {layer} reaches {beyond[1]:.3g}, the largest "
            f"number of fp16 is {FP16_MAX:.0f}"
        )
    source = checked.manifest()
    what = (
        f"{reason}; {where}; use --precision bf16 or fp32: cofi-deploy export "
        f"{source.source_path} --format {source.format} --precision bf16"
    )
    return checked.diagnosis("fp16_overflow", what)


def _beyond_fp16(checked: Checked, texts: Texts) -> tuple[str, float] | None:
    """The first sublayer with a number (or weight) beyond fp16 in PyTorch, and the largest of it.

    Sublayers that the artifact computes in fp32 are passed over.
    """
    directory = checked.subject.artifacts.get("torch")
    if directory is None:
        return None
    model = load(directory)
    split = texts.encoded[checked.label]
    peaks: dict[str, float] = {}
    rows = np.unique(np.linspace(0, len(split) - 1, _MAX_WATCHED).astype(int)).tolist()
    with torch.inference_mode(), _watched(model, peaks):
        for start in range(0, len(rows), _BATCH):
            batch = split.batch(rows[start : start + _BATCH])
            names = ("input_ids", "attention_mask", "token_type_ids")
            model.outputs({name: torch.from_numpy(batch[name]) for name in names})
    exact = checked.manifest().options.get("fp32_sublayers", [])
    beyond = (each for each in peaks.items() if each[1] > FP16_MAX and each[0] not in exact)
    return next(beyond, None)


class _Peaks(TorchFunctionMode):
    """Notes the largest magnitude of whatever is computed while a sublayer has the word."""

    def __init__(self, peaks: dict[str, float]) -> None:
        super().__init__()
        self.peaks = peaks
        self.sublayer: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_number = isinstance(result, torch.Tensor) and result.is_floating_point()
        if self.sublayer is not None and is_number and result.numel():
            peak = float(result.detach().abs().max())
            self.peaks[self.sublayer] = max(self.peaks[self.sublayer], peak)
        return result


@contextmanager
def _watched(model: nn.Module, peaks: dict[str, float]) -> Iterator[None]:
    """Follow the sublayers of the encoder; only they are computed in fp16."""
    mode = _Peaks(peaks)

    def enter(name: str) -> Any:
        def hook(*_: object) -> None:
            mode.sublayer = name

        return hook

    def leave(*_: object) -> None:
        mode.sublayer = None

    handles = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[:2] == ["encoder", "layers"] and len(parts) == 4:
            largest = (float(each.abs().max()) for each in module.parameters() if each.numel())
            peaks[name] = max(largest, default=0.0)
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _differences(first: FeatureOutputs, second: FeatureOutputs) -> npt.NDArray[Any] | None:
    """Largest difference of a logit for each feature; None where there are others."""
    shapes = [[array.shape for row in each for array in row.values()] for each in (first, second)]
    if shapes[0] != shapes[1]:
        return None
    return np.array(
        [
            max(float(np.abs(one[name] - other[name]).max()) for name in one)
            for one, other in zip(first, second, strict=True)
        ]
    )


def _largest(outputs: FeatureOutputs) -> float:
    return max(float(np.abs(array).max()) for row in outputs for array in row.values())


def _text(split: EncodedSplit, feature: int) -> str:
    """The text behind a feature, shortened; windows of a long text are no examples."""
    if len(split) != len(split.examples):
        return f"window {feature}"
    text = split.examples[feature].text
    return text if len(text) <= 60 else f"{text[:60]}..."
