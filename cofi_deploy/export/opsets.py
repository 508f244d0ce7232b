"""Which ONNX operator set a graph is written in: one default for each target, and why."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cofi_deploy.errors import ConfigError
from cofi_deploy.exports import DEFAULT_OPSET

# From 17 on LayerNormalization is one node. 18 to 23 change no operator of these graphs but Gelu,
# which is one node from 20 on: attention stays MatMul, Softmax, MatMul in all of them, with a mask
# of finite numbers. (The Attention operator of 23 is refused by TensorRT-RTX at fp32 and for one
# head, and by ONNX Runtime with a mask that is not expanded.)
OPSETS = range(17, 24)

# The least that will do is read by most: ONNX Runtime since 1.12, and onnxruntime-web, which
# transformers.js runs; TensorRT's parser, which knew LayerNormalization before Gelu. OpenVINO
# makes the same node of both forms of Gelu. Servers of Triton carry all of these.
DEFAULT_OPSETS: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(("onnx", "openvino", "trt", "triton"), DEFAULT_OPSET)
)


def check_opset(opset: int) -> None:
    """Refuse what no graph is written in.

    Raises:
        ConfigError: Names the range.
    """
    if opset not in OPSETS:
        raise ConfigError(f"opset is {opset}, allowed: {OPSETS.start} to {OPSETS.stop - 1}")
